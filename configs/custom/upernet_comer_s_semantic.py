"""ViT-CoMer-S with a narrow UPerNet on label maps of your own; it needs only folders and names:

python3 train_net.py --config-file configs/custom/upernet_comer_s_semantic.py \
    dataset.train_images=train/images dataset.train_masks=train/masks \
    dataset.val_images=val/images dataset.val_masks=val/masks dataset.class_names=classes.txt
"""

from ..common.data.semantic_custom import dataloader, dataset
from ..common.models.upernet_comer import model, upernet_size
from ..common.optim import AdamW as optimizer
from ..common.small_data import lr_multiplier, small_data
from ..common.train import train

upernet_size(model, "S")
model.backbone.vit.pretrain_img_size = 592  # 37 x 37 positions: DINOv2's 518 / 14, at patch 16
model.sem_seg_head.update(num_classes="${dataset.num_classes}", channels=128, auxiliary_channels=64)
model.views.window = model.views.stride = None  # the whole image, at the size that was trained

# New layers learn fast, the pretrained ViT hardly moves: docs/FINETUNING.md has what that gives.
small_data(dataloader, optimizer, train, output_dir="output/custom_semantic", lr=2e-3)
optimizer.params.vit_lr_factor = 0.02
train.clip_grad.max_norm = 1.0
train.best_checkpointer.metric = "sem_seg/mIoU"

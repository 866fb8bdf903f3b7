"""ViT-CoMer-S Mask R-CNN on COCO-format data of your own; it needs only paths:

python3 train_net.py --config-file configs/custom/mask_rcnn_comer_s.py \
    dataset.train_json=train.json dataset.train_images=train/ \
    dataset.val_json=val.json dataset.val_images=val/ train.init_checkpoint=VIT
"""

from ..common.data.coco_custom import dataloader, dataset
from ..common.models.mask_rcnn_comer import model
from ..common.models.sizes import comer_size
from ..common.optim import AdamW as optimizer
from ..common.small_data import lr_multiplier, small_data
from ..common.train import train

comer_size(model.backbone.bottom_up, "S")
model.roi_heads.num_classes = "${dataset.num_classes}"

# New layers learn fast, the pretrained ViT hardly moves: docs/FINETUNING.md has what that gives.
small_data(dataloader, optimizer, train, output_dir="output/custom", lr=8e-4)
optimizer.params.vit_lr_factor = 0.02

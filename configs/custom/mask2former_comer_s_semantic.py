"""ViT-CoMer-S with Mask2Former on label maps of your own; it needs only folders and names:

python3 train_net.py --config-file configs/custom/mask2former_comer_s_semantic.py \
    dataset.train_images=train/images dataset.train_masks=train/masks \
    dataset.val_images=val/images dataset.val_masks=val/masks dataset.class_names=classes.txt
"""

from ..ADE20K.semantic.mask2former_comer_s import model, optimizer, train
from ..common.data.semantic_custom import dataloader, dataset
from ..common.schedule import poly
from ..common.small_data import small_data

model.sem_seg_head.predictor.num_classes = "${dataset.num_classes}"

small_data(dataloader, optimizer, train, output_dir="output/custom_semantic")
lr_multiplier = poly(power=0.9, warmup_iters=500)

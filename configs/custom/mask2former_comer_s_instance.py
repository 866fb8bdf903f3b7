"""ViT-CoMer-S with Mask2Former on COCO instances of your own; it needs only paths:

python3 train_net.py --config-file configs/custom/mask2former_comer_s_instance.py \
    dataset.train_json=train.json dataset.train_images=train/ \
    dataset.val_json=val.json dataset.val_images=val/
"""

from ..COCO.instance.mask2former_comer_s import model, optimizer, train
from ..common.data.coco_custom import dataloader, dataset
from ..common.schedule import poly
from ..common.small_data import small_data

model.sem_seg_head.predictor.num_classes = "${dataset.num_classes}"
dataloader.train.aspect_ratio_grouping = False

small_data(dataloader, optimizer, train, output_dir="output/custom_instance")
lr_multiplier = poly(power=0.9, warmup_iters=500)

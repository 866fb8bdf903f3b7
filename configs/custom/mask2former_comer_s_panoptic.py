"""ViT-CoMer-S with Mask2Former on COCO panoptic data of your own; it needs only paths:

python3 train_net.py --config-file configs/custom/mask2former_comer_s_panoptic.py \
    dataset.train_json=train.json dataset.train_images=train/ dataset.train_masks=panoptic_train/ \
    dataset.val_json=val.json dataset.val_images=val/ dataset.val_masks=panoptic_val/
"""

from ..COCO.panoptic.mask2former_comer_s import model, optimizer, train
from ..common.data.panoptic_custom import dataloader, dataset
from ..common.schedule import poly
from ..common.small_data import small_data

model.sem_seg_head.predictor.num_classes = "${dataset.num_classes}"
model.stuff_classes = "${dataset.stuff_classes}"
model.tasks = ["panoptic", "semantic"]
# Mask AP needs dataset.val_instances: see docs/SEGMENTATION.md.
dataloader.evaluator = [dataloader.evaluator[0], dataloader.evaluator[2]]

small_data(dataloader, optimizer, train, output_dir="output/custom_panoptic")
lr_multiplier = poly(power=0.9, warmup_iters=500)

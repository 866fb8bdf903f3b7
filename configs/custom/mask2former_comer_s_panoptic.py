"""ViT-CoMer-S with Mask2Former on COCO panoptic data of your own; it needs only paths:

python3 train_net.py --config-file configs/custom/mask2former_comer_s_panoptic.py \
    dataset.train_json=train.json dataset.train_images=train/ dataset.train_masks=panoptic_train/ \
    dataset.val_json=val.json dataset.val_images=val/ dataset.val_masks=panoptic_val/
"""

from ..COCO.panoptic.mask2former_comer_s import model, optimizer, train
from ..common.data.panoptic_custom import dataloader, dataset
from ..common.schedule import poly

model.sem_seg_head.predictor.num_classes = "${dataset.num_classes}"
model.stuff_classes = "${dataset.stuff_classes}"
model.tasks = ["panoptic", "semantic"]
# Mask AP needs dataset.val_instances: see docs/SEGMENTATION.md.
dataloader.evaluator = [dataloader.evaluator[0], dataloader.evaluator[2]]

# One GPU of 24 GB. 1e-4 is for batch 16; AdamW's rate goes with the root: sqrt(4/16).
dataloader.train.total_batch_size = 4
optimizer.lr = 5e-5

# 20,000 iterations of 4 are 40 epochs of 2,000 images; the schedule follows train.max_iter.
train.output_dir = "output/custom_panoptic"
train.max_iter = 20_000
train.eval_period = train.checkpointer.period = 2_000
train.checkpointer.max_to_keep = 2
lr_multiplier = poly(power=0.9, warmup_iters=500)

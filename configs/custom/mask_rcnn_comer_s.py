"""ViT-CoMer-S Mask R-CNN on COCO-format data of your own; it needs only paths:

python3 train_net.py --config-file configs/custom/mask_rcnn_comer_s.py \
    dataset.train_json=train.json dataset.train_images=train/ \
    dataset.val_json=val.json dataset.val_images=val/
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from ..common.data.coco_custom import dataloader, dataset
from ..common.models.mask_rcnn_comer import model
from ..common.models.sizes import comer_size
from ..common.optim import AdamW as optimizer
from ..common.train import train

comer_size(model.backbone.bottom_up, "S")
model.roi_heads.num_classes = "${dataset.num_classes}"

# One GPU of 24 GB. The authors' 1e-4 is for batch 16; AdamW's rate goes with the root: sqrt(4/16).
dataloader.train.total_batch_size = 4
optimizer.lr = 5e-5
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.7

# 10,000 iterations of 4 are 20 epochs of 2,000 images; the schedule follows train.max_iter.
train.output_dir = "output/custom"
train.max_iter = 10_000
train.eval_period = 1_000
train.checkpointer.period = 1_000
train.checkpointer.max_to_keep = 2
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_factor=0.001,
)

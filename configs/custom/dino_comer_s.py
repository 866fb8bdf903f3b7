"""ViT-CoMer-S DINO on COCO-format data of your own, boxes or masks; it needs only paths:

python3 train_net.py --config-file configs/custom/dino_comer_s.py \
    dataset.train_json=train.json dataset.train_images=train/ \
    dataset.val_json=val.json dataset.val_images=val/
"""

from ..COCO.dino_comer_s_12ep import dataloader as _coco
from ..COCO.dino_comer_s_12ep import model, optimizer, train
from ..common.data.coco_custom import dataloader, dataset
from .mask_rcnn_comer_s import lr_multiplier

model.head.proposals.num_classes = "${dataset.num_classes}"
dataloader.train.mapper.augmentations = _coco.train.mapper.augmentations
for _split in ("train", "test"):
    dataloader[_split].mapper.use_instance_mask = False  # boxes are enough

# One GPU of 24 GB. 1e-4 is for batch 16; AdamW's rate goes with the root: sqrt(4/16).
dataloader.train.total_batch_size = 4
optimizer.lr = 5e-5

# 20,000 iterations of 4 are 40 epochs of 2,000 images; the schedule follows train.max_iter.
train.output_dir = "output/custom_dino"
train.max_iter = 20_000
train.eval_period = train.checkpointer.period = 2_000
train.checkpointer.max_to_keep = 2

"""tiny_mask_rcnn.py without its heads, and without chance: every loss is a mean over the images.

So that one process and several must give the same losses.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling import ProposalNetwork

from .tiny_mask_rcnn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = ProposalNetwork
del model.roi_heads
del model.input_format
model.proposal_generator.batch_size_per_image = 10_000  # more than there are: no sampling
for _part in (model.backbone.bottom_up.stem, *model.backbone.bottom_up.stages):
    _part.norm = "FrozenBN"

# One size, so that padding does not depend on which images come together.
dataloader.train.mapper.augmentations = [
    L(T.Resize)(shape=(64, 64)),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.aspect_ratio_grouping = False
dataloader.train.total_batch_size = 4

train.max_iter = 4
lr_multiplier.warmup_length = 0.0

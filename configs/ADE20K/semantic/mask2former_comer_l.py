"""Size L on BEiTv2, 896 crop, 80,000 it. Published: 61.7 mIoU, 62.1 with flip and scales, 604 M.

The authors have not released this config; it is their COCO-Stuff recipe on ADE20K's 150 classes,
with that model's 633.6 M parameters.
"""

from ...COCOStuff.semantic.mask2former_comer_l import lr_multiplier, model, optimizer, train
from ...common.data.ade20k_semantic import dataloader, semantic_crop

semantic_crop(dataloader, 896)
model.sem_seg_head.predictor.num_classes = 150

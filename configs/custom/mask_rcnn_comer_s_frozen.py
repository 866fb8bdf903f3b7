"""ViT-CoMer-S Mask R-CNN on a pretrained ViT-S that stays as it is, with the heads of mask_rcnn_comer_t.py.

For tens of photos, and minutes on a CPU; docs/FINETUNING.md has what each choice gave.
"""

from ..common.models.sizes import comer_size
from .mask_rcnn_comer_t import dataloader, dataset, lr_multiplier, model, optimizer, train

_comer = model.backbone.bottom_up
comer_size(_comer, "S")
_comer.vit.freeze_at = _comer.vit.depth  # not only read: CTI to V trains
_comer.vit.pretrain_img_size = 592  # 37 x 37 positions: DINOv2's 518 / 14, at patch 16

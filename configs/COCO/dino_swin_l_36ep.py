"""DINO with five scales on timm's Swin-L, a baseline, as DINO is published; see dino_comer_s_36ep.py."""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.timm_backbone import TimmBackbone

from ..common.models.dino_comer import five_scales, model
from .dino_comer_s_36ep import dataloader, lr_multiplier, optimizer, train

five_scales(model)
model.backbone = L(TimmBackbone)(
    name="swin_large_patch4_window12_384",
    out_features=["res2", "res3", "res4", "res5"],
    drop_path_rate=0.2,
)
model.head.neck.in_channels = [192, 384, 768, 1536]

optimizer.params.lr_decay_rate = 1.0
optimizer.params.backbone_lr_factor = 0.1

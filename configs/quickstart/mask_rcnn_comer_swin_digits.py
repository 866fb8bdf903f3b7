"""ViT-CoMer around the Swin of mask_rcnn_swin_digits.py, with the interactions of mask_rcnn_comer_digits.py."""

from detectron2.config import LazyCall as L

from comer_d2.network.timm_pyramid import TimmPyramid

from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train
from .mask_rcnn_swin_digits import model as _swin

_trunk = _swin.backbone.bottom_up
model.backbone.bottom_up.vit = L(TimmPyramid)(
    name=_trunk.name, drop_path_rate=_trunk.drop_path_rate, arguments=_trunk.arguments
)
model.backbone.bottom_up.update(interaction_indexes=None, vit_features="stages")
train.output_dir = "output/quickstart/comer_swin"

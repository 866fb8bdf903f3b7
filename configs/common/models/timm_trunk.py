"""Hierarchical networks of timm in the place of ViT-CoMer, or of the ViT inside it, under the same heads.

`fpn_on(model, "convnext_tiny")` for models with an FPN, `maps_on(model, ...)` for Mask2Former, UPerNet and
DINO; `comer_on(model.backbone.bottom_up, "S", ...)` for a ViT-CoMer around one. Start from timm's weights of
the same name: `train.init_checkpoint=timm:convnext_tiny`.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.timm_backbone import TimmBackbone
from comer_d2.network.timm_pyramid import TimmPyramid, channels_of

from .sizes import COMER


def timm_backbone(name, drop_path_rate=None):
    """All four maps of a timm model."""
    return L(TimmBackbone)(
        name=name,
        out_features=["res2", "res3", "res4", "res5"],
        drop_path_rate=drop_path_rate,
        square_pad=0,
    )


def fpn_on(model, name, drop_path_rate=None):
    """Puts a timm model under the FPN of Mask R-CNN and its like."""
    out_features = model.backbone.bottom_up.out_features
    model.backbone.bottom_up = timm_backbone(name, drop_path_rate)
    model.backbone.bottom_up.out_features = out_features


def maps_on(model, name, drop_path_rate=None):
    """Puts a timm model under Mask2Former's, UPerNet's or DINO's head, which reads its maps."""
    model.backbone = timm_backbone(name, drop_path_rate)
    channels = channels_of(name)
    if "head" in model:  # DINO
        reader = model.head.neck
        model.backbone.out_features = reader.in_features
    elif "pixel_decoder" in model.sem_seg_head:
        reader = model.sem_seg_head.pixel_decoder
    else:
        reader = model.sem_seg_head
    reader.in_channels = [channels[feature] for feature in model.backbone.out_features]


def comer_on(comer, size, name, drop_path_rate=None):
    """Gives a ViT-CoMer a timm model for its trunk, with the interactions of one of the sizes."""
    comer.vit = L(TimmPyramid)(name=name, drop_path_rate=drop_path_rate)
    comer.update(COMER[size], interaction_indexes=None, vit_features="stages")

"""Hierarchical networks of timm in the place of ViT-CoMer, or of the ViT inside it, under the same heads.

`fpn_on(model, "convnext_tiny")` for models with an FPN, `maps_on(model, ...)` for Mask2Former, UPerNet and
DINO; `comer_on(model, "S", ...)` for a ViT-CoMer around one, under any of them. Start from timm's weights of the
same name: `train.init_checkpoint=timm:convnext_tiny`.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.timm_backbone import TimmBackbone
from comer_d2.network.timm_pyramid import TimmPyramid, channels_of

from .sizes import COMER, of_size


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


def reader_of(model):
    """What reads a backbone's maps of their own widths: a part of Mask2Former's, UPerNet's or DINO's head."""
    if "head" in model:  # DINO
        return model.head.neck
    head = model.sem_seg_head
    return head.pixel_decoder if "pixel_decoder" in head else head


def maps_on(model, name, drop_path_rate=None):
    """Puts a timm model under Mask2Former's, UPerNet's or DINO's head, which reads its maps."""
    model.backbone = timm_backbone(name, drop_path_rate)
    reader, channels = reader_of(model), channels_of(name)
    if "head" in model:  # DINO
        model.backbone.out_features = reader.in_features
    reader.in_channels = [channels[feature] for feature in model.backbone.out_features]


def comer_on(model, size, name, drop_path_rate=None):
    """Gives a model's ViT-CoMer a timm model for its trunk, with the interactions of one of the sizes.

    Of the sizes, one whose heads share out the trunk's channels at stride 16, which ViT-CoMer then has.
    """
    has_fpn = "bottom_up" in model.backbone
    comer = model.backbone.bottom_up if has_fpn else model.backbone
    comer.vit = L(TimmPyramid)(name=name, drop_path_rate=drop_path_rate)
    comer.update(of_size(COMER, size), interaction_indexes=None, vit_features="stages")
    if not has_fpn:
        reader = reader_of(model)
        reader.in_channels = [channels_of(name)["res4"]] * len(reader.in_channels)

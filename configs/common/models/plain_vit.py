"""The baseline of every model: its ViT without CoMer, under ViTDet's simple feature pyramid."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from comer_d2.d2.modeling.backbone import PlainViT
from comer_d2.d2.modeling.simple_feature_pyramid import SimpleFeaturePyramid


def pyramid_on_vit(vit, out_channels):
    """A ViT-CoMer's `vit` alone, with outputs p2 to p6 of `out_channels`."""
    vit._target_ = PlainViT
    vit.draw_weights = True
    return L(SimpleFeaturePyramid)(
        net=vit,
        in_feature="last_feat",
        out_channels=out_channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=L(LastLevelMaxPool)(),
        norm="LN",
        square_pad=0,
    )


def upernet_on_vit(model, out_channels):
    """Puts UPerNet, given on a ViT-CoMer, on its `vit` alone, with maps of `out_channels`."""
    model.backbone = pyramid_on_vit(model.backbone.vit, out_channels)
    model.backbone.top_block = None
    model.sem_seg_head.update(
        in_features=["p2", "p3", "p4", "p5"],
        in_channels=[out_channels] * 4,
        auxiliary_feature="p4",
    )

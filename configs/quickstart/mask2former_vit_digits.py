"""The baseline of the second quickstart: Mask2Former on the same ViT without CoMer; data and schedule are the same."""

from ..common.models.plain_vit import pyramid_on_vit
from .mask2former_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = pyramid_on_vit(model.backbone.vit, out_channels=64)
model.backbone.update(scale_factors=(4.0, 2.0, 1.0), top_block=None)
_features = ["p2", "p3", "p4"]
model.sem_seg_head.pixel_decoder.update(in_features=_features, transformer_in_features=_features)
train.output_dir = "output/quickstart-seg/vit"

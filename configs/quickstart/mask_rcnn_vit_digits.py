"""The baseline of the quickstart: a plain ViT under the same heads, data and schedule."""

from ..common.models.mask_rcnn_vitdet import model as _plain
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

_comer = model.backbone.bottom_up
model.backbone = _plain.backbone
model.backbone.out_channels = 64
model.backbone.net.update(
    img_size=128,
    pretrain_img_size=128,
    pretrain_use_cls_token=False,
    embed_dim=_comer.embed_dim,
    depth=_comer.depth,
    num_heads=_comer.num_heads,
    drop_path_rate=_comer.drop_path_rate,
    window_size=0,
    window_block_indexes=[],
)
train.output_dir = "output/quickstart/vit"

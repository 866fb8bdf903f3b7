"""Size L, 12 epochs. The paper starts from ImageNet-22K, and from DINOv2; no recipe is released.

Ours: data, batch and schedule as for S; position grid, pixel scale and layer decay of
ViT-Adapter-L, whose settings for T and L give the published parameter counts. Drop path is B's
(ViT-Adapter-L: 0.4).
"""

from ..common.models.sizes import comer_size
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "L")
model.backbone.bottom_up.vit.pretrain_img_size = 384  # 24 x 24 positions: AugReg's, ImageNet-22K
model.pixel_mean = model.pixel_std = [127.5, 127.5, 127.5]  # AugReg's input, -1 to 1

optimizer.params.lr_decay_rate = 0.80

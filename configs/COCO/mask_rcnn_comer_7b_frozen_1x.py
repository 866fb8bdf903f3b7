"""ViT-CoMer on DINOv3's 7B, frozen and only read: data, heads and schedule of mask_rcnn_comer_s_1x.py. No figure is published."""

from ..common.models.sizes import comer_size, freeze
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "7B")
freeze(model.backbone.bottom_up)
model.backbone.bottom_up.use_act_checkpoint = True
model.backbone.bottom_up.vit.update(  # DINOv3's, with its class and register tokens
    use_abs_pos=False, rope="dinov3", layer_norm_eps=1e-5, qkv_bias="none", num_prefix_tokens=5
)
optimizer.params.lr_decay_rate = 1.0  # nothing is left to decay
train.amp.dtype = "bfloat16"  # what the ViT is kept in

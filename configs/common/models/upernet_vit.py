"""The baseline: UPerNet on upernet_comer.py's ViT alone, under ViTDet's simple feature pyramid, size B.

Another size is one edit of the ViT: `vit_size(model.backbone.net, "S")`.
"""

from .plain_vit import upernet_on_vit
from .upernet_comer import model

upernet_on_vit(model, out_channels=256)

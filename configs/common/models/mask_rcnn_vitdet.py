"""The baseline: the heads of mask_rcnn_comer.py on a plain ViT, size B.

Detectron2's own ViT, with the windows of ViT-CoMer's, and ViTDet's simple feature pyramid.
Another size is one edit: `vit_size(model.backbone.net, "S")`.
"""

from detectron2 import model_zoo

from comer_d2.d2.modeling.simple_feature_pyramid import SimpleFeaturePyramid

from .mask_rcnn_comer import model
from .sizes import vit_size

model.backbone = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model.backbone
model.backbone._target_ = SimpleFeaturePyramid
model.backbone.square_pad = 0  # images are not squares here
model.backbone.net.use_rel_pos = False  # nor has ViT-CoMer's ViT any
vit_size(model.backbone.net, "B")

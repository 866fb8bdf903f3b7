"""Mask R-CNN with FPN on ViT-CoMer, size B.

Another size is one edit: `comer_size(model.backbone.bottom_up, "S")`.
The heads are Detectron2's own; with 80 classes the whole has the parameters of the paper's Table 1.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.backbone import ViTCoMer
from comer_d2.d2.modeling.generalized_rcnn import BoxPredictor, GeneralizedRCNN
from comer_d2.network import ViT

from .sizes import comer_size

_constants = model_zoo.get_config("common/data/constants.py").constants

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model._target_ = GeneralizedRCNN
model.roi_heads.box_predictor._target_ = BoxPredictor
model.pixel_mean = _constants.imagenet_rgb256_mean
model.pixel_std = _constants.imagenet_rgb256_std
model.input_format = "RGB"

model.backbone.bottom_up = L(ViTCoMer)(
    vit=L(ViT)(window_size=14, pretrain_img_size=224, draw_weights=False),
    use_act_checkpoint=False,
    norm="SyncBN",
    out_features=["res2", "res3", "res4", "res5"],
)
comer_size(model.backbone.bottom_up, "B")

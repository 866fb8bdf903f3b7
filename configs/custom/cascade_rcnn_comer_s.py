"""ViT-CoMer-S Cascade R-CNN on COCO-format data of your own; see faster_rcnn_comer_s.py."""

from ..common.models.cascade_rcnn_comer import model
from ..common.models.sizes import comer_size
from .faster_rcnn_comer_s import dataloader, dataset, lr_multiplier, optimizer, train

comer_size(model.backbone.bottom_up, "S")
model.backbone.square_pad = 0  # images are not squares here
model.roi_heads.num_classes = "${dataset.num_classes}"

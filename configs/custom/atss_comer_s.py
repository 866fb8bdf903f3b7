"""ViT-CoMer-S ATSS on COCO-format data of your own; see faster_rcnn_comer_s.py."""

from ..common.models.atss_comer import model
from ..common.models.sizes import comer_size
from .faster_rcnn_comer_s import dataloader, dataset, lr_multiplier, optimizer, train

comer_size(model.backbone.bottom_up, "S")
model.head.num_classes = "${dataset.num_classes}"

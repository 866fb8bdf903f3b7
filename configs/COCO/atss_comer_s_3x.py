"""ATSS on ViT-CoMer-S, 36 epochs. The paper has it (Table 2), but its recipe is not released.

This is ViT-Adapter-S's for ATSS, which starts from DeiT-S: data, batch and schedule are those of
mask_rcnn_comer_s_3x.py, the optimizer that of mask_rcnn_comer_t_3x.py.
"""

from ..common.models.atss_comer import model
from ..common.models.sizes import comer_size
from .mask_rcnn_comer_t_3x import dataloader, lr_multiplier, optimizer, train

comer_size(model.backbone.bottom_up, "S")
model.backbone.bottom_up.vit.drop_path_rate = 0.1

dataloader.train.mapper.use_instance_mask = False

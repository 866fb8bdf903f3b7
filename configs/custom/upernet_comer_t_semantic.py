"""ViT-CoMer-T with a narrow UPerNet on label maps of your own, for a CPU or a first try; see upernet_comer_s_semantic.py."""

from ..common.models.upernet_comer import upernet_size
from .upernet_comer_s_semantic import dataloader, dataset, lr_multiplier, model, optimizer, train

upernet_size(model, "T")
model.backbone.mrfp_ratio = 1.0  # the published 6 is most of the network's work
model.backbone.vit.pretrain_img_size = 224  # 14 x 14 positions: DeiT's and AugReg's
model.sem_seg_head.update(channels=64, auxiliary_channels=32)
dataset.image_size = 256

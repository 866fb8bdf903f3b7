"""UPerNet with an auxiliary FCN head on ViT-CoMer's segmentation variant, size B, 150 classes.

Another size is one edit: `upernet_size(model, "S")`. The whole has the paper's parameters.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.norm import norm_layer
from comer_d2.d2.modeling.semantic_segmentor import SemanticSegmentor
from comer_d2.d2.modeling.semantic_tta import SemanticViews
from comer_d2.heads.upernet import UPerNetHead

from .mask_rcnn_comer import model as _mask_rcnn
from .sizes import VIT, comer_size

# MRFP's hidden channels in units of embed_dim: wider here than in detection (0.5). 1.0 is B's; nothing is
# published beyond L.
MRFP_RATIO = dict.fromkeys(VIT, 1.0) | {"T": 6.0, "S": 1.5, "L": 6.0}


def segmentation_comer(comer, size):
    """Gives a ViT-CoMer the segmentation variant of one of the sizes.

    Every block is global, and the ViT features of all four stages are used.
    """
    comer_size(comer, size)
    comer.vit.window_size = 0
    comer.vit.window_block_indexes = []
    comer.vit_features = "stages"
    comer.mrfp_ratio = MRFP_RATIO[size]


def upernet_size(model, size):
    """Gives UPerNet on ViT-CoMer one of the sizes."""
    segmentation_comer(model.backbone, size)
    model.sem_seg_head.in_channels = [model.backbone.vit.embed_dim] * 4


model = L(SemanticSegmentor)(
    backbone=_mask_rcnn.backbone.bottom_up,
    sem_seg_head=L(UPerNetHead)(
        in_channels=[768] * 4,
        num_classes=150,
        channels=512,
        auxiliary_channels=256,
        auxiliary_weight=0.4,
        dropout=0.1,
        norm_layer=L(norm_layer)(norm="SyncBN"),
    ),
    pixel_mean=_mask_rcnn.pixel_mean,
    pixel_std=_mask_rcnn.pixel_std,
    input_format="RGB",
    # As published: windows of 512, a third of each shared. For multi-scale and flip:
    # model.views.scales='[0.5,0.75,1.0,1.25,1.5,1.75]' model.views.flip=True
    views=L(SemanticViews)(window=(512, 512), stride=(341, 341), scales=[1.0], flip=False),
)
upernet_size(model, "B")

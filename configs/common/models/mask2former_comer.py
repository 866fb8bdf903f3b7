"""Mask2Former on ViT-CoMer, size B, 150 classes, semantic.

Another size is one edit: `mask2former_size(model, "S")`.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.mask2former import Mask2Former
from comer_d2.d2.modeling.semantic_tta import SemanticViews
from comer_d2.heads.criterion import SetCriterion
from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import MaskedTransformerDecoder
from comer_d2.heads.matcher import HungarianMatcher
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder

from .mask_rcnn_comer import model as _mask_rcnn
from .sizes import comer_size
from .upernet_comer import segmentation_comer


def head_width(model, width):
    """Gives both decoders `width` channels; heads of 32 channels, FFNs of 4 and of 8 times."""
    head = model.sem_seg_head
    head.pixel_decoder.update(
        conv_dim=width, mask_dim=width, num_heads=width // 32, ffn_dim=4 * width
    )
    head.predictor.update(
        in_channels=width,
        hidden_dim=width,
        mask_dim=width,
        num_heads=width // 32,
        ffn_dim=8 * width,
    )


def mask2former_size(model, size):
    """Semantic segmentation: the segmentation variant of the backbone."""
    segmentation_comer(model.backbone, size)
    model.sem_seg_head.pixel_decoder.in_channels = [model.backbone.vit.embed_dim] * 4


def detection_size(model, size):
    """Instances and segments: the detection variant, whose windows suit images of 1024 and more."""
    comer_size(model.backbone, size)
    model.backbone.update(vit_features="last", mrfp_ratio=0.5)
    model.backbone.vit.window_size = 14
    model.sem_seg_head.pixel_decoder.in_channels = [model.backbone.vit.embed_dim] * 4
    model.views = None
    if size == "L":  # as Mask2Former's Swin-L
        model.sem_seg_head.predictor.num_queries = 200
        model.backbone.vit.pretrain_img_size = 384  # 24 x 24 positions: AugReg's, ImageNet-22K
        model.pixel_mean = model.pixel_std = [127.5, 127.5, 127.5]  # AugReg's input, -1 to 1


def beit_large(model, side):
    """The authors' size L on BEiTv2 for crops of `side`: relative positions over the whole crop."""
    mask2former_size(model, "L")
    model.backbone.vit.update(
        use_abs_pos=False,
        use_rel_pos_bias=True,
        qkv_bias="qv",
        window_size=side // 16,
        window_block_indexes=None,  # every block: one window is the crop
        layer_scale_init=1e-6,
    )
    model.backbone.update(gate_init=1e-6, use_act_checkpoint=True)
    head_width(model, 1024)
    model.sem_seg_head.predictor.update(num_queries=200, ffn_dim=4096)
    model.views.update(window=(side, side), stride=(512, 512))


def coco_panoptic(model):
    """80 things, 53 stuff; one model for all three tasks."""
    model.sem_seg_head.predictor.num_classes = 133
    model.stuff_classes = list(range(80, 133))
    model.tasks = ["panoptic", "instance", "semantic"]


model = L(Mask2Former)(
    backbone=_mask_rcnn.backbone.bottom_up,
    sem_seg_head=L(Mask2FormerHead)(
        pixel_decoder=L(MSDeformAttnPixelDecoder)(in_channels=[768] * 4, num_layers=6),
        predictor=L(MaskedTransformerDecoder)(num_classes=150, num_queries=100, num_layers=9),
    ),
    criterion=L(SetCriterion)(
        num_classes="${..sem_seg_head.predictor.num_classes}",
        matcher=L(HungarianMatcher)(
            cost_class="${..class_weight}",
            cost_mask="${..mask_weight}",
            cost_dice="${..dice_weight}",
            num_points="${..num_points}",
        ),
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
        num_points=12544,
    ),
    pixel_mean=_mask_rcnn.pixel_mean,
    pixel_std=_mask_rcnn.pixel_std,
    input_format="RGB",
    tasks=["semantic"],
    stuff_classes=[],
    ignore_value=255,
    # The image as it is. Windows: model.views.window='[512,512]' model.views.stride='[341,341]';
    # multi-scale and flip: model.views.scales='[0.5,0.75,1.0,1.25,1.5,1.75]' model.views.flip=True
    views=L(SemanticViews)(window=None, stride=None, scales=[1.0], flip=False),
)
head_width(model, 256)
mask2former_size(model, "B")

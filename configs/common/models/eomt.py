"""EoMT on a plain ViT, size L, 133 classes, panoptic: Mask2Former's criterion and inference.

Another size is one edit: `eomt_size(model, "S")`.
"""

from detectron2.config import LazyCall as L
from torch.nn import Identity

from comer_d2.d2.modeling.eomt import EoMTBackbone

from .mask2former_comer import coco_panoptic, model
from .sizes import of_size, vit_size

NUM_BLOCKS = {"T": 3, "S": 3, "B": 3, "L": 4}  # published: S, B and L


def eomt_size(model, size):
    """Gives EoMT one of the sizes T to L; all blocks are global and drop nothing, as published."""
    model.backbone.num_blocks = of_size(NUM_BLOCKS, size)
    vit_size(model.backbone.vit, size)
    model.backbone.vit.update(window_size=0, window_block_indexes=[], drop_path_rate=0.0)


def dinov2_with_registers(vit):
    """DINOv2 with registers: a class and four register tokens, 37 x 37 positions of the map alone."""
    vit.update(num_prefix_tokens=5, pretrain_use_cls_token=False, pretrain_img_size=592)


coco_panoptic(model)
_vit = model.backbone.vit
_vit.draw_weights = True
model.backbone = L(EoMTBackbone)(
    vit=_vit,
    num_classes=model.sem_seg_head.predictor.num_classes,
    num_queries=200,
    max_iter="${train.max_iter}",  # masked attention is annealed over the whole run
)
model.sem_seg_head = L(Identity)()  # the backbone's outputs are the predictions
model.criterion.num_classes = "${..backbone.num_classes}"
model.views = None
eomt_size(model, "L")

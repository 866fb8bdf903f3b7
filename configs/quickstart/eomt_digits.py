"""EoMT on the panoptic digits: the quickstart's plain ViT with queries among its tokens; data and schedule are the same."""

from ..common.models.eomt import model
from .mask2former_comer_digits import dataloader, dataset, lr_multiplier, optimizer, train
from .mask2former_comer_digits import model as _mask2former

_vit = _mask2former.backbone.vit
_vit.draw_weights = True
model.backbone.update(
    vit=_vit, num_classes="${dataset.num_classes}", num_queries=16, num_blocks=2, square_pad=0
)
model.criterion = _mask2former.criterion
model.criterion.num_classes = "${..backbone.num_classes}"
model.stuff_classes = "${dataset.stuff_classes}"
model.score_threshold, model.overlap_threshold = 0.4, 0.6

train.output_dir = "output/quickstart-seg/eomt"

"""AdamW with the learning rate and weight decay of every parameter as comer_d2.d2.engine.optim says."""

from copy import deepcopy

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from comer_d2.d2.engine.optim import get_param_groups

# lr 1e-4, betas (0.9, 0.999), weight decay 0.1
AdamW = model_zoo.get_config("common/optim.py").AdamW
# One kernel for all parameters, instead of one for each operation: null is true on CUDA.
AdamW.fused = None
AdamW.params = L(get_param_groups)(
    # params.model is set when the model is there
    base_lr="${..lr}",
    weight_decay="${..weight_decay}",
    lr_decay_rate=1.0,
    no_decay=["pos_embed", "prefix_tokens"],
    backbone_lr_factor=1.0,
    vit_lr_factor=1.0,
)

# Mask2Former's recipe: its decoder's embeddings are not decayed either.
Mask2FormerAdamW = deepcopy(AdamW)
Mask2FormerAdamW.params.no_decay += ["query_feat", "query_embed", "predictor.level_embed"]

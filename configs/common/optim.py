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

# Published settings of fine-tuning by pretraining and size of the ViT, each for a batch of its own:
# docs/PRETRAINED.md has the batches and the sources.
FINETUNING = {
    "dinov2": {
        "S": dict(lr=1e-4, lr_decay_rate=0.7, weight_decay=0.05),
        "B": dict(lr=1e-4, lr_decay_rate=0.6, weight_decay=0.05),
        "L": dict(lr=1e-4, lr_decay_rate=0.8, weight_decay=0.05),
    },
    "dinov3": {"L": dict(lr=2e-4, lr_decay_rate=0.8, weight_decay=0.05)},
    "mae": {
        "B": dict(lr=1e-4, lr_decay_rate=0.7, weight_decay=0.1),
        "L": dict(lr=1e-4, lr_decay_rate=0.8, weight_decay=0.1),
    },
    "beit": {
        "B": dict(lr=3e-5, lr_decay_rate=0.9, weight_decay=0.05),
        "L": dict(lr=2e-5, lr_decay_rate=0.9, weight_decay=0.05),
    },
    "augreg": {"L": dict(lr=1e-4, lr_decay_rate=0.8, weight_decay=0.05)},
    "eva02": {
        "B": dict(lr=5e-5, lr_decay_rate=0.7, weight_decay=0.1),
        "L": dict(lr=6e-5, lr_decay_rate=0.8, weight_decay=0.1),
    },
    "clip": {"B": dict(lr=1e-4, vit_lr_factor=0.1, weight_decay=1e-4)},
    "pe": {"G": dict(lr=5e-5, lr_decay_rate=0.9, weight_decay=0.1)},
}


def finetune(pretraining, size, optimizer=AdamW):
    """AdamW with the settings published for a pretraining: `optimizer = finetune("mae", "L")`.

    For Mask2Former `finetune("dinov2", "L", Mask2FormerAdamW)`, which leaves its embeddings undecayed.

    Raises:
        ValueError: if none were found for it.
    """
    settings = dict(FINETUNING.get(pretraining, {}).get(size, {}))
    if not settings:
        known = ", ".join(f"{name} {'/'.join(rows)}" for name, rows in FINETUNING.items())
        raise ValueError(f"no published settings were found for {pretraining} {size}, but: {known}")
    optimizer = deepcopy(optimizer)
    optimizer.lr, optimizer.weight_decay = settings.pop("lr"), settings.pop("weight_decay")
    optimizer.params.update(settings)
    return optimizer

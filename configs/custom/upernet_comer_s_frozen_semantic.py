"""upernet_comer_s_semantic.py on a pretrained ViT-S that stays as it is: for hundreds of photos, and minutes on a CPU.

docs/FINETUNING.md has what each choice gave.
"""

from .upernet_comer_s_semantic import dataloader, dataset, lr_multiplier, model, optimizer, train

_comer = model.backbone
_comer.vit.freeze_at = _comer.vit.depth
_comer.mrfp_ratio = 0.5
dataset.image_size = 256

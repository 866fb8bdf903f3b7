"""GFL on the quickstart's digits: atss_comer_digits.py with another head."""

from ..common.models.gfl_comer import model as _gfl
from .atss_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

model.head._target_ = _gfl.head._target_
train.output_dir = "output/quickstart/gfl"

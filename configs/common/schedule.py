"""Learning-rate schedules.

A leaf takes one and sets `train.max_iter = lr_multiplier.scheduler.num_updates`. In a run of another
length, milestones keep their shares of it, and the warm-up its iterations.
"""

import math

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler, PolynomialDecayParamScheduler

from comer_d2.d2.engine.schedule import WarmupIterations

# COCO train2017 has 118,287 images; Detectron2's loader drops the 1,021 without usable annotations.
TRAIN_IMAGES = 117_266
BATCH_SIZE = 16


def iterations(epochs):
    """Batches of 16 in so many epochs: 7329.125 each."""
    return math.ceil(epochs * TRAIN_IMAGES / BATCH_SIZE)


def warmed_up(scheduler, warmup_iters, warmup_factor):
    """Linear warm-up of so many iterations."""
    return L(WarmupIterations)(
        scheduler=scheduler,
        max_iter="${train.max_iter}",
        warmup_iters=warmup_iters,
        warmup_factor=warmup_factor,
    )


def steps(max_iter, milestones, warmup_iters):
    """Linear warm-up, then a tenth of the rate after each milestone."""
    scheduler = L(MultiStepParamScheduler)(
        values=[0.1**i for i in range(len(milestones) + 1)],
        milestones=milestones,
        num_updates=max_iter,
    )
    return warmed_up(scheduler, warmup_iters, warmup_factor=0.001)


# 1x: 12 epochs, steps after 8 and 11: 87,950 it; 58,633 and 80,621
lr_multiplier_1x = steps(iterations(12), [iterations(8), iterations(11)], warmup_iters=500)

# 3x: 36 epochs, steps after 27 and 33: 263,849 it; 197,887 and 241,862
lr_multiplier_3x = steps(iterations(36), [iterations(27), iterations(33)], warmup_iters=500)

# ViTDet's: 100 epochs of 118,000 images in batches of 64; steps after 8/9 and 26/27 of it
lr_multiplier_100ep = steps(184_375, [163_889, 177_546], warmup_iters=250)


def poly(power, warmup_iters=0, warmup_factor=1e-6):
    """(1 - t)**power, after a linear warm-up."""
    scheduler = L(PolynomialDecayParamScheduler)(base_value=1.0, power=power)
    return warmed_up(scheduler, warmup_iters, warmup_factor)

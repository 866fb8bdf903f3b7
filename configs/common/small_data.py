"""A run on tens to thousands of images of one's own: the batch, the rate and the length."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

# A twentieth of the run is warm-up, whatever its length.
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.05,
    warmup_factor=0.001,
)


def small_data(dataloader, optimizer, train, output_dir, lr=1e-4, epochs=40):
    """Batches of 4, evaluated ten times, an epoch apart at least.

    `lr` is for a batch of 16, as the published recipes state it: 1e-4 becomes 5e-5 for one of 4.
    """
    dataloader.train.total_batch_size = 4
    optimizer.lr = lr
    optimizer.weight_decay = 0.05
    train.lr_batch_size = 16
    train.epochs = epochs
    train.max_iter = (
        1000  # of which the periods are shares; the number itself follows from the epochs
    )
    train.eval_period = train.checkpointer.period = 100
    train.checkpointer.max_to_keep = 2
    train.output_dir = output_dir

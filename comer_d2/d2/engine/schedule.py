"""Learning-rate schedules whose warm-up has a length of its own."""

from fvcore.common.param_scheduler import ParamScheduler


class WarmupIterations(ParamScheduler):
    """A linear warm-up of so many iterations, whatever the length of the run.

    Detectron2's ``WarmupParamScheduler`` takes the length as a share of the run: 500 iterations of
    87,950 become 12 in a run of 2,000. As in MMCV, the factor of the warm-up multiplies the
    schedule's own value at that iteration; a warm-up longer than the run is cut with it.

    Args:
        scheduler: what is warmed up.
        max_iter: iterations of the run.
        warmup_iters: iterations until the schedule's own value is reached; 0 for none.
        warmup_factor: of the first iteration, in [0, 1].
    """

    def __init__(
        self, scheduler: ParamScheduler, *, max_iter: int, warmup_iters: int, warmup_factor: float
    ) -> None:
        self.scheduler = scheduler
        self.max_iter = max_iter
        self.warmup_iters = warmup_iters
        self.warmup_factor = warmup_factor

    def __call__(self, where: float) -> float:
        """Share of the run that is done, in [0, 1] -> factor of the base learning rate."""
        value = self.scheduler(where)
        iteration = where * self.max_iter
        if iteration >= self.warmup_iters:
            return value
        return value * (
            self.warmup_factor + (1 - self.warmup_factor) * iteration / self.warmup_iters
        )

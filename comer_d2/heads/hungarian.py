"""Hungarian matching of queries to objects, given the cost of every pair."""

import logging

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

logger = logging.getLogger(__name__)


class Hungarian:
    """Assigns objects to queries, one to one, at the least total cost.

    Costs that are not finite become very large, with a warning: one image that has diverged must not
    end a run whose other images are fine. More objects than queries are warned of once.
    """

    def __init__(self) -> None:
        self._warned_of_queries = False

    def __call__(self, cost: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Matches one image.

        Args:
            cost: (Q, n), on any device.
            name: of the image, for messages.

        Returns:
            The matched queries, ascending, and their objects, both (min(Q, n),) int64 on the CPU.
        """
        cost = cost.float().cpu()
        if not cost.isfinite().all():
            logger.warning("%s: NaN or infinite predictions, its matching is arbitrary", name)
            cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
        if cost.shape[1] > cost.shape[0] and not self._warned_of_queries:
            self._warned_of_queries = True
            logger.warning(
                "%s has %d objects, more than the %d queries: the best matches are kept; "
                "raise num_queries (this is said once)",
                name,
                cost.shape[1],
                cost.shape[0],
            )
        queries, objects = linear_sum_assignment(cost.numpy())
        return torch.as_tensor(queries), torch.as_tensor(objects)

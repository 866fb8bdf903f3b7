"""Hungarian matching of queries to objects, given the cost of every pair."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

logger = logging.getLogger(__name__)

# Of every image of a batch: its matched queries and their objects, both (m,) int64 on the CPU.
Matches = Sequence[tuple[Tensor, Tensor]]


class Hungarian:
    """Assigns objects to queries, one to one, at the least total cost.

    Costs that are not finite become very large, with a warning: one image that has diverged must not
    end a run whose other images are fine. More objects than queries are warned of once.
    """

    def __init__(self) -> None:
        self._warned_of_queries = False

    def __call__(
        self, costs: Sequence[Sequence[Tensor]], targets: Sequence[Mapping[str, Any]]
    ) -> Iterator[Matches]:
        """Matches every prediction of every image.

        All costs go to the CPU in one copy, which begins here and is waited for at the first match.
        What the caller does before, and between one prediction's matches and the next's, its device
        does while the CPU assigns.

        Args:
            costs: of every image, of every prediction: (Q, n), on any device.
            targets: of every image; for messages, its ``name``.

        Returns:
            An iterator over the predictions' matches: of every image min(Q, n), by ascending query.
        """
        flat = torch.cat([cost.float().flatten() for of_image in costs for cost in of_image])
        copy = flat.to("cpu", non_blocking=flat.is_cuda)
        copied = torch.cuda.current_stream(flat.device).record_event() if flat.is_cuda else None
        shapes = [cost.shape for of_image in costs for cost in of_image]
        names = [str(t.get("name", f"image {i} of the batch")) for i, t in enumerate(targets)]
        return self._matches(copy, copied, shapes, names)

    def _matches(
        self,
        copy: Tensor,
        copied: torch.cuda.Event | None,
        shapes: Sequence[torch.Size],
        names: Sequence[str],
    ) -> Iterator[Matches]:
        if copied is not None:
            copied.synchronize()
        parts = copy.split([shape.numel() for shape in shapes])
        costs = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        num_predictions = len(costs) // len(names)
        for number in range(num_predictions):
            of_images = costs[number::num_predictions]
            yield [self.assign(cost, name) for cost, name in zip(of_images, names, strict=True)]

    def assign(self, cost: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Matches one prediction of one image.

        Args:
            cost: (Q, n) float32 on the CPU.
            name: of the image, for messages.

        Returns:
            The matched queries, ascending, and their objects, both (min(Q, n),) int64.
        """
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


def matched_pairs(matches: Matches, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's matches in one copy to a device, which does not wait for it.

    Args:
        matches: of every image.
        device: where to.

    Returns:
        Image, query and object of every match, all (M,) int64.
    """
    images = [torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)]
    queries, objects = zip(*matches, strict=True)
    pairs = torch.stack([torch.cat(images), torch.cat(queries), torch.cat(objects)])
    image, query, object_ = pairs.to(device, non_blocking=True)
    return image, query, object_

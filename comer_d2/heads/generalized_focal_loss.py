"""Focal loss of targets between 0 and 1, and the cross entropy of distances as distributions."""

import torch.nn.functional as F
from torch import Tensor


def quality_focal_loss(logits: Tensor, quality: Tensor, *, beta: float = 2.0) -> Tensor:
    """Cross entropy with a target in [0, 1], scaled by the distance to it.

    ``|y - p|**beta * -((1 - y) * log(1 - p) + y * log(p))`` with ``p = sigmoid(logits)``.

    Source: Eq. 5 of arXiv 2006.04388.

    Args:
        logits: any shape.
        quality: the targets y, of the same shape: 0 for classes that an anchor does not have.
        beta: how fast easy examples lose weight.

    Returns:
        The loss of every element, of the same shape.
    """
    loss = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return loss * (quality - logits.sigmoid()).abs().pow(beta)


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy of a distribution with the two whole numbers around the target.

    ``-((i + 1 - y) * log(S_i) + (y - i) * log(S_i+1))`` with ``i <= y < i + 1`` and
    ``S = softmax(logits)``.

    Source: Eq. 6 of arXiv 2006.04388.

    Args:
        logits: (..., n + 1), of the values 0 to n.
        distances: (...), the targets y, in [0, n).

    Returns:
        (...), the loss of every distribution.
    """
    below = distances.long()
    share_above = distances - below
    log_probability = logits.log_softmax(dim=-1)
    at = log_probability.gather(-1, below[..., None])[..., 0]
    above = log_probability.gather(-1, below[..., None] + 1)[..., 0]
    return -((1 - share_above) * at + share_above * above)

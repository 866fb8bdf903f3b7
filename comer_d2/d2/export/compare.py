"""How far what another runtime computes is from the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError

COUNTED = 0.05  # detections below this score may come and go: they lie at the model's own limits
SCORES = 1e-3  # largest difference of a score
PIXELS = 0.1  # of a box's side
RELATIVE = 1e-3  # of other tensors, to their largest value
PIXELS_OTHER = 1e-3  # share of pixels that may have another class, or be in or out of a mask


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], size: tuple[int, int]) -> str:
    """Compare one image's outputs.

    Args:
        expected: the model's, a named tuple of `comer_d2.d2.export`.
        found: the other runtime's, in the same order.
        size: of the image, for the text.

    Returns:
        A line with the largest differences.

    Raises:
        UserError: they are larger than rounding explains.
    """
    names = expected._fields
    ours, theirs = dict(zip(names, expected, strict=True)), dict(zip(names, found, strict=True))
    parts, wrong = [], False
    if "boxes" in ours:
        text, wrong = _boxes(ours, theirs)
        parts.append(text)
    else:
        for name, tensor in ours.items():
            text, bad = _tensor(name, tensor, theirs[name])
            parts.append(text)
            wrong |= bad
    line = f"{size[0]} x {size[1]}: {'; '.join(parts)}"
    if wrong:
        raise UserError(f"the exported model computes something else than the model, at {line}")
    return line


def _boxes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[str, bool]:
    """Every detection of either side has its like on the other, in any order."""
    far_scores = far_boxes = masks = 0.0
    count = lonely = 0
    for one, other in ((ours, theirs), (theirs, ours)):
        for image in range(len(one["boxes"])):
            for i in (one["scores"][image] >= COUNTED).nonzero()[:, 0].tolist():
                count += 1
                distance = (other["boxes"][image] - one["boxes"][image, i]).abs().amax(1)
                same = other["classes"][image] == one["classes"][image, i]
                gap = (other["scores"][image] - one["scores"][image, i]).abs()
                cost = distance + 1e3 * gap + 1e6 * ~same
                j = int(cost.argmin())
                if not same[j]:
                    lonely += 1
                    continue
                far_boxes = max(far_boxes, float(distance[j]))
                far_scores = max(far_scores, float(gap[j]))
                if "masks" in one:
                    masks = max(masks, float((one["masks"][image, i] - other["masks"][image, j]).abs().max()))  # fmt: skip
    text = f"{count // 2} detections, boxes within {far_boxes:.1e} pixels, scores within {far_scores:.1e}"
    if "masks" in ours:
        text += f", masks within {masks:.1e}"
    wrong = lonely or far_boxes > PIXELS or far_scores > SCORES or masks > 0.01
    return text + (f", {lonely} without their like" if lonely else ""), bool(wrong)


def _tensor(name: str, ours: Tensor, theirs: Tensor) -> tuple[str, bool]:
    if ours.shape != theirs.shape:
        return f"{name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}", True
    if not ours.is_floating_point():
        other = float((ours != theirs).float().mean())
        return f"{name}: {other:.1e} differ", other > PIXELS_OTHER
    scale = max(float(ours.abs().max()), 1e-12)
    far = float((ours - theirs).abs().max()) / scale
    text = f"{name} within {far:.1e} of the largest"
    if name == "sem_seg":
        other = float((ours.argmax(1) != theirs.argmax(1)).float().mean())
        return f"{text}, {other:.1e} of the pixels of another class", other > PIXELS_OTHER
    return text, far > RELATIVE or not torch.isfinite(theirs).all()

"""How far two ways to compute a model are apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError

# Detections below this score may come and go: they lie at the configs' lowest, 0.05, which rounding can
# put them on either side of.
COUNTED = 0.06
SCORES = 1e-3  # largest difference of a score
PIXELS = 0.1  # of a box's side
MASKS = 0.01  # of a mask's probabilities in the grid over its box
RELATIVE = 1e-3  # of the scores of a map of classes, to the largest
PIXELS_OTHER = 1e-3  # share of an image's pixels of another class, or in one's mask alone


def difference(expected: Sequence[Tensor], found: Sequence[Tensor], what: str) -> str:
    """Compare the outputs of a batch.

    Args:
        expected: the model's, a named tuple of `comer_d2.d2.export`.
        found: the other runtime's, in the same order.
        what: was compared, for the text.

    Returns:
        A line with the largest differences.

    Raises:
        UserError: they are larger than rounding explains, or not finite.
    """
    names = expected._fields
    ours, theirs = dict(zip(names, expected, strict=True)), dict(zip(names, found, strict=True))
    fault = f"the exported model computes something else than the model, at {what}: "
    for name, x in theirs.items():
        if x.shape != ours[name].shape:
            raise UserError(f"{fault}{name} is {tuple(x.shape)}, not {tuple(ours[name].shape)}")
        if not x.isfinite().all():
            raise UserError(f"{fault}{name} is not finite")
    parts, wrong = [], False
    if "sem_seg" in ours:
        text, wrong = _label_maps(ours["sem_seg"], theirs["sem_seg"])
        parts.append(text)
    if "scores" in ours:
        text, bad = _found(ours, theirs)
        parts.append(text)
        wrong |= bad
    if "panoptic_seg" in ours:
        text, bad = _segments(ours, theirs)
        parts.append(text)
        wrong |= bad
    text = "; ".join(parts)
    if wrong:
        raise UserError(fault + text)
    return f"{what}: {text}"


def _found(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[str, bool]:
    """Every detection of either side has its like on the other, in any order.

    Boxes are compared in pixels and their grids of masks in values; masks without boxes by the share of
    the image's pixels that is in one alone.
    """
    boxes = "boxes" in ours
    limit = PIXELS if boxes else PIXELS_OTHER
    far = far_scores = masks = 0.0
    count = lonely = 0
    lowest = torch.maximum(_lowest(ours["scores"]), _lowest(theirs["scores"]))
    for one, other in ((ours, theirs), (theirs, ours)):
        for image, i in (one["scores"] >= lowest[:, None]).nonzero().tolist():
            count += 1
            same = other["classes"][image] == one["classes"][image, i]
            gap = (other["scores"][image] - one["scores"][image, i]).abs()
            if boxes:
                distance = (other["boxes"][image] - one["boxes"][image, i]).abs().amax(1)
            else:
                distance = (other["masks"][image] != one["masks"][image, i]).float().mean((1, 2))
            j = int((distance / limit + gap / SCORES + 1e6 * ~same).argmin())
            if not same[j]:
                lonely += 1
                continue
            far = max(far, float(distance[j]))
            far_scores = max(far_scores, float(gap[j]))
            if boxes and "masks" in one:
                difference = one["masks"][image, i] - other["masks"][image, j]
                masks = max(masks, float(difference.abs().max()))
    if not count:
        return f"nothing scores {COUNTED} or more, which shows little", False
    what = f"boxes within {far:.1e} pixels" if boxes else f"masks: {far:.1e} of the pixels differ"
    text = f"{count // 2} detections, {what}, scores within {far_scores:.1e}"
    if boxes and "masks" in ours:
        text += f", masks within {masks:.1e}"
    wrong = lonely or far > limit or far_scores > SCORES or masks > MASKS
    return text + (f", {lonely} without their like" if lonely else ""), bool(wrong)


def _lowest(scores: Tensor) -> Tensor:
    """Of every image the score from which on detections are not chance: (B, N) -> (B,).

    Where all places are taken, rounding decides which of those that score like the last has it.
    """
    return (scores.amin(dim=1) + SCORES).clamp(min=COUNTED)


def _label_maps(ours: Tensor, theirs: Tensor) -> tuple[str, bool]:
    far = float((ours - theirs).abs().max()) / max(float(ours.abs().max()), 1e-12)
    other = float((ours.argmax(1) != theirs.argmax(1)).float().mean())
    text = f"sem_seg within {far:.1e} of the largest, {other:.1e} of the pixels of another class"
    return text, far > RELATIVE or other > PIXELS_OTHER


def _segments(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[str, bool]:
    """Pixels of which either side knows no segment that is mostly where the other's is, of its class."""
    apart = torch.zeros_like(ours["panoptic_seg"], dtype=torch.bool)
    far, count = 0.0, 0
    for one, other in ((ours, theirs), (theirs, ours)):
        for image, (segments, others) in enumerate(
            zip(one["panoptic_seg"], other["panoptic_seg"], strict=True)
        ):
            for identity in segments.unique().tolist():
                inside = segments == identity
                same = int(others[inside].mode().values) if identity else 0
                apart[image] |= inside & (others != same)
                if not identity:
                    continue
                count += 1
                if same and _of(one, "classes", image, identity) == _of(
                    other, "classes", image, same
                ):
                    gap = _of(one, "scores", image, identity) - _of(other, "scores", image, same)
                    far = max(far, abs(gap))
                else:
                    apart[image] |= inside
    if not count:
        return "no segments, which shows little", False
    share = float(apart.float().mean())
    text = f"{count // 2} segments, {share:.1e} of the pixels in others, scores within {far:.1e}"
    return text, share > PIXELS_OTHER or far > SCORES


def _of(outputs: dict[str, Tensor], what: str, image: int, identity: int) -> float:
    """The "scores" or "classes" entry of a segment."""
    return float(outputs[f"segment_{what}"][image, identity - 1])

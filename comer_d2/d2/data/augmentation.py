"""Augmentations by one word and one size, for data of one's own: `dataset.augment`, `dataset.image_size`."""

import detectron2.data.transforms as T

from ..errors import UserError
from .color import RandomColor
from .images import BadImage

# Smallest and largest scale before the crop, 1 being the size of the test images.
SCALES = {"none": None, "flip": None, "standard": (0.75, 1.5), "strong": (0.5, 2.0)}
LONGEST = 4  # times the short edge; images of any common shape are far below


def apply_augmentations(
    augmentations: T.AugmentationList, prepared: T.AugInput, name: str
) -> T.Transform:
    """Augment an image in place.

    Args:
        augmentations: what is done.
        prepared: the image, (h, w, 3) uint8, and what belongs to it.
        name: of the image, for errors.

    Returns:
        What was done.

    Raises:
        BadImage: it cannot be done, such as with 3000 x 2 pixels made 1000 long: nothing is left of 2.
    """
    height, width = prepared.image.shape[:2]
    try:
        return augmentations(prepared)
    except ValueError as error:
        raise BadImage(
            f"{name}: an image of {width} x {height} pixels cannot be resized or cropped as asked ({error})"
        ) from error


def objects(image_size: int, augment: str = "none") -> list[T.Augmentation]:
    """For boxes, instances and panoptic segments: whole images, the longer side is `image_size`.

    Args:
        image_size: pixels; no side of what comes out is longer.
        augment: "none": resized only; "flip": and mirrored, every other time; "standard": and scaled by
            0.75 to 1.5, then cropped; "strong": scaled by 0.5 to 2, cropped, and recoloured.

    Returns:
        Detectron2's augmentations, in order.

    Raises:
        UserError: another `augment`, or a size that is none.
    """
    scales = _scales(image_size, augment)
    resize = [T.ResizeShortestEdge(image_size, max_size=image_size)]
    if scales:
        side = (image_size, image_size)
        # No padding here: the model pads, and then with the mean colour.
        resize = [T.ResizeScale(*scales, *side), T.FixedSizeCrop(side, pad=False)]
    return resize + _looks(augment)


def label_maps(image_size: int, augment: str = "none") -> list[T.Augmentation]:
    """For semantic segmentation: the shorter side is `image_size`; crops of that size are trained on.

    Args:
        image_size: pixels; of the shorter side, and of the crop.
        augment: as `objects`; "none" and "flip" do not crop.

    Returns:
        Detectron2's augmentations, in order.

    Raises:
        UserError: another `augment`, or a size that is none.
    """
    scales = _scales(image_size, augment)
    if not scales:
        resize = [T.ResizeShortestEdge(image_size, max_size=LONGEST * image_size)]
        return resize + _looks(augment)
    edges = tuple(round(image_size * scale) for scale in scales)
    return [
        T.ResizeShortestEdge(edges, max_size=2 * LONGEST * image_size, sample_style="range"),
        # No class may fill more than 3/4 of a crop, in ten attempts.
        T.RandomCrop_CategoryAreaConstraint(
            "absolute",
            (image_size, image_size),
            single_category_max_area=0.75,
            ignored_category=255,
        ),
        *_looks(augment),
    ]


def _looks(augment: str) -> list[T.Augmentation]:
    looks = [] if augment == "none" else [T.RandomFlip(horizontal=True)]
    return looks + ([RandomColor()] if augment == "strong" else [])


def _scales(image_size: int, augment: str) -> tuple[float, float] | None:
    if augment not in SCALES:
        raise UserError(f"dataset.augment={augment!r}: use one of {', '.join(SCALES)}")
    if not isinstance(image_size, int) or image_size < 32:
        raise UserError(f"dataset.image_size={image_size!r}: a number of pixels, 32 or more")
    return SCALES[augment]

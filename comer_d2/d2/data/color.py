"""Random changes of colour."""

import numpy as np
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import Transform
from PIL import Image


class ColorTransform(Transform):
    """Brightness, contrast, saturation and hue of an RGB image; leaves labels as they are.

    Args:
        brightness: added to all channels, of 255.
        contrast: factor of all channels.
        saturation: factor of the saturation.
        hue: turn of the hue, degrees.
        contrast_last: whether contrast changes after saturation and hue.
    """

    def __init__(
        self, brightness: float, contrast: float, saturation: float, hue: float, contrast_last: bool
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB -> the same shape and type."""
        img = _scale(img, 1.0, self.brightness)
        if not self.contrast_last:
            img = _scale(img, self.contrast)
        if self.saturation != 1 or self.hue:
            hsv = np.array(Image.fromarray(img).convert("HSV"))
            hsv[..., 1] = _scale(hsv[..., 1], self.saturation)
            hsv[..., 0] += np.uint8(round(self.hue * 256 / 360) % 256)  # wraps, as hue does
            size = (img.shape[1], img.shape[0])
            img = np.array(Image.frombytes("HSV", size, hsv.tobytes()).convert("RGB"))
        return _scale(img, self.contrast) if self.contrast_last else img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        raise ValueError("a change of colour cannot be undone")


class RandomColor(Augmentation):
    """The colour changes of SSD: each of the four is made or not, with even odds.

    Source: the photometric distortions of arXiv 1512.02325, as in the published recipes of
    Mask2Former and UPerNet. For RGB images. (Detectron2's own is in a project that needs OpenCV.)

    Args:
        brightness: largest change, of 255.
        contrast: smallest and largest factor.
        saturation: smallest and largest factor.
        hue: largest turn, degrees.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 36.0,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def maybe(low: float, high: float, otherwise: float) -> float:
            return self._rand_range(low, high) if self._rand_range() < 0.5 else otherwise

        return ColorTransform(
            brightness=maybe(-self.brightness, self.brightness, 0.0),
            contrast=maybe(*self.contrast, 1.0),
            saturation=maybe(*self.saturation, 1.0),
            hue=maybe(-self.hue, self.hue, 0.0),
            contrast_last=self._rand_range() < 0.5,
        )


def _scale(img: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    if factor == 1 and offset == 0:
        return img
    return np.clip(img * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)

"""Semantic segmentation from several views of an image: windows, scales, mirror images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class SemanticViews:
    """Predicts views of an image one by one and averages them.

    Within a view, overlapping windows are averaged before `softmax`; views after it.

    Args:
        window: (height, width) of the sliding window in pixels; None: the image at once.
        stride: (vertical, horizontal) between windows, pixels; the last ones are moved inwards.
        scales: of the image that comes from the data loader.
        flip: whether every scale is also mirrored.
        windows_per_batch: windows that are predicted together.

    Raises:
        ValueError: a window without a stride, a stride without a window, or one that leaves gaps.
    """

    def __init__(
        self,
        *,
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        windows_per_batch: int = 4,
    ) -> None:
        if window is not None and (
            stride is None or not all(0 < s <= w for s, w in zip(stride, window, strict=True))
        ):
            raise ValueError(
                f"stride must be 1 to window={window} in both directions, got {stride}"
            )
        if window is None and stride is not None:
            raise ValueError(
                f"stride={stride} is between windows, and window is None: give both or none"
            )
        self.window = tuple(window) if window is not None else None
        self.stride = tuple(stride) if stride is not None else None
        self.scales = tuple(scales)
        self.flip = flip
        self.windows_per_batch = windows_per_batch

    @torch.no_grad()
    def __call__(
        self, forward: Forward, inputs: list[dict[str, Any]], *, softmax: bool
    ) -> list[dict[str, Any]]:
        """Predict images.

        Args:
            forward: the model: `image` (3, h, w) -> `sem_seg` (K, h, w).
            inputs: Detectron2's: `image`, and optionally `height` and `width` of the output.
            softmax: whether what `forward` gives are logits. (Otherwise it is averaged as it is.)

        Returns:
            For every image `sem_seg`, (K, height, width) float32.
        """
        return [{"sem_seg": self._predict(forward, image, softmax)} for image in inputs]

    def _predict(self, forward: Forward, record: dict[str, Any], softmax: bool) -> Tensor:
        image = record["image"].float()
        size = (record.get("height", image.shape[1]), record.get("width", image.shape[2]))
        mean: Tensor | None = None
        count = len(self.scales) * (1 + self.flip)
        for scale in self.scales:
            view = image
            if scale != 1:
                sides = [max(1, round(side * scale)) for side in image.shape[-2:]]
                # Smoothed when it is made smaller, as the data loader does it.
                view = _resize(image, sides, antialias=True)
            for flipped in (False, True) if self.flip else (False,):
                scores = self._slide(forward, view.flip(-1) if flipped else view)
                scores = _resize(scores.flip(-1) if flipped else scores, size)
                scores = (scores.softmax(dim=0) if softmax else scores) / count
                mean = scores if mean is None else mean.add_(scores)
        return mean

    def _slide(self, forward: Forward, image: Tensor) -> Tensor:
        """(3, h, w) -> (K, h, w), float32."""
        if self.window is None:
            return forward([{"image": image}])[0]["sem_seg"].float()
        boxes = [
            (top, top + height, left, left + width)
            for top, height in _windows(image.shape[1], self.window[0], self.stride[0])
            for left, width in _windows(image.shape[2], self.window[1], self.stride[1])
        ]
        total: Tensor | None = None
        for start in range(0, len(boxes), self.windows_per_batch):
            chosen = boxes[start : start + self.windows_per_batch]
            outputs = forward([{"image": image[:, t:b, a:z]} for t, b, a, z in chosen])
            for (t, b, a, z), output in zip(chosen, outputs, strict=True):
                scores = output["sem_seg"].float()
                if total is None:
                    total = scores.new_zeros(len(scores), *image.shape[1:])
                    times = scores.new_zeros(image.shape[1:])
                total[:, t:b, a:z] += scores
                times[t:b, a:z] += 1
        return total / times


def _windows(side: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, length) of the windows that cover a side; the last ends with it."""
    if side <= window:
        return [(0, side)]
    return [
        (min(start, side - window), window) for start in range(0, side - window + stride, stride)
    ]


def _resize(x: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """(C, H, W) -> (C, *size), bilinear."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(
        x[None], size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias
    )[0]

"""Windows, scales and mirror images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from comer_d2.d2.modeling.semantic_tta import SemanticViews


class Pointwise:
    """A model of two classes whose scores depend on each pixel alone; remembers the sizes."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.batches: list[int] = []

    def __call__(self, inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        self.batches.append(len(inputs))
        self.sizes += [tuple(record["image"].shape[1:]) for record in inputs]
        return [{"sem_seg": record["image"][:2] / 100} for record in inputs]


def predict(model: Pointwise, image: Tensor, *, softmax: bool = False, **views: Any) -> Tensor:
    record = {"image": image, "height": image.shape[1], "width": image.shape[2]}
    return SemanticViews(**views)(model, [record], softmax=softmax)[0]["sem_seg"]


@pytest.mark.parametrize("size", [(9, 14), (8, 8), (5, 20), (7, 7)])
def test_windows_cover_the_image(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size) * 255
    model = Pointwise()
    scores = predict(model, image, window=(8, 8), stride=(5, 5), windows_per_batch=2)
    torch.testing.assert_close(scores, image[:2] / 100)
    assert set(model.sizes) == {(min(8, size[0]), min(8, size[1]))}
    assert max(model.batches) <= 2


def test_windows_are_where_they_should_be() -> None:
    model = Pointwise()
    predict(model, torch.rand(3, 512, 1024), window=(512, 512), stride=(341, 341))
    assert len(model.sizes) == 3  # at 0, 341 and, moved inwards, 512


def test_mirrored_views_are_mirrored_back() -> None:
    image = torch.rand(3, 6, 7) * 255
    scores = predict(Pointwise(), image, flip=True)
    torch.testing.assert_close(scores, image[:2] / 100)


def test_scales() -> None:
    image = torch.rand(3, 20, 30) * 255
    model = Pointwise()
    scores = predict(model, image, scales=[0.5, 1.0, 2.0], flip=True, softmax=True)
    assert model.sizes == [(10, 15)] * 2 + [(20, 30)] * 2 + [(40, 60)] * 2
    torch.testing.assert_close(scores.sum(0), torch.ones(20, 30))  # means of probabilities
    even = predict(model, torch.full((3, 20, 30), 50.0), scales=[0.5, 1.75], softmax=False)
    torch.testing.assert_close(even, torch.full((2, 20, 30), 0.5))


def test_output_size() -> None:
    record = {"image": torch.rand(3, 8, 8), "height": 17, "width": 12}
    (output,) = SemanticViews()(Pointwise(), [record], softmax=False)
    assert output["sem_seg"].shape == (2, 17, 12)


@pytest.mark.parametrize("stride", [None, (0, 4), (9, 4)])
def test_strides_that_leave_gaps(stride: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="stride must be 1 to window"):
        SemanticViews(window=(8, 8), stride=stride)


def test_a_stride_without_a_window_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"stride=\(4, 4\) is between windows, and window is None"):
        SemanticViews(stride=(4, 4))

"""In onnxruntime: suppression of many images and classes at once, and of nothing; sizes that are rounded up."""

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from comer_d2.d2.export.onnx_operators import translations
from comer_d2.heads.detections import Detections, suppress


class Suppress(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor, usable: Tensor) -> Tensor:
        return suppress(Detections(boxes, scores, classes), usable, 0.5)


def candidates(images: int, number: int, classes: int) -> tuple[Tensor, ...]:
    """Four candidates of every object, a few pixels apart."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(images, number // 4, 2, generator=generator) * 1000
    sides = torch.rand(images, number // 4, 2, generator=generator) * 60 + 24
    boxes = torch.cat([corner, corner + sides], -1).repeat(1, 4, 1)
    boxes = boxes + 3 * torch.randn(images, number, 4, generator=generator)
    labels = torch.randint(0, classes, (images, number // 4), generator=generator).repeat(1, 4)
    scores = torch.rand(images, number, generator=generator)
    return boxes, scores, labels, torch.rand(images, number, generator=generator) > 0.2


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    free = {0: torch.export.Dim("images", max=99), 1: torch.export.Dim("number", max=9999)}
    program = torch.export.export(Suppress(), candidates(2, 40, 5), dynamic_shapes=(free,) * 4)
    written = torch.onnx.export(program, dynamo=True, opset_version=18, custom_translation_table=translations(), verbose=False)  # fmt: skip
    return onnxruntime.InferenceSession(written.model_proto.SerializeToString())


def run(session: onnxruntime.InferenceSession, arguments: tuple[Tensor, ...]) -> Tensor:
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in arguments), strict=True))
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("size", [(1, 400, 80), (32, 400, 80), (8, 2000, 1203)])
def test_the_same_boxes_are_kept(
    session: onnxruntime.InferenceSession, size: tuple[int, int, int]
) -> None:
    """Also where images times classes leave float32 no fractions of a pixel."""
    arguments = candidates(*size)
    expected = Suppress()(*arguments)
    assert 0.2 < expected.float().mean() < 0.8
    assert torch.equal(run(session, arguments), expected)


def test_nothing_to_keep(session: onnxruntime.InferenceSession) -> None:
    *boxes, usable = candidates(2, 40, 5)
    assert not run(session, (*boxes, torch.zeros_like(usable))).any()


class Cells(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        return torch.full((2,), -(-size // 5)) + (-size) // 7


def test_quotients_of_negative_sizes() -> None:
    program = torch.export.export(Cells(), (torch.zeros(23),), dynamic_shapes=({0: torch.export.Dim("size", min=2, max=99)},))  # fmt: skip
    written = torch.onnx.export(program, dynamo=True, opset_version=18, custom_translation_table=translations(), verbose=False)  # fmt: skip
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    for size in (20, 21, 24, 70):
        x = torch.zeros(size)
        assert torch.equal(run(session, (x,)), Cells()(x)), size

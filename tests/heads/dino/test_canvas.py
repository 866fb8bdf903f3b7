"""Where images end in a padded batch, and that it makes no difference up to the decoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comer_d2.heads.dino.canvas import Canvas
from comer_d2.layers.levels import Levels
from tests.heads.dino.tiny_dino import roughen, tiny_head

SHAPES = ((12, 16), (6, 8), (3, 4), (2, 2))
DEVICE = torch.get_default_device()


@pytest.mark.parametrize("size", [(90, 128), (96, 100), (33, 65), (1, 1), (95, 127)])
def test_a_token_is_padding_if_its_cell_begins_there(size: tuple[int, int]) -> None:
    pixels = torch.ones(1, 1, 96, 128)
    pixels[..., : size[0], : size[1]] = 0
    expected = [F.interpolate(pixels, shape).flatten() for shape in SHAPES]  # nearest
    found = Canvas.around(Levels(SHAPES), (96, 128), [size], DEVICE).padding()
    assert torch.equal(found[0], torch.cat(expected).bool())


def test_images_that_fill_the_batch_have_no_padding() -> None:
    for sizes in (None, [(96, 128)] * 2):
        canvas = Canvas.around(Levels(SHAPES), (96, 128), sizes, DEVICE)
        assert canvas.padding() is None
        assert canvas.centres().shape == (1, 192 + 48 + 12 + 4, 2)
        torch.testing.assert_close(canvas.centres()[0, 1], torch.tensor([1.5 / 16, 0.5 / 12]))


def test_positions_and_centres_are_relative_to_the_image() -> None:
    # 48 x 64 pixels in the corner of 96 x 128: as alone, wherever there is image.
    levels, alone = Levels(SHAPES[:3]), Levels(((6, 8), (3, 4)))
    canvas = Canvas.around(levels, (96, 128), [(48, 64)], DEVICE)
    own = Canvas.around(alone, (48, 64), None, DEVICE)
    inside = ~canvas.padding()[0, : 192 + 48]
    for found, expected in (
        (canvas.centres(), own.centres()),
        (canvas.positions(8), own.positions(8)),
        (canvas.proposals(), own.proposals()),
    ):
        torch.testing.assert_close(found[0, : 192 + 48][inside], expected[0])
    # On the padded levels these are the same cells.
    on_levels = canvas.on_levels(canvas.centres())
    padded = Canvas.around(levels, (96, 128), None, DEVICE).centres()[0]
    torch.testing.assert_close(on_levels[0, : 192 + 48][inside][:, 0], padded[: 192 + 48][inside])


class Given(nn.Module):
    """In place of the neck, whose group norms do look at padding."""

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        return list(features.values())


def test_memory_and_proposals_do_not_depend_on_the_padding() -> None:
    head = tiny_head(num_levels=3).eval()
    roughen(head)
    head.neck = Given()
    maps = {str(s): torch.randn(2, 16, 96 // s, 128 // s) for s in (8, 16, 32)}
    # The second image has 64 x 96 pixels; what is beyond is noise.
    alone = {s: x[1:, :, : 64 // int(s), : 96 // int(s)] for s, x in maps.items()}
    with torch.no_grad():
        batch = head(maps, (96, 128), [(96, 128), (64, 96)])
        expected = head(alone, (64, 96))
    inside = ~batch.canvas.padding()[1]
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(batch.memory[1][inside], expected.memory[0], **close)
    for found, of_image in zip(batch.proposals, expected.proposals, strict=True):
        torch.testing.assert_close(found[1:], of_image, **close)

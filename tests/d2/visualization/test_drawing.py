"""Pictures: what is drawn is where it belongs, and every pair is on the sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comer_d2.d2.visualization import fonts
from comer_d2.d2.visualization.drawing import (
    COLORS,
    STUFF_COLORS,
    draw_instances,
    draw_label_map,
    draw_segments,
)
from comer_d2.d2.visualization.sheet import picture_sheet, save_picture

WHITE = np.full((40, 60, 3), 255, np.uint8)
MASK = np.zeros((1, 40, 60), bool)
MASK[0, 10:20, 20:40] = True
BOX = np.array([[20.0, 10.0, 40.0, 20.0]])


def half(color: tuple[int, int, int]) -> np.ndarray:
    """A colour over white, at the opacity of masks."""
    return (np.array(color) + 255) / 2


@pytest.mark.parametrize("scores", [None, np.array([0.9])])
def test_mask_and_box_are_drawn_where_they_are(scores: np.ndarray | None) -> None:
    picture = draw_instances(WHITE, BOX, np.array([0]), ["cat"], masks=MASK, scores=scores, scale=4)
    pixels = np.asarray(picture)
    assert pixels.shape == (160, 240, 3)
    assert pixels[70, 120] == pytest.approx(half(COLORS[0]), abs=2)
    assert tuple(pixels[60, 80]) == tuple(pixels[60, 160]) == COLORS[0]  # the box's sides
    assert (pixels[:, :60] == 255).all()
    assert (pixels[100:] == 255).all()


def test_the_best_object_keeps_what_two_share() -> None:
    masks = np.concatenate([MASK, np.ones_like(MASK)])
    boxes = np.array([[20, 10, 40, 20], [0, 0, 60, 40]], float)
    pixels = np.asarray(draw_instances(WHITE, boxes, np.array([1, 2]), list("abc"), masks=masks))
    assert pixels[16, 30] == pytest.approx(half(COLORS[1]), abs=2)
    assert pixels[30, 5] == pytest.approx(half(COLORS[2]), abs=2)


def test_no_instances_leave_the_image_alone() -> None:
    image = np.full((20, 20, 3), 77, np.uint8)
    nothing = draw_instances(
        image, np.zeros((0, 4)), np.zeros(0, int), ["cat"], masks=np.zeros((0, 20, 20), bool)
    )
    np.testing.assert_array_equal(np.asarray(nothing), image)


def test_labels_stay_inside_the_picture() -> None:
    image = np.full((100, 200, 3), 255, np.uint8)
    corner = np.array([[180.0, 0.0, 199.0, 20.0]])
    pixels = np.asarray(draw_instances(image, corner, np.array([0]), ["a long name"]))
    filled = (pixels == COLORS[0]).all(-1)
    assert filled[:, 199].sum() < 30  # not cut off at the right: its end is inside
    assert filled[5, 100:180].mean() > 0.3


def test_letters_that_the_usual_font_lacks_come_from_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.full((60, 200, 3), 255, np.uint8)
    box = np.array([[20.0, 30.0, 180.0, 55.0]])
    assert fonts.font_for(["cat 90%", "chat à queue"]) == fonts.DEFAULT
    ringed = "\N{CIRCLED LATIN CAPITAL LETTER A}\ufe0e"  # of matplotlib's STIX; and a selector
    assert "STIX" in fonts.font_for([ringed])
    drawn = draw_instances(image, box, np.array([0]), [ringed])
    monkeypatch.setattr("comer_d2.d2.visualization.drawing.font_for", lambda texts: fonts.DEFAULT)
    assert np.asarray(drawn).tolist() != np.asarray(draw_instances(image, box, np.array([0]), [ringed])).tolist()  # fmt: skip
    assert not caplog.messages
    # Of no script: a box, which the log says once.
    nobody = "\U000f1234"
    for _ in range(2):
        assert fonts.font_for([f"cat {nobody}"]) == fonts.DEFAULT
    assert len(caplog.messages) == 1 and f"has {nobody}: boxes are drawn" in caplog.text


def test_segments_and_label_maps() -> None:
    segments = np.zeros((40, 60), np.int32)
    segments[:20] = 7
    segments[20:, :30] = 9
    segments[30:, 40:] = 11
    info = [
        {"id": 7, "category_id": 2},
        {"id": 9, "category_id": 0, "score": 0.5},
        {"id": 11, "category_id": 0},
        {"id": 12, "category_id": 1},  # without a pixel
    ]
    pixels = np.asarray(draw_segments(WHITE, segments, info, list("abc"), stuff_classes=[2]))
    assert pixels[1, 1] == pytest.approx(half(STUFF_COLORS[2]), abs=2)
    assert pixels[38, 5] == pytest.approx(half(COLORS[0]), abs=2)
    assert pixels[38, 50] == pytest.approx(half(COLORS[1]), abs=2)  # the second of its class
    assert (pixels[25, 35] == 255).all()  # no segment
    labels = np.where(segments == 7, 1, 255)
    pixels = np.asarray(draw_label_map(WHITE, labels, list("abc")))
    assert pixels[1, 1] == pytest.approx(half(COLORS[1]), abs=2)
    assert (pixels[25:] == 255).all()


def test_sheet_holds_every_pair() -> None:
    colors = [(i * 20 + 5, 0, 0) for i in range(10)]
    pictures = [Image.new("RGB", (50, 40), color) for color in colors]
    pairs = list(zip(pictures[::2], pictures[1::2]))
    sheet = picture_sheet(pairs, title="t", subtitle="s", columns=2)
    found, counts = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0, return_counts=True)
    by_color = {tuple(c): n for c, n in zip(found.tolist(), counts.tolist())}
    assert all(by_color[color] == 50 * 40 for color in colors)


def test_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    picture = Image.new("RGB", (8, 8))
    path = save_picture(picture, tmp_path / "new" / "a.png")
    assert Image.open(path).size == (8, 8)

    def fail(self, target, **kwargs) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_picture(picture, path)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert Image.open(path).size == (8, 8)

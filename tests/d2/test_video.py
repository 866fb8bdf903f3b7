"""Videos: frames come back as they were written, and predict draws each of them."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from comer_d2.__main__ import main
from comer_d2.d2.commands.predict import draw_video
from comer_d2.d2.errors import UserError
from comer_d2.d2.results import Result
from comer_d2.d2.video import BadVideo, frame_count, frame_rate, read_frames, write_frames
from tests.d2.untrained import DETECTOR, write_digits, write_run


@pytest.fixture
def film(tmp_path: Path) -> Path:
    frames = [np.full((65, 96, 3), 30 * number, np.uint8) for number in range(6)]
    for number, frame in enumerate(frames):
        frame[8 * number : 8 * number + 16, 40:64] = (220, 30, 30)
    path = tmp_path / "in" / "film.mp4"
    assert write_frames(path, frames, Fraction(10)) == 6
    return path


def test_frames_there_and_back(film: Path) -> None:
    frames = list(read_frames(film))
    assert len(frames) == frame_count(film) == 6
    assert frame_rate(film) == 10
    for number, frame in enumerate(frames):
        assert frame.shape == (64, 96, 3)  # the odd row is left out
        assert frame[8 * number + 4, 52] == pytest.approx(np.array([220, 30, 30]), abs=12)
        assert frame[60, 4] == pytest.approx(np.full(3, 30 * number), abs=6)
    assert [p.name for p in film.parent.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_film_on_its_side_is_turned(film: Path, quarters: int) -> None:
    """As a telephone's: the container's matrix, of an .mp4's `tkhd`, says how it is shown."""
    upright = next(read_frames(film))
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]  # clockwise; x to the right, y down
    lying, turned = (
        struct.pack(">9i", *(v << 16 for v in (a, b, 0, -b, a, 0, 0, 0)), 1 << 30)
        for a, b in ((1, 0), (cos, sin))
    )
    content = film.read_bytes()
    place = content.index(lying, content.index(b"tkhd"))
    film.write_bytes(content[:place] + turned + content[place + len(turned) :])
    frame = next(read_frames(film))
    np.testing.assert_array_equal(frame, np.rot90(upright, -quarters))


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "nowhere.mp4"):
        with pytest.raises(UserError, match=f"{name}' cannot be read"):
            list(read_frames(tmp_path / name))


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def frames():
        yield np.zeros((64, 64, 3), np.uint8)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        write_frames(tmp_path / "film.mp4", frames(), Fraction(10))
    assert not list(tmp_path.iterdir())


def test_predict_draws_a_video(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path / "data"), DETECTOR)
    arguments = ["predict", str(run), str(film), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--threshold", "0"]) == 0
    assert "6 frames" in capsys.readouterr().out
    drawn, before = (list(read_frames(p)) for p in (tmp_path / "out" / "film.mp4", film))
    assert len(drawn) == 6 and drawn[0].shape == before[0].shape
    assert np.abs(drawn[0].astype(int) - before[0]).max() > 50
    assert main([*arguments, "--json"]) == 2
    (tmp_path / "text.mp4").write_text("no video")
    assert (
        main([*arguments[:2], str(tmp_path / "text.mp4"), *arguments[2:]]) == 1
    )  # the other is drawn
    printed = capsys.readouterr()
    assert "text.mp4' cannot be read" in printed.err and "1 of 2 could not be read" in printed.err
    assert "6 frames" in printed.out
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "photo.png")
    assert main([*arguments[:2], str(tmp_path / "in"), *arguments[3:]]) == 0
    assert f"1 videos in '{tmp_path / 'in'}' are left out" in capsys.readouterr().err
    (tmp_path / "in" / "photo.png").unlink()
    assert main([*arguments[:2], str(tmp_path / "in"), *arguments[3:]]) == 2
    assert "it has 1 videos: name them" in capsys.readouterr().err
    assert main([*arguments[:-1], str(film.parent)]) == 2
    assert "would replace it" in capsys.readouterr().err


def test_an_address_is_a_video_and_seconds_end_it(film: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path / "data"), DETECTOR)
    handler = partial(SimpleHTTPRequestHandler, directory=str(film.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/film.mp4"
        arguments = ["predict", str(run), address, "--output", str(tmp_path / "out")]
        assert main([*arguments, "--seconds", "0.3"]) == 0
        server.shutdown()
    (drawn,) = (tmp_path / "out").iterdir()
    assert drawn.suffix == ".mp4" and len(list(read_frames(drawn))) == 3


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), BadVideo("damaged")], ids=["ctrl-c", "damage"]
)
def test_what_was_drawn_is_kept(film: Path, tmp_path: Path, end: BaseException) -> None:
    class Model:
        def stream(self, frames: Iterator[np.ndarray], *, threshold: float) -> Iterator[Result]:
            for number, frame in enumerate(frames):
                if number == 4:
                    raise end
                yield Result(frame, ["a"], label_map=np.zeros(frame.shape[:2], int))

    target = tmp_path / "drawn.mp4"
    skipped: list[UserError] = []
    skip = lambda _, error: skipped.append(error)  # noqa: E731
    assert draw_video(Model(), str(film), target, 0.5, skip) == 4
    assert skipped == ([end] if isinstance(end, BadVideo) else [])
    assert len(list(read_frames(target))) == 4


@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_a_video_that_is_cut_short_is_said_after_its_frames(tmp_path: Path, ending: str) -> None:
    """FFmpeg takes the end of such a file for the end of the film."""
    random = np.random.default_rng(0)
    path = tmp_path / f"film.{ending}"
    frames = [random.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(20)]
    write_frames(path, frames, Fraction(10))
    assert len(list(read_frames(path))) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = []
    with pytest.raises(BadVideo, match=r"is cut short: (0\.\d|1\.[0-4]) s of 2\.0 s are there"):
        for frame in read_frames(path):
            seen.append(frame)
    assert 5 <= len(seen) <= 14

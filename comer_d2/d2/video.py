"""Frames of a video or a camera, and a video of frames."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np

from .errors import UserError

VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
CAMERA = "/dev/video"  # Video4Linux


class BadVideo(UserError):
    """A video that cannot be read, or not to its end."""


def is_stream(name: str) -> bool:
    """Whether a name is a camera's, or an address that FFmpeg opens (rtsp://, http://)."""
    return "://" in name or name.startswith(CAMERA)


def frame_count(path: str | Path) -> int:
    """Number of frames that a video says it has; 0 where it does not say."""
    with _open(path) as container:
        return container.streams.video[0].frames


def frame_rate(path: str | Path) -> Fraction:
    """Frames a second."""
    with _open(path) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video, one after the other.

    Args:
        path: of the file, the camera, or its address.

    Yields:
        (h, w, 3) uint8, RGB.

    Raises:
        BadVideo: the file is no video, or damaged.
        UserError: PyAV is missing.
    """
    av = _av()
    with _open(path) as container:
        try:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            raise BadVideo(f"video '{path}' cannot be read: {error}") from error


def write_frames(path: str | Path, frames: Iterable[np.ndarray], rate: Fraction) -> int:
    """Write a video (H.264), whole or not at all.

    Args:
        path: of the file; its ending chooses the container.
        frames: (h, w, 3) uint8, RGB, all of one size; an odd last row or column is left out, for the
            format has none.
        rate: frames a second.

    Returns:
        The number of frames.
    """
    av = _av()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    count = 0
    try:
        with av.open(str(part), "w") as container:
            stream = None
            for image in frames:
                height, width = (side // 2 * 2 for side in image.shape[:2])
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate)
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                image = np.ascontiguousarray(image[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                count += 1
            if stream is not None:
                container.mux(stream.encode())
        if count:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _open(path: str | Path):
    av = _av()
    try:
        container = av.open(str(path), format="v4l2" if str(path).startswith(CAMERA) else None)
    except (av.FFmpegError, OSError) as error:
        raise BadVideo(f"video '{path}' cannot be read: {error}") from error
    if not container.streams.video:
        container.close()
        raise BadVideo(f"'{path}' holds no video")
    return container


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError("videos need PyAV: pip install 'comer_d2[video]'") from error
    return av

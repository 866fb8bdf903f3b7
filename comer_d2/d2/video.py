"""Frames of a video or a camera, and a video of frames."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np

from .errors import UserError

VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
CAMERA = "/dev/video"  # Video4Linux
DEFAULT_RATE = Fraction(25)  # frames a second, of a video that does not say
MISSED = (
    0.3  # seconds at the end of a video that are cut off, and not how long its last frame stays
)


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
        return container.streams.video[0].average_rate or DEFAULT_RATE


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video, one after the other, turned upright where it asks for it, as telephones' do.

    Args:
        path: of the file, the camera, or its address.

    Yields:
        (h, w, 3) uint8, RGB.

    Raises:
        BadVideo: the file is no video, damaged, or cut short; the last, after its frames.
        UserError: PyAV is missing.
    """
    av = _av()
    with _open(path) as container:
        rate, end = container.streams.video[0].average_rate or DEFAULT_RATE, 0.0
        try:
            for count, frame in enumerate(container.decode(video=0), 1):
                end = max(end, float(count / rate) if frame.time is None else frame.time + 1 / rate)
                quarters = round(frame.rotation / 90)  # counter-clockwise, as NumPy's
                yield np.rot90(frame.to_ndarray(format="rgb24"), quarters)
        except av.FFmpegError as error:
            raise BadVideo(f"video '{path}' cannot be read: {error}") from error
        length = _length(container)
        if length - end > MISSED:
            raise BadVideo(f"video '{path}' is cut short: {end:.1f} s of {length:.1f} s are there")


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


def _length(container) -> float:
    """Seconds that a video says it lasts, in formats whose missing end FFmpeg takes for their end; else 0."""
    (stream,) = container.streams.video[:1]
    if container.format.name == "avi":  # FFmpeg adapts the duration to the file
        return float(stream.frames / (stream.average_rate or DEFAULT_RATE))
    if "matroska" not in container.format.name:
        return 0.0
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    # Of the whole file: other streams may be longer.
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


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

"""A run's output folder: can be written, belongs to one run, and holds nothing half written."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"


def make_writable(folder: str) -> None:
    """Make the folder, and write a file in it that has no name.

    Raises:
        UserError: naming the folder, the reason and the space that is left.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"\0")
    except OSError as e:
        raise UserError(
            f"train.output_dir={folder!r} cannot be written: {describe(e, folder)}; choose another"
        ) from e


def describe(error: Exception, folder: str) -> str:
    """Why a file could not be written, and how much space its disk has left."""
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if path and isinstance(error, (IsADirectoryError, NotADirectoryError)):
        reason += f": {path}"
    if not os.path.isdir(folder):
        state = "is a file" if os.path.exists(folder) else "does not exist"
        return f"{reason} ({folder} {state})"
    return f"{reason} ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free in {folder})"


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keep other runs out of a folder; the system lets go of it when this process ends, however.

    Raises:
        UserError: another process has it, with its number and host.
    """
    if fcntl is None:
        logger.warning("This system has no file locks: two runs in %s would not be told", folder)
        yield
        return
    with open(os.path.join(folder, LOCK), "a+") as f:
        try:
            # Of the process, not of the open file: forked loading processes do not hold it on.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            f.seek(0)
            raise UserError(
                f"train.output_dir={folder!r} is in use by {f.read() or 'another process'}: wait "
                "for that run, or choose another train.output_dir"
            ) from e
        except OSError as e:
            logger.warning("No lock in %s (%s): another run there would not be told", folder, e)
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()}")
        f.flush()
        yield


def remove_half_written(folder: str) -> None:
    """Remove the temporary files of a run that was killed while it wrote; this run has the lock."""
    stale = [n for n in os.listdir(folder) if n.startswith(".") and n.endswith(".tmp")]
    for name in stale:
        os.unlink(os.path.join(folder, name))
    if stale:
        logger.info("Removed %d files that a killed run had half written", len(stale))

"""A folder that is written whole or not at all, and a look beforehand whether one can be."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def check_writable(folder: Path) -> None:
    """Before anything is computed for it: whether files can be written in a folder.

    Args:
        folder: it need not be there, and neither need those above it.

    Raises:
        UserError: naming the folder and the reason.
    """
    whole = folder.absolute()
    try:
        nearest = next(path for path in (whole, *whole.parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written ({error.strerror}): choose another folder"
        ) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder whose files appear when all of them are written.

    Args:
        folder: a new or an empty one.

    Yields:
        Where to write, until the files are moved to `folder`; after a failure nothing is left.

    Raises:
        UserError: `folder` holds something, or is none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' is not an empty folder: choose another one")
    check_writable(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(
        tempfile.mkdtemp(dir=folder, prefix=".part-")
    )  # a mounted folder cannot be replaced
    try:
        yield part
        for child in sorted(part.iterdir()):
            child.replace(folder / child.name)
    except BaseException:
        shutil.rmtree(folder if made else part)
        raise
    part.rmdir()

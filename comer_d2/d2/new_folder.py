"""A folder that is written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


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

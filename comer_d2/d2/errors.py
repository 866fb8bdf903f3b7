"""Errors the user can fix: printed in one line (or a few), without a stack trace."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake in a config, a path, a checkpoint or a data set: names the value and the fix.

    `train_net.py` prints it as ``train_net.py: error: ...`` and exits with `exit_code`. Set
    ``COMER_D2_TRACEBACK=1`` to see where it was raised.
    """

    exit_code = 2


class TrainingError(UserError):
    """Training cannot go on (a loss is NaN, weights are not finite): exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint to resume from was written.

    Args:
        signum: the signal's number; the process exits with 128 + signum, as shells expect.
        message: what was saved, and how to go on.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def report(error: UserError | Interrupted, program: str | None = None) -> int:
    """Print an error that explains itself.

    Args:
        error: what ended the program.
        program: its name; None: this process's.

    Returns:
        The exit code. With ``COMER_D2_TRACEBACK`` set, a UserError is raised again instead.
    """
    if isinstance(error, UserError) and os.environ.get("COMER_D2_TRACEBACK"):
        raise error
    kind = "error: " if isinstance(error, UserError) else ""
    print(f"{program or Path(sys.argv[0]).name}: {kind}{error}", file=sys.stderr, flush=True)
    return error.exit_code

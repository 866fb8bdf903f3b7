"""What a person can put right: printed in one line (or a few), without a stack trace."""

from __future__ import annotations


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

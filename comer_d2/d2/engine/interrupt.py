"""Ctrl-C and SIGTERM: finish the step, then stop."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from detectron2.utils import comm

# torchrun passes a terminal's Ctrl-C on to processes that already had it from the terminal.
_SAME_SIGNAL_SECONDS = 2.0


class InterruptFlag:
    """While entered, SIGINT and SIGTERM only set `signum`; a second one stops at once.

    Signals can be handled in the main thread only, so enter it there.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptFlag:
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) != signal.SIG_IGN:  # a launcher passes signals on itself
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loading process that inherited this handler
        now = time.monotonic()
        if self.signum and now - self._since > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not self.signum:
            self.signum, self._since = signum, now
            if comm.is_main_process():
                # Not by logging, nor print: the signal may have come in the middle of a line of theirs,
                # and their buffers cannot be entered twice.
                name = signal.Signals(signum).name
                text = f"{name}: finishing this step, then writing a checkpoint; once more stops at once"
                os.write(2, f"{text}\n".encode())

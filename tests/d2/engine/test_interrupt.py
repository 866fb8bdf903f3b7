"""Signals: what a run says of them, and when."""

import logging
import signal

import pytest

from comer_d2.d2.engine.interrupt import InterruptFlag


class SignalledMidway(logging.Handler):
    """Writes a line and gets a signal before the line is done."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_within_a_line_of_the_log_writes_no_second_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = SignalledMidway()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with InterruptFlag() as flag:
            logging.getLogger("comer_d2").warning("iter: 2")
    finally:
        root.removeHandler(handler)
    assert handler.lines == ["iter: 2"]
    assert flag.signum == signal.SIGTERM
    assert capfd.readouterr().err.startswith("SIGTERM: finishing this step")

"""A command that is told to stop leaves nothing half written."""

import os
import signal
from pathlib import Path

import pytest

from comer_d2.d2.cli import run_tool
from comer_d2.weights.files import write_atomically


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_file(signum: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def write(part: Path) -> None:
        part.write_text("half")
        os.kill(os.getpid(), signum)
        part.write_text("whole")

    assert run_tool(lambda: write_atomically(tmp_path / "file", write)) == 128 + signum
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before

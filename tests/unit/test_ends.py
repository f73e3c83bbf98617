"""How a process ended, in words."""

from __future__ import annotations

import select
import signal
from pathlib import Path

import pytest

from vinecore.runtime.ends import end_text, signal_text
from vinecore.shell import process
from vinecore.wire import messages


@pytest.mark.parametrize("number", range(1, signal.NSIG))
def test_every_signal_has_words(number: int) -> None:
    """Most real-time ones have no name."""
    assert end_text(-number) == process.end_text(-number)
    assert end_text(-number).startswith("was killed by ")
    assert signal_text(-number).startswith(f"was killed by signal {number}")


def test_words_of_the_usual_ends() -> None:
    assert (end_text(0), end_text(3), end_text(-9)) == (
        "ended with exit code 0",
        "ended with exit code 3",
        "was killed by SIGKILL",
    )
    assert (signal_text(-11), signal_text(-40)) == ("was killed by signal 11 (SIGSEGV)", "was killed by signal 40")
    assert end_text(-40) == "was killed by signal 40" and signal_text(9) == ""


CLOSED = "code of the library most likely closed descriptors that it had not opened"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (
            "import os, time; os.closerange(3, 100); time.sleep(1000)",
            f"closed its connection to the worker, and was ended ({CLOSED}",
        ),
        (f"raise SystemExit({messages.NO_CHANNEL})", f"ended with exit code {messages.NO_CHANNEL} ({CLOSED}"),
        ("raise SystemExit(3)", "ended with exit code 3"),
    ],
)
def test_a_library_that_has_lost_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, how: str) -> None:
    """It cannot say so itself."""
    monkeypatch.setattr(process, "_HOST_CODE", code)
    host = process.HostProcess(str(tmp_path), lambda pid: None, "mark")
    poll = select.poll()
    poll.register(host.sock, select.POLLIN)
    assert poll.poll(30_000), "its end shows"
    monkeypatch.setattr(process, "END_GRACE_S", 0.0 if "sleep" in code else 30.0)
    said = host.end_text()
    host.sock.close()
    assert said.startswith(f"its process {how}") and (CLOSED in said) == (CLOSED in how)

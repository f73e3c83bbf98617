"""How a process ended, in words."""

from __future__ import annotations

import signal

import pytest

from vinecore.runtime.ends import end_text, signal_text
from vinecore.shell import process


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

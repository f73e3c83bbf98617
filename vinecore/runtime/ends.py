"""How a process ended, for people."""

from __future__ import annotations

import signal


def end_text(code: int) -> str:
    """What an exit code says; a negative one is that of the signal which killed the process."""
    return f"was killed by {_name(-code)}" if code < 0 else f"ended with exit code {code}"


def signal_text(code: int) -> str:
    """How a process was killed, with the signal's number, which is all that ``exit_code`` shows; empty when none killed it."""
    if code >= 0:
        return ""
    name = _name(-code)
    return f"was killed by signal {-code}" + (f" ({name})" if name.startswith("SIG") else "")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most of the real-time ones have no name

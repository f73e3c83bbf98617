"""How a process ended, for people."""

from __future__ import annotations

import signal


def end_text(code: int) -> str:
    """What an exit code says; a negative one is that of the signal which killed the process."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

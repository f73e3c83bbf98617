"""What holds for every test."""

from __future__ import annotations

import signal

# A shell starts what it puts into the background with interrupts ignored, nohup ignores hang-ups, and both are inherited: there
# the programs of the tests that press Ctrl-C, or close the terminal, would not end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

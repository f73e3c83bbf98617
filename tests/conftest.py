"""What holds for every test."""

from __future__ import annotations

import signal

# What a shell starts in the background is started with interrupts ignored, and so is all that it starts: there Ctrl-C would not
# end the programs of the tests that press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

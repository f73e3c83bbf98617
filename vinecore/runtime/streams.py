"""Standard streams of processes that fork: what is buffered must be written before a fork, once; their numbers stay theirs."""

from __future__ import annotations

import os
import sys


def flush_streams() -> None:
    """Write what user code has printed. Streams that are closed or were never there are no error, nor is whatever user code has
    put in their place."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BaseException:
            # SystemExit too: here it would end a slot, or take a call's answer along.
            continue


def fill_streams() -> None:
    """Put nothing where user code has closed descriptors 0 to 2 (as daemons do): a socket that is opened next must not get one of
    these numbers, or it would be written into by whoever prints."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)

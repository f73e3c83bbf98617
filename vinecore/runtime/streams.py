"""Standard streams of processes that fork: what is buffered must be written before a fork, once."""

from __future__ import annotations

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

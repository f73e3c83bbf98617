"""Why the kernel does not start a command: what is too long, and what to do instead."""

from __future__ import annotations

import os

# Linux: pages of one argument or one variable (MAX_ARG_STRLEN), with the zero at its end.
_STRING_PAGES = 32
# Of all of them together, whatever the limit of the stack is (three quarters of the usual stack).
_TOTAL_LIMIT_BYTES = 6 << 20
_FIX = "put it into a file and add that as an input"


def too_long_text(command: str, environment: dict[str, str]) -> str:
    """For people; call it when the start of ``/bin/sh -c command`` with that environment has failed with E2BIG."""
    limit = _STRING_PAGES * os.sysconf("SC_PAGE_SIZE")
    takes = f"Linux takes less than {limit >> 10} KiB"
    sizes = {name: len(os.fsencode(name)) + len(os.fsencode(value)) + 2 for name, value in environment.items()}
    command_bytes = len(os.fsencode(command)) + 1
    longest = max(sizes, key=sizes.__getitem__, default="")
    if command_bytes > limit:
        return f"the command line is too long: it has {command_bytes - 1} bytes, and {takes} for one argument; {_FIX}"
    if longest and sizes[longest] > limit:
        has = f"it has {sizes[longest] - 1} bytes"
        return f"the environment variable {longest} is too long: {has}, and {takes} for one variable; {_FIX}"
    total = command_bytes + sum(sizes.values())
    most = min(os.sysconf("SC_ARG_MAX"), _TOTAL_LIMIT_BYTES) >> 10
    return (
        f"the command line and the environment are too long: {command_bytes - 1} bytes and {len(sizes)} variables, "
        f"{total} bytes together, and Linux takes about {most} KiB; put the largest into files and add these as inputs"
    )

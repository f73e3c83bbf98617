"""A process that must not outlive its parent asks the kernel for that. Forks do not inherit the wish: each asks anew."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# Loaded before any fork: the children of a forking slot ask many hundred times a second.
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; exits at once if that has happened already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """From now on descendants whose parent ends become children of this process: none of them gets out of sight."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

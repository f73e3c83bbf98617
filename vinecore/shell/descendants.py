"""Every process below the worker: none gets out of sight, and all end with it.

What leaves its group and loses its parent would become a child of init. Here it becomes a child of the worker, which takes note
of its end and, when it leaves its manager, ends what still lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Set
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# Processes that end by themselves are let be so long: the guards of slots remove sandboxes, which takes them a moment.
GRACE_S = 0.25
# A killed process is gone within this time, unless the kernel holds it.
_KILL_WAIT_S = 0.5
# Rounds of ending what is there; bounds a fight with processes that fork all the time.
_ROUNDS = 20


def adopt_orphans() -> None:
    """From now on descendants whose parent ends become children of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_adopted(own: Collection[int]) -> None:
    """Take note of the ends of adopted children; the ends of our ``own`` are for those who started them."""
    for pid in _children(os.getpid()):
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_descendants(own: Collection[int]) -> None:
    """End everything below this process, whatever group or session it is in."""
    # Children of those that have ended just now are ours only since then: so the next look may find them.
    for _ in end_processes(_open_descendants, set(own)):
        reap_adopted(own)


def end_processes(find: Callable[[], dict[int, int]], expected: Set[int] = frozenset()) -> Iterator[None]:
    """End what is found, again and again until a look finds nothing, or only what is expected. Yields after each round.

    Parameters:
        find: opens handles (pidfds) of processes, by process id; they are closed here.
        expected: of these it is not asked whether they are gone.
    """
    grace_s = GRACE_S
    for _ in range(_ROUNDS):
        opened = find()
        living = _still_living(list(opened.values()), grace_s)
        for handle in living:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        _still_living(living, _KILL_WAIT_S)
        for handle in opened.values():
            os.close(handle)
        yield
        if opened.keys() <= expected:
            return
        grace_s = 0.0


def _children(pid: int) -> list[int]:
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []  # it has just ended
    return [int(child) for text in lists for child in text.split()]


def _open_descendants() -> dict[int, int]:
    """Handles (pidfds) of every process below this one; they name the process even after its parent and its number are gone."""
    opened: dict[int, int] = {}
    pending = [os.getpid()]
    while pending:
        for child in _children(pending.pop()):
            if child not in opened:
                pending.append(child)
                with contextlib.suppress(OSError):
                    opened[child] = os.pidfd_open(child)
    return opened


def _still_living(handles: list[int], limit_s: float) -> list[int]:
    """Wait for the ends of these processes; those that live on at the limit."""
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    left = set(handles)
    until = time.monotonic() + limit_s
    while left:
        ended = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not ended:
            break
        for handle, _ in ended:
            poll.unregister(handle)
            left.discard(handle)
    return list(left)

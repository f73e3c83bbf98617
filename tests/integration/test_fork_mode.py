"""What a slot in fork mode does once for all its children, and what it leaves to later."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from tests.kit.calls import finish
from vinecore import FunctionCall, Manager
from vinecore.runtime import fork_hooks, payload
from vinecore.runtime.forking_slot import _READ_BYTES, _REAP_EVERY


def leave_an_orphan(number: int) -> tuple[int, int]:
    """Slot, and number; the grandchild ends when nobody but the slot can take note of it."""
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
    return os.getppid(), number


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_orphans_of_calls_do_not_pile_up(m: Manager, install: Callable[..., str]) -> None:
    library = install(leave_an_orphan, children_of, exec_mode="fork", slots=1)
    count = 3 * _REAP_EVERY
    outputs = finish(m, *(FunctionCall(library, "leave_an_orphan", i) for i in range(count)))
    assert [number for _, number in outputs] == list(range(count)) and len({slot for slot, _ in outputs}) == 1
    # The call that asks is one itself.
    assert len(finish(m, FunctionCall(library, "children_of", outputs[0][0]))[0]) <= _REAP_EVERY + 1


def what_is_ready() -> tuple[bool, int]:
    return payload._pickler is not None, len(fork_hooks._in_child)


def test_children_find_the_pickler_and_the_hooks_of_forks_ready(m: Manager, install: Callable[..., str]) -> None:
    assert finish(m, FunctionCall(install(what_is_ready, exec_mode="fork"), "what_is_ready")) == [(True, 2)]


def fork_beside_a_thread() -> tuple[int, int]:
    """Threads that a fork of this child, and this child, know of."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    pid = os.fork()
    if pid == 0:
        os._exit(threading.active_count())
    seen = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    mine = threading.active_count()
    release.set()
    thread.join()
    return seen, mine


def test_forks_of_user_code_forget_the_threads_of_their_parent(m: Manager, install: Callable[..., str]) -> None:
    assert finish(m, FunctionCall(install(fork_beside_a_thread, exec_mode="fork"), "fork_beside_a_thread")) == [(1, 2)]


def large_answer(size: int) -> bytes:
    return b"%d" % (size % 10) * size


def test_answers_of_any_size_follow_each_other(m: Manager, install: Callable[..., str]) -> None:
    """Inline values that fill one read, and a short one after a long one in the same memory."""
    sizes = [1, 5000, 60_000, 3, _READ_BYTES - 34, _READ_BYTES, 4096, 10_000, 2]
    library = install(large_answer, exec_mode="fork", slots=1)
    outputs = finish(m, *(FunctionCall(library, "large_answer", size) for size in sizes))
    assert outputs == [b"%d" % (size % 10) * size for size in sizes]

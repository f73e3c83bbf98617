"""What a slot in fork mode does once for all its children, and what it leaves to later."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.calls import eventually, finish
from vinecore import FunctionCall, Manager
from vinecore.runtime import fork_hooks, payload
from vinecore.runtime.forking_slot import _REAP_EVERY
from vinecore.wire.messages import INLINE_LIMIT_BYTES


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
    """Short ones after long ones, which are in the same memory, up to the longest that are inline and beyond."""
    sizes = [1, 5000, 60_000, 3, INLINE_LIMIT_BYTES - 20, 2, INLINE_LIMIT_BYTES, 4]
    library = install(large_answer, exec_mode="fork", slots=1)
    outputs = finish(m, *(FunctionCall(library, "large_answer", size) for size in sizes))
    assert outputs == [b"%d" % (size % 10) * size for size in sizes]


# ---------------------------------------------------------------- what user code does to its own process


def close_and_open(directory: str) -> str:
    os.closerange(3, 4096)
    for number in range(40):
        os.write(os.open(f"{directory}/{number}", os.O_RDWR | os.O_CREAT), b"precious")
    return "answer"


def test_files_that_a_call_opens_under_any_number_are_its_own(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(close_and_open, exec_mode="fork")
    assert finish(m, FunctionCall(library, "close_and_open", str(tmp_path))) == ["answer"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}


def limit_files(size_bytes: int, value_bytes: int) -> bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    return b"v" * value_bytes


def open_no_more(size: int) -> bytes:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return bytes(size)


def test_a_limit_of_descriptors_that_a_call_has_set_is_its_own_error(m: Manager, install: Callable[..., str]) -> None:
    library = install(open_no_more, exec_mode="fork")
    m.tune("max-losses", 0)
    calls = [FunctionCall(library, "open_no_more", size) for size in (10, 10 * INLINE_LIMIT_BYTES)]
    small, error = finish(m, *calls)
    assert small == bytes(10) and isinstance(error, OSError) and "Too many open files" in str(error)


def test_a_limit_of_files_does_not_concern_answers(m: Manager, install: Callable[..., str]) -> None:
    library = install(limit_files, exec_mode="fork")
    assert finish(m, FunctionCall(library, "limit_files", 0, 30_000)) == [b"v" * 30_000]
    # What goes into the store is a file; the call itself made it impossible, so it is not tried again.
    error = finish(m, FunctionCall(library, "limit_files", 1000, 300_000))[0]
    assert isinstance(error, OSError) and "File too large" in str(error)


class Silent:
    def write(self, text: str) -> None:
        pass


class Deadly(Silent):
    def flush(self) -> None:
        sys.exit("flushed")


def replace_stdout(log: str) -> str:
    with open(log, "a") as file:
        file.write("ran\n")
    sys.stdout = Silent()  # type: ignore[assignment]
    sys.stderr = Deadly()  # type: ignore[assignment]
    return "ok"


def install_odd_stream() -> dict[str, object]:
    sys.stdout = Silent()  # type: ignore[assignment]
    return {}


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_what_stands_in_for_a_stream_needs_no_flush(
    m: Manager, install: Callable[..., str], tmp_path: Path, exec_mode: str
) -> None:
    library = install(replace_stdout, exec_mode=exec_mode, library_context_info=[install_odd_stream, [], {}])
    assert finish(m, FunctionCall(library, "replace_stdout", str(tmp_path / "log"))) == ["ok"]
    assert (tmp_path / "log").read_text() == "ran\n"


def reap_all() -> dict[str, object]:
    def handler(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, handler)
    return {}


def ignore_ends() -> dict[str, object]:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return {}


def block_ends() -> dict[str, object]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    return {}


def end_slot(is_parent: bool) -> None:
    if is_parent:
        os.kill(os.getppid(), signal.SIGKILL)
    os._exit(3)


def say_good() -> str:
    return "good"


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
@pytest.mark.parametrize("context", [reap_all, ignore_ends, block_ends])
def test_the_end_of_a_slot_is_heard_of_whatever_a_context_does_to_its_signal(
    m: Manager, install: Callable[..., str], exec_mode: str, context: Callable[[], object]
) -> None:
    library = install(end_slot, say_good, exec_mode=exec_mode, slots=1, library_context_info=[context, [], {}])
    error, good = finish(m, FunctionCall(library, "end_slot", exec_mode == "fork"), FunctionCall(library, "say_good"))
    assert "was killed by SIGKILL" in str(error) if exec_mode == "fork" else "ended with exit code 3" in str(error)
    assert good == "good"


def leave_many_orphans(count: int) -> int:
    for _ in range(count):
        if os.fork() == 0:
            os._exit(0)
    return os.getppid()


def test_orphans_that_have_ended_are_gone_when_a_batch_is_over(m: Manager, install: Callable[..., str]) -> None:
    (slot,) = finish(m, FunctionCall(install(leave_many_orphans, exec_mode="fork"), "leave_many_orphans", 50))
    assert eventually(lambda: not children_of(slot))


def leave_running() -> int:
    return subprocess.Popen(["sleep", "60"], start_new_session=True).pid


def test_a_task_ends_what_it_left_and_not_what_calls_before_it_left() -> None:
    with Manager(local_cores=1) as m:
        m.install_library(m.create_library_from_functions("calls", leave_running, exec_mode="fork"))
        (before,) = finish(m, FunctionCall("calls", "leave_running"))
        limited = FunctionCall("calls", "leave_running")
        limited.set_time_max(30)
        (inside,) = finish(m, limited)
        assert Path(f"/proc/{before}").exists() and not Path(f"/proc/{inside}").exists()
    assert eventually(lambda: not Path(f"/proc/{before}").exists())

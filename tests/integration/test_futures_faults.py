"""``FuturesExecutor`` when processes die, fork, are interrupted or end: nothing hangs, nothing is left behind.

Scripts run in processes of their own with a mark in their environment: whatever still carries it afterwards was left behind.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine import FuturesExecutor
from tests.kit.processes import Script
from vinecore import Manager, PythonTask
from vinecore.errors import LoopDied, SlotLost, UsageError

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def ex() -> Iterator[FuturesExecutor]:
    with FuturesExecutor(max_workers=2) as executor:
        executor.submit(abs, -1).result(LIMIT_S)
        yield executor


def add(x: int, y: int = 1) -> int:
    return x + y


# ---------------------------------------------------------------- calls that end their process


def note(directory: str) -> None:
    """Leave one more file there: executions can be counted."""
    Path(directory, uuid.uuid4().hex).touch()


def exit_at_once(directory: str) -> None:
    note(directory)
    os._exit(3)


def crash(directory: str) -> None:
    note(directory)
    ctypes.string_at(0)


class CrashesWhenPickled:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        crash(self.directory)
        return ()


class CrashesWhenUnpickled:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return crash, (self.directory,)


@pytest.mark.parametrize("function", [exit_at_once, crash, CrashesWhenPickled])
def test_call_that_ends_its_process_is_retried_then_given_up(
    ex: FuturesExecutor, tmp_path: Path, function: Callable[[str], Any]
) -> None:
    before = [ex.submit(add, i) for i in range(200)]
    bad = ex.submit(function, str(tmp_path))
    after = [ex.submit(add, i) for i in range(200)]
    assert [future.result(LIMIT_S) for future in before + after] == 2 * list(range(1, 201))
    with pytest.raises(SlotLost, match=f"{function.__name__}.*lost 6 times.*not tried again"):
        bad.result(LIMIT_S)
    # The first try and the five losses that are allowed.
    assert len(list(tmp_path.iterdir())) == 6
    assert ex.submit(add, 1).result(LIMIT_S) == 2


@pytest.fixture
def deadly_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which the module leaves a line each time it is imported, which ends the process."""
    imported = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "deadly.py").write_text(f"import os\nprint(file=open({str(imported)!r}, 'a'))\nos._exit(7)\n")
    path = str(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")])))
    return imported


def needs_deadly(number: int) -> int:
    import deadly  # type: ignore[import-not-found]

    return int(deadly.one) + number


def test_modules_whose_import_ends_the_process_hurt_only_the_calls_that_need_them(deadly_module: Path) -> None:
    with FuturesExecutor(2) as executor:
        before = [executor.submit(add, i) for i in range(200)]
        bad = [executor.submit(needs_deadly, i) for i in range(4)]
        after = [executor.submit(add, i) for i in range(200)]
        assert [future.result(LIMIT_S) for future in before + after] == 2 * list(range(1, 201))
        for future in bad:
            with pytest.raises(SlotLost, match=r"needs_deadly.*lost 6 times.*ended with exit code 7"):
                future.result(LIMIT_S)
        assert executor.submit(add, 1).result(LIMIT_S) == 2
    # Once in the parent, six times for each call: the parent was not started again to try once more.
    assert len(deadly_module.read_text().splitlines()) == 25


def test_python_tasks_with_modules_whose_import_ends_the_process(deadly_module: Path) -> None:
    with Manager(local_cores=2) as m:
        good, bad = [PythonTask(add, i) for i in range(20)], [PythonTask(needs_deadly, i) for i in range(2)]
        for task in (*good[:10], *bad, *good[10:]):
            m.submit(task)
        while not m.empty():
            assert m.wait(LIMIT_S) is not None
        assert [task.output for task in good] == list(range(1, 21))
        assert all(isinstance(task.output, SlotLost) and "exit code 7" in str(task.output) for task in bad)


def test_argument_that_ends_the_process_when_unpickled(ex: FuturesExecutor, tmp_path: Path) -> None:
    bad = ex.submit(id, CrashesWhenUnpickled(str(tmp_path)))
    with pytest.raises(SlotLost, match="lost 6 times"):
        bad.result(LIMIT_S)
    assert ex.submit(add, 1).result(LIMIT_S) == 2


def die_once(directory: str) -> str:
    first = not list(Path(directory).iterdir())
    note(directory)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_call_that_loses_its_process_once_succeeds(ex: FuturesExecutor, tmp_path: Path) -> None:
    assert ex.submit(die_once, str(tmp_path)).result(LIMIT_S) == "alive"
    assert len(list(tmp_path.iterdir())) == 2


def test_calls_in_a_row_that_end_their_process(ex: FuturesExecutor, tmp_path: Path) -> None:
    """Many losses at once: each is blamed alone, none takes the library down."""
    bad = [ex.submit(exit_at_once, str(tmp_path)) for _ in range(4)]
    good = [ex.submit(add, i) for i in range(50)]
    assert [future.result(LIMIT_S) for future in good] == list(range(1, 51))
    assert all(isinstance(future.exception(LIMIT_S), SlotLost) for future in bad)
    assert len(list(tmp_path.iterdir())) == 24


def spawn_child(path: str) -> int:
    """A call may start processes of its own."""
    return subprocess.run([sys.executable, "-c", f"open({path!r}, 'w').write('x')"], check=True).returncode


def test_call_may_start_processes(ex: FuturesExecutor, tmp_path: Path) -> None:
    assert ex.submit(spawn_child, str(tmp_path / "made")).result(LIMIT_S) == 0
    assert (tmp_path / "made").exists()


def started_then_open(directory: str, number: int) -> int:
    """Say that it started, then wait for the gate."""
    note(directory)
    until = time.monotonic() + LIMIT_S
    while not Path(directory, "gate").exists():
        if time.monotonic() > until:
            raise RuntimeError("the gate never opened")
        time.sleep(0.002)
    return number


def kill_worker(executor: FuturesExecutor, directory: Path, runs: int, number: int = signal.SIGKILL) -> None:
    """Kill the embedded worker, with this signal, when this many executions have started."""
    until = time.monotonic() + LIMIT_S
    while len(list(directory.iterdir())) < runs:
        assert time.monotonic() < until, "the calls never started"
        time.sleep(0.005)
    assert executor.engine.embedded is not None
    executor.engine.embedded.process.send_signal(number)


def test_work_goes_on_when_the_worker_is_killed(tmp_path: Path) -> None:
    with FuturesExecutor(max_workers=2) as executor:
        futures = [executor.submit(started_then_open, str(tmp_path), i) for i in range(4)]
        kill_worker(executor, tmp_path, 2)
        kill_worker(executor, tmp_path, 4, signal.SIGRTMIN + 6)  # a signal without a name
        (tmp_path / "gate").touch()
        assert [future.result(LIMIT_S) for future in futures] == [0, 1, 2, 3]


def test_worker_that_is_always_killed_fails_what_waits(tmp_path: Path) -> None:
    executor = FuturesExecutor(max_workers=1)
    future = executor.submit(started_then_open, str(tmp_path), 1)
    for runs in range(1, 5):
        kill_worker(executor, tmp_path, runs)
    with pytest.raises(LoopDied, match="this machine ended 4 times within 60 s, and it was killed by SIGKILL the last time"):
        future.result(LIMIT_S)
    with pytest.raises(LoopDied, match="ended 4 times"):
        executor.submit(abs, 1)
    executor.shutdown()


# ---------------------------------------------------------------- forks of the user's process


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_may_exit_and_gets_a_clear_error(ex: FuturesExecutor) -> None:
    future = ex.submit(add, 1)
    assert future.result(LIMIT_S) == 2
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = b"nothing was raised"
        try:
            ex.submit(add, 2)
        except UsageError as error:
            text = str(error).encode()
        finally:
            os.write(write, text)
            del future
            ex.shutdown()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "another process" in text and "make a new one here" in text
    assert future.result(0) == 2
    assert ex.submit(add, future).result(LIMIT_S) == 3


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_multiprocessing_pool_of_forks_beside_us(ex: FuturesExecutor) -> None:
    futures = [ex.submit(add, i) for i in range(100)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(add, range(10)) == list(range(1, 11))
        pool.close()
        pool.join()
    assert [future.result(LIMIT_S) for future in futures] == list(range(1, 101))
    assert ex.submit(add, 1).result(LIMIT_S) == 2


# ---------------------------------------------------------------- scripts


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    made: list[Script] = []

    def run(text: str) -> Script:
        made.append(Script(tmp_path, text))
        return made[-1]

    yield run
    for one in made:
        one.kill()


AT_EXIT = """
    import sys, time
    from daskvine import FuturesExecutor

    def slow(i):
        time.sleep(0.05)
        print("done", i, flush=True)

    if __name__ == "__main__":
        executor = FuturesExecutor(max_workers=2)
        futures = [executor.submit(slow, i) for i in range(8)]
        {last}
"""


@pytest.mark.parametrize(
    "last",
    [
        "pass",
        "executor.shutdown(wait=False)",
        "del futures",
        "del executor, futures",
        "sys.exit(0)",
        "executor.shutdown(); print('closed')",
    ],
)
def test_pending_work_finishes_at_the_end(script: Callable[[str], Script], last: str) -> None:
    run = script(AT_EXIT.format(last=last))
    out, err, code = run.end()
    assert (code, err) == (0, "")
    assert sorted(line for line in out.splitlines() if line != "closed") == [f"done {i}" for i in range(8)]
    assert run.left_after(2.0) == []


def test_cancelled_work_does_not_run_at_the_end(script: Callable[[str], Script]) -> None:
    run = script(AT_EXIT.format(last="executor.shutdown(wait=False, cancel_futures=True)"))
    out, err, code = run.end()
    assert (code, err) == (0, "")
    assert len(out.splitlines()) < 8
    assert run.left_after(2.0) == []


def test_error_at_the_end_is_shown_and_work_finishes(script: Callable[[str], Script]) -> None:
    run = script(AT_EXIT.format(last="raise ValueError('of the script')"))
    out, err, code = run.end()
    assert code == 1 and "of the script" in err
    assert len(out.splitlines()) == 8
    assert run.left_after(2.0) == []


def test_no_process_is_left_after_shutdown(script: Callable[[str], Script]) -> None:
    run = script(
        """
        import os, time
        from daskvine import FuturesExecutor

        with FuturesExecutor(max_workers=2) as executor:
            assert executor.submit(os.getpid).result(30) != os.getpid()
        print("closed", flush=True)
        time.sleep(60)
        """
    )
    assert run.line() == "closed"
    assert run.pids() == [run.process.pid]


BUSY = """
    import time
    from daskvine import FuturesExecutor

    def started(i):
        print("started", flush=True)
        time.sleep(60)

    if __name__ == "__main__":
        executor = FuturesExecutor(max_workers=2)
        futures = [executor.submit(started, i) for i in range(4)]
        {last}
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_process_is_left_when_the_program_is_killed(script: Callable[[str], Script], number: signal.Signals) -> None:
    run = script(BUSY.format(last="futures[0].result()"))
    assert [run.line(), run.line()] == ["started"] * 2
    assert len(run.pids()) >= 4
    run.process.send_signal(number)
    assert run.process.wait(LIMIT_S) == -number
    assert run.left_after(2.0) == []


def test_interrupt_during_result(script: Callable[[str], Script]) -> None:
    """Ctrl-C in the terminal goes to the whole foreground process group."""
    run = script(
        """
        import os, time
        from daskvine import FuturesExecutor

        def wait_for_gate(i):
            print("started", flush=True)
            until = time.monotonic() + 60
            while not os.path.exists("gate") and time.monotonic() < until:
                time.sleep(0.002)
            return i

        if __name__ == "__main__":
            executor = FuturesExecutor(max_workers=2)
            futures = [executor.submit(wait_for_gate, i) for i in range(2)]
            try:
                futures[0].result()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            open("gate", "w").close()
            print([future.result(30) for future in futures], executor.submit(abs, -5).result(30), flush=True)
            executor.shutdown()
        """
    )
    assert [run.line(), run.line()] == ["started"] * 2
    begin = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.line() == "interrupted"
    assert time.monotonic() - begin < 1.0
    out, err, code = run.end()
    assert (out.strip(), err, code) == ("[0, 1] 5", "", 0)
    assert run.left_after(2.0) == []


def test_interrupt_ends_a_program_that_does_not_catch_it(script: Callable[[str], Script]) -> None:
    run = script(BUSY.format(last="futures[0].result()"))
    assert [run.line(), run.line()] == ["started"] * 2
    os.killpg(run.process.pid, signal.SIGINT)
    # It now waits for what is pending, as every executor does at the end; the second Ctrl-C ends that too.
    assert run.process.stderr is not None
    assert "Traceback" in run.process.stderr.readline()
    deadline = time.monotonic() + LIMIT_S
    while run.process.poll() is None and time.monotonic() < deadline:
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.1)
    assert run.process.returncode not in (None, 0)
    assert run.left_after(5.0) == []


def test_interrupt_while_the_end_of_a_block_waits_cancels_what_runs(script: Callable[[str], Script]) -> None:
    run = script(
        """
        import time
        from daskvine import FuturesExecutor

        def last(i):
            print("started", flush=True)
            time.sleep(600)

        if __name__ == "__main__":
            try:
                with FuturesExecutor(max_workers=2) as executor:
                    futures = [executor.submit(last, i) for i in range(4)]
            except KeyboardInterrupt:
                print("interrupted", all(future.cancelled() for future in futures), flush=True)
        """
    )
    assert [run.line(), run.line()] == ["started"] * 2
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.line() == "interrupted True"
    out, err, code = run.end()
    assert (out, err, code) == ("", "", 0)
    assert run.left_after(2.0) == []


def test_program_that_forks_leaves_nothing(script: Callable[[str], Script]) -> None:
    """A child that the user forked must not keep the worker alive by holding its lifeline."""
    run = script(
        """
        import os, time
        from daskvine import FuturesExecutor

        executor = FuturesExecutor(max_workers=1)
        assert executor.submit(abs, -1).result(30) == 1
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    child = int(run.line())
    assert run.process.wait(LIMIT_S) == -signal.SIGKILL
    until = time.monotonic() + 2.0
    while run.pids() != [child] and time.monotonic() < until:
        time.sleep(0.01)
    assert run.pids() == [child]

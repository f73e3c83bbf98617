"""``DaskVine.get`` when slots die, programs are interrupted, and requests do not fit; the progress bar on a terminal.

Scripts run in processes of their own, marked through their environment: whatever carries the mark afterwards was left behind.
"""

from __future__ import annotations

import ctypes
import itertools
import operator
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine
from tests.dask.conftest import Runs
from tests.integration.test_futures_faults import LIMIT_S, Script, script
from vinecore.errors import LostError, SlotLost

__all__ = ["script"]  # a fixture
Graph = dict[Hashable, Any]


def inc(x: Any) -> Any:
    return x + 1


def mark(path: str, value: Any, *inputs: Any) -> Any:
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


# ---------------------------------------------------------------- slots that die


def exit_at_once(path: str, *inputs: Any) -> None:
    mark(path, "died")
    os._exit(3)


def crash(path: str, *inputs: Any) -> None:
    mark(path, "died")
    ctypes.string_at(0)


@pytest.mark.parametrize(("function", "how"), [(exit_at_once, "ended with exit code 3"), (crash, "was killed by SIGSEGV")])
def test_vertex_that_ends_its_process_is_retried_then_given_up(
    m: DaskVine, runs: Runs, function: Callable[..., None], how: str
) -> None:
    graph: Graph = {("n", number): (inc, number + 0.5) for number in range(40)}
    graph["deadly"] = (function, str(runs.path), ("n", 3))
    graph["end"] = (operator.add, "deadly", ("n", 4))
    with pytest.raises(SlotLost, match=rf"lost 6 times: its process {how}") as caught:
        m.get(graph, ["end", *[("n", number) for number in range(40)]])
    assert any("key 'end'" in note or "key 'deadly'" in note for note in caught.value.__notes__)
    assert len(runs) == 6
    assert isinstance(caught.value, LostError)
    assert m.get({"x": (inc, 1)}, "x") == 2


def test_neighbours_of_a_dying_vertex_are_fine(m: DaskVine, tmp_path: Path, runs: Runs) -> None:
    graph: Graph = {("n", number): (mark, str(runs.path), number + 0.5) for number in range(300)}
    graph["dies"] = (die_once, str(tmp_path / "flag"), ("n", 0))
    keys = [*[("n", number) for number in range(300)], "dies"]
    values = m.get(graph, keys)
    assert values[:-1] == tuple(number + 0.5 for number in range(300))
    assert values[-1] == 0.5


def die_once(flag: str, value: Any) -> Any:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def add_arrays(left: Any, right: Any) -> Any:
    return left + right


def test_values_kept_in_a_slot_and_lost_with_it_are_made_again(m: DaskVine, tmp_path: Path) -> None:
    """Large values between the vertices of a bundle live in the slot only; the death comes in the middle of several chains."""
    for size in (10, 60_000):
        graph: Graph = {}
        for chain in range(12):
            graph["make", chain] = (np.full, size, float(chain))
            graph["twice", chain] = (add_arrays, ("make", chain), ("make", chain))
            graph["thrice", chain] = (add_arrays, ("twice", chain), ("make", chain))
            graph["end", chain] = (add_arrays, ("thrice", chain), ("twice", chain))
        graph["thrice", 5] = (die_once, str(tmp_path / f"flag-{size}"), (add_arrays, ("twice", 5), ("make", 5)))
        graph["sum"] = (sum, [("end", chain) for chain in range(12)])
        total, last = m.get(graph, ["sum", ("end", 11)], reuse=False)
        assert (tmp_path / f"flag-{size}").exists()
        np.testing.assert_array_equal(total, np.full(size, 5.0 * sum(range(12))))
        np.testing.assert_array_equal(last, np.full(size, 55.0))
    m.engine.call_in_loop(m.engine.machine.check)


def test_slots_that_die_often_at_random_places(m: DaskVine, tmp_path: Path) -> None:
    deadly = {3, 17, 40, 41, 66, 90}
    graph: Graph = {("v", 0): (np.zeros, 50_000)}
    for number in range(1, 100):
        graph["v", number] = (inc, (add_arrays, ("v", number - 1), ("v", number // 2)))
        if number in deadly:
            graph["v", number] = (die_once, str(tmp_path / str(number)), graph["v", number])
    expected = [0.0]
    for number in range(1, 100):
        expected.append(expected[number - 1] + expected[number // 2] + 1)
    value = m.get(graph, ("v", 99), reuse=False)
    np.testing.assert_array_equal(value, np.full(50_000, expected[99]))
    assert len(list(tmp_path.iterdir())) == len(deadly)


# ---------------------------------------------------------------- resources


def timed(path: str, seconds: float, *inputs: Any) -> None:
    start = time.monotonic()
    until = start + seconds
    while time.monotonic() < until:
        pass
    mark(path, f"{start}:{time.monotonic()}")


def spans(runs: Runs) -> list[tuple[float, float]]:
    return sorted((float(line.split(":")[0]), float(line.split(":")[1])) for line in runs.lines())


def test_vertices_that_ask_for_all_cores_run_one_at_a_time(m: DaskVine, runs: Runs) -> None:
    graph: Graph = {("t", number): (timed, str(runs.path), 0.02, number) for number in range(8)}
    m.get(graph, list(graph), resources={"cores": 2})
    taken = spans(runs)
    assert len(taken) == 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken)), taken


def test_annotated_resources_of_single_keys(m: DaskVine, runs: Runs) -> None:
    import dask

    with dask.annotate(resources={"cores": 2}):
        alone = [dask.delayed(timed)(str(runs.path), 0.02, number) for number in range(6)]
    dask.compute(*alone, scheduler=m.get, optimize_graph=False)
    taken = spans(runs)
    assert len(taken) == 6
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken)), taken


TOO_MUCH = """
    import signal, sys, threading
    from daskvine import DaskVine

    def inc(x):
        return x + 1

    if __name__ == "__main__":
        # With a port another worker may come: such a request waits for it.
        with DaskVine(local_cores=2, port=PORT) as m:
            print(m.get({"x": (inc, 1)}, "x"), flush=True)
            m.tune("no-worker-notice", 0.3)
            try:
                m.get({"x": (inc, 5)}, "x", resources={"cores": 64})
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            except ValueError as error:
                print("refused" if "64 cores" in str(error) else error, flush=True)
            print(m.get({"x": (inc, 2)}, "x"), flush=True)
"""


def test_request_that_no_worker_can_ever_fit_fails(script: Callable[[str], Script]) -> None:
    out, err, code = script(TOO_MUCH.replace("PORT", "None")).end()
    assert (out.split(), code) == (["2", "refused", "3"], 0)
    assert err.startswith("vine: ") and "64 cores" in err, err


def test_request_that_fits_nowhere_is_told_and_can_be_interrupted(
    script: Callable[[str], Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = script(TOO_MUCH.replace("PORT", "0"))
    assert run.line() == "2"
    assert run.process.stderr is not None
    notice = run.process.stderr.readline()
    assert notice.startswith("vine: ") and "64" in notice and "cores" in notice, notice
    run.process.send_signal(signal.SIGINT)
    out, err, code = run.end()
    assert (out.split(), err, code) == (["interrupted", "3"], "", 0)
    assert run.left_after(2.0) == []


# ---------------------------------------------------------------- Ctrl-C, exceptions of __main__

INTERRUPTED = """
    import os, signal, sys, time
    from pathlib import Path
    from daskvine import DaskVine

    def slow(number):
        Path(f"started-{number}").touch()
        print("started", flush=True)
        time.sleep(30)
        Path("finished").touch()

    def inc(x):
        return x + 1

    if __name__ == "__main__":
        with DaskVine(local_cores=2) as m:
            graph = {("s", n): (slow, n) for n in range(50)}
            graph["end"] = (max, list(graph))
            try:
                m.get(graph, "end")
            except KeyboardInterrupt:
                print("interrupted", time.monotonic(), flush=True)
            graph = {("i", n): (inc, n + 0.5) for n in range(100)}
            graph["end"] = (sum, list(graph))
            print(m.get(graph, "end"), flush=True)
            print(len(list(Path().glob("started-*"))), Path("finished").exists(), flush=True)
"""


def test_interrupt_during_get(script: Callable[[str], Script]) -> None:
    """Ctrl-C in a terminal goes to the whole foreground process group."""
    run = script(INTERRUPTED)
    assert [run.line(), run.line()] == ["started"] * 2
    sent = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    word, at = run.line().split()
    assert word == "interrupted" and float(at) - sent < 1.0
    out, err, code = run.end()
    assert (out.splitlines(), err, code) == (["5100.0", "2 False"], "", 0)
    assert run.left_after(2.0) == []


IN_MAIN = """
    from daskvine import DaskVine

    class Trouble(Exception):
        def __init__(self, where, level):
            super().__init__(where, level)
            self.level = level

    def fail(x):
        raise Trouble("here", level=x)

    if __name__ == "__main__":
        with DaskVine(local_cores=1) as m:
            try:
                m.get({"key of trouble": (fail, 9), "y": (fail, "key of trouble")}, "key of trouble")
            except Trouble as error:
                print(type(error) is Trouble, error.level, error.args)
                print("in fail" in str(error.__cause__), error.__notes__)
"""


def test_exception_class_of_the_main_module(script: Callable[[str], Script]) -> None:
    out, err, code = script(IN_MAIN).end()
    assert (err, code) == ("", 0)
    first, second = out.splitlines()
    assert first == "True 9 ('here', 9)"
    assert second.startswith("True ") and "'key of trouble'" in second


def test_uncaught_error_of_a_vertex_ends_the_program_with_its_traceback(script: Callable[[str], Script]) -> None:
    run = script(
        """
        from daskvine import DaskVine

        def divide(x):
            return 1 // x

        if __name__ == "__main__":
            m = DaskVine(local_cores=1)
            m.get({"x": (divide, 0)}, "x")
        """
    )
    out, err, code = run.end()
    assert (out, code) == ("", 1)
    assert "in divide" in err and "ZeroDivisionError" in err and "while computing the key 'x'" in err
    assert run.left_after(2.0) == []


def test_an_error_names_the_chain_of_vertices_that_ran_as_one(m: DaskVine) -> None:
    graph: Graph = {"a": (inc, -1), "bad": (operator.truediv, 1, "a"), "last": (inc, "bad")}
    with pytest.raises(ZeroDivisionError) as caught:
        m.get(graph, "last")
    assert caught.value.__notes__[-1] == (
        "while computing the key 'last' of the graph, or one of its chain before it: 'a', 'bad'"
    )


def test_script_without_a_main_guard(script: Callable[[str], Script]) -> None:
    """Slots are forks of a process that never ran the user's program: no guard is needed."""
    out, err, code = script(
        """
        from daskvine import DaskVine
        m = DaskVine(local_cores=2)
        print(m.get({"a": 1, "b": (lambda x: x + 1, "a")}, "b"))
        m.close()
        """
    ).end()
    assert (out.split(), err, code) == (["2"], "", 0)


# ---------------------------------------------------------------- the manager goes away, nobody is there


def test_get_after_close_says_so() -> None:
    from vinecore.errors import LoopDied

    m = DaskVine(local_cores=1)
    assert m.get({"x": (inc, 1)}, "x") == 2
    m.close()
    with pytest.raises(LoopDied, match="closed"):
        m.get({"x": (inc, 2)}, "x")


def test_close_in_another_thread_ends_a_waiting_get(tmp_path: Path) -> None:
    from vinecore.errors import LoopDied

    m = DaskVine(local_cores=1)
    gate = tmp_path / "started"
    closer = threading.Thread(target=close_when, args=(m, gate))
    closer.start()
    with pytest.raises(LoopDied):
        m.get({"x": (start_and_wait, str(gate))}, "x")
    closer.join(LIMIT_S)
    assert not closer.is_alive()


def start_and_wait(path: str) -> None:
    Path(path).touch()
    time.sleep(LIMIT_S)


def close_when(m: DaskVine, path: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.005)
    m.close()


# ---------------------------------------------------------------- the progress bar

BAR = """
    import sys, time
    from daskvine import DaskVine

    def slow(x):
        time.sleep(0.01)
        return x

    def fail(x):
        time.sleep(0.5)
        raise ValueError("of the vertex")

    if __name__ == "__main__":
        with DaskVine(local_cores=2) as m:
            graph = {("s", n): (slow, n + 0.5) for n in range(120)}
            graph["end"] = (sum, list(graph))
            print(m.get(graph, "end", progress_label="reading events"))
            try:
                m.get({"x": (fail, 1)}, "x")
            except ValueError:
                print("failed well")
            print(m.get({"x": (slow, 3)}, "x", progress_disable=True))
"""


def on_a_terminal(directory: Path, text: str) -> str:
    """What a script shows on a terminal."""
    path = directory / "script.py"
    path.write_text(textwrap.dedent(text))
    ours, theirs = pty.openpty()
    search = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": search}
    process = subprocess.Popen(
        [sys.executable, str(path)],
        cwd=directory,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    until = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
        assert process.wait(LIMIT_S) == 0, shown.decode()
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    return shown.decode()


def test_progress_bar_on_a_terminal_shows_and_ends(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the progress bar needs rich: pip install 'daskvine[progress]'")
    shown = on_a_terminal(tmp_path, BAR)
    assert "reading events" in shown and "100%" in shown
    assert "7200.0" in shown and "failed well" in shown
    assert "Traceback" not in shown
    # The cursor is visible again.
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_no_bar_where_there_is_no_terminal(script: Callable[[str], Script]) -> None:
    out, err, code = script(BAR).end()
    assert (out.split("\n"), err, code) == (["7200.0", "failed well", "3", ""], "", 0)

"""How a task ended, in the words of ``task.reason``: signals, outputs that cannot be taken, commands that the kernel refuses."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, eventually
from tests.kit.deep import make_deep
from vinecore import Manager, PythonTask, Task
from vinecore.runtime.forking_slot import _missing_text
from vinecore.wire.messages import Report


@pytest.fixture(scope="module")
def narrow() -> Iterator[Manager]:
    """A manager whose worker runs one task after the other in one slot."""
    with Manager(local_cores=1) as manager:
        yield manager


def run(m: Manager, command: str, **options: Any) -> Task:
    task = Task(command, cores=1, memory=10, disk=100, **options)
    m.submit(task)
    assert m.wait(LIMIT_S) is task
    return task


# Real-time signals have no name of their own, except the first and the last.
@pytest.mark.parametrize(("number", "named"), [(9, "signal 9 (SIGKILL)"), (15, "signal 15 (SIGTERM)"), (40, "signal 40")])
def test_a_death_by_signal_is_no_exit_code(m: Manager, number: int, named: str) -> None:
    killed, left = run(m, f"kill -{number} $$"), run(m, f"exit {number}")
    assert (killed.exit_code, killed.result) == (left.exit_code, left.result) == (number, "success")
    assert killed.reason == f"it was killed by {named}"
    assert left.reason == f"it ended with exit code {number}"


def test_a_task_that_was_killed_before_it_made_its_outputs(m: Manager) -> None:
    task = run(m, "kill -9 $$", outputs={m.declare_temp(): "o", m.declare_temp(): "p"})
    assert (task.result, task.exit_code) == ("output missing", 9)
    assert task.reason == "it was killed by signal 9 (SIGKILL); it did not make o, p"


def test_a_limit_is_no_death_by_signal(m: Manager) -> None:
    task = run(m, "sleep 60", time_max=1)
    assert (task.exit_code, task.reason) == (9, "it was ended by its limit 'max wall time' of 1 s")


@pytest.mark.parametrize("output", [False, True])
def test_what_a_task_links_in_the_place_of_its_directory_is_left_alone(m: Manager, tmp_path: Path, output: bool) -> None:
    precious = tmp_path / "precious"
    (precious / "below").mkdir(parents=True)
    for path in (precious / "o", precious / "below/file"):
        path.write_text("of the user")
    made = m.declare_temp()
    swap = 'here=$PWD; cd ..; mv "$here" "$here.aside"; ln -s "$PRECIOUS" "$here"'
    task = Task(swap, cores=1, memory=10, disk=100, outputs={made: "o"} if output else {}, env={"PRECIOUS": str(precious)})
    m.submit(task)
    assert m.wait(LIMIT_S) is task and task.successful(), task.reason
    assert run(m, "pwd").successful()
    assert [path.read_text() for path in (precious / "o", precious / "below/file")] == ["of the user"] * 2
    if output:
        assert m.fetch_file(made) == "of the user"


def test_an_output_that_is_a_directory(m: Manager) -> None:
    task = run(m, "mkdir o; echo x > o/x", outputs={m.declare_temp(): "o"})
    assert (task.result, task.exit_code) == ("output missing", 0)
    said = "its output o is a directory, which cannot be an output: pack it (tar -cf o.tar o) and take the archive"
    assert task.reason == said
    both = run(m, "mkdir o", outputs={m.declare_temp(): "gone", m.declare_temp(): "o"})
    assert both.reason == f"it did not make gone; {said}"
    assert run(m, "true", outputs={m.declare_temp(): "gone"}).reason == "it did not make its output gone"


def test_reasons_that_quote_long_names_are_shortened(m: Manager) -> None:
    """They went into a message twice, or three times, beside the name itself: with some the worker was thrown out."""
    variable = Task("true", cores=1)
    variable.set_env_var("V" * 8_000_000, "x")
    path = Task("true", cores=1, outputs={m.declare_temp(): "d/" * 3_000_000 + "x"})
    for task, said in ((variable, "is too long"), (path, "File name too long")):
        m.submit(task)
        assert m.wait(LIMIT_S) is task
        assert said in task.reason and "characters left out" in task.reason and len(task.reason) < 100_000
    assert run(m, "true").result == "success"


def test_many_directories_as_outputs_make_no_endless_reason(tmp_path: Path) -> None:
    name = "n" * 240
    (tmp_path / name).mkdir()
    report = Report(0, b"", [], [name] * 30_000, [])
    text = _missing_text(report, tmp_path, {})
    assert text.startswith(f"its output {name} is a directory") and len(text) < 100_000


def test_a_function_whose_output_is_a_directory(m: Manager) -> None:
    task = PythonTask(os.mkdir, "o")
    task.add_output(m.declare_temp(), "o")
    m.submit(task)
    assert m.wait(LIMIT_S) is task
    assert task.result == "output missing" and "its output o is a directory" in task.reason


KIB = 1024
TOO_LONG = (
    "is too long: it has {} bytes, and Linux takes less than 128 KiB for one {}; put it into a file and add that as an input"
)
# The limits are said in pages, and the texts above are for the usual ones.
usual_pages = pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4 * KIB, reason="pages are larger here, and so are the limits")


@usual_pages
def test_a_command_that_the_kernel_refuses_comes_back_at_once(m: Manager) -> None:
    task = run(m, "echo " + "x" * 300_000)
    assert (task.result, task.exit_code) == ("forsaken", -1)
    assert task.reason == "the command line " + TOO_LONG.format(300_005, "argument")
    assert task.output == task.reason + "\n"
    assert run(m, "sh script | wc -c", inputs={m.declare_buffer("echo " + "x" * 300_000): "script"}).output == "300001\n"


@usual_pages
def test_the_longest_command_and_the_longest_variable(m: Manager) -> None:
    """The one runs, one byte more does not."""
    command, name = "true #".ljust(128 * KIB - 1, "x"), "LONG_VARIABLE"
    value = "x" * (128 * KIB - 1 - len(name + "="))
    assert run(m, command, env={name: value}).successful()
    assert "command line is too long: it has 131072 bytes" in run(m, command + "x").reason
    reason = run(m, "true", env={name: value + "x"}).reason
    assert reason == f"the environment variable {name} " + TOO_LONG.format(131_072, "variable")


@usual_pages
def test_an_environment_that_is_too_large_as_a_whole(m: Manager) -> None:
    task = run(m, "true", env={f"V{number}": "x" * 100 * KIB for number in range(70)})
    assert task.result == "forsaken"
    assert "the command line and the environment are too long" in task.reason and "put the largest into files" in task.reason


@pytest.mark.parametrize(
    "harm",
    [
        'ln -s "$PRECIOUS" ../spare',
        "mkfifo ../spare",
        "mkdir ../spare && touch ../spare/o",
        'around=$(dirname "$PWD"); cp -r "$PWD" "$PRECIOUS"; mv "$around" "$around.aside"; ln -s "$PRECIOUS" "$around"',
        'around=$(dirname "$PWD"); rm -rf "$around"; touch "$around"',
    ],
)
def test_what_a_task_puts_in_the_way_of_later_ones(narrow: Manager, tmp_path: Path, harm: str) -> None:
    m = narrow
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "o").write_text("of the user")
    first = Task(f"echo mine > o; {harm}", cores=1, memory=10, disk=100, env={"PRECIOUS": str(precious)})
    m.submit(first)
    assert m.wait(LIMIT_S) is first and first.successful(), first.reason
    copies = {path: path.read_text() for path in precious.rglob("*") if path.is_file()}
    for _ in range(2):
        made = m.declare_temp()
        task = run(m, "pwd -P; cat in > o", inputs={m.declare_buffer(b"innocent"): "in"}, outputs={made: "o"})
        assert task.successful(), task.reason
        assert not str(task.output).startswith(str(tmp_path)) and m.fetch_file(made) == "innocent"
    assert {path: path.read_text() for path in precious.rglob("*") if path.is_file()} == copies


@pytest.mark.parametrize("killed", [False, True])
def test_directories_deeper_than_calls_go_are_removed(killed: bool) -> None:
    code = "import os\nfor _ in range(3000):\n os.mkdir('d')\n os.chdir('d')"
    with Manager(local_cores=1) as m:
        assert run(m, f'"$PYTHON" -c "{code}"', env={"PYTHON": sys.executable}).successful()
        task = run(m, "ls ..; dirname $(dirname $PWD)")
        sandbox, workspace = str(task.output).split()
        assert sandbox.startswith("task.")
        # What others leave there goes with the worker.
        make_deep(Path(workspace, "tmp"), 3000)
        if killed:
            assert m.engine.embedded is not None
            os.kill(m.engine.embedded.process.pid, signal.SIGKILL)
    # Of a killed one its guard removes it; so it does of one that was given up because that took it too long on a busy machine.
    assert eventually(lambda: not Path(workspace).exists(), LIMIT_S)


def test_what_has_passed_its_end_is_not_begun(m: Manager, tmp_path: Path) -> None:
    """It came back as a success when it was quick enough."""
    command, function = Task(f"touch {tmp_path}/ran", cores=1), PythonTask(Path.touch, tmp_path / "ran")
    for task in (command, function):
        task.set_time_end((time.time() - 5) * 1e6)
        m.submit(task)
        assert m.wait(LIMIT_S) is task and (task.result, task.exit_code) == ("max end time", 9)
    assert not list(tmp_path.iterdir())


def test_what_waits_for_a_worker_ends_at_its_time() -> None:
    with Manager(port=0) as m:
        task = Task("true", cores=1)
        task.set_time_end((time.time() + 0.5) * 1e6)
        m.submit(task)
        assert m.wait(LIMIT_S) is task and (task.result, task.exit_code) == ("max end time", 9)


def slow(seconds: float) -> bytes:
    time.sleep(seconds)
    return b"a value"


@pytest.mark.parametrize("by", ["wall time", "end time"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_value_of_one_that_a_limit_has_ended_cannot_be_read(m: Manager, by: str, raw: bool) -> None:
    """It was read as an empty file, or as a value that nobody could decode; who reads it before and after its end is told."""
    maker = PythonTask(slow, 60.0)
    maker.set_cores(1)
    maker.enable_temp_output()
    if raw:
        maker.disable_output_serialization()
    if by == "wall time":
        maker.set_time_max(0.5)
    else:
        maker.set_time_end((time.time() + 0.5) * 1e6)
    m.submit(maker)
    early, late = (Task("wc -c < data; touch made", cores=1, memory=10, disk=100) for _ in range(2))
    for reader in (early, late):
        reader.add_input(maker.output_file, "data")
    m.submit(early)
    assert m.wait(LIMIT_S) is maker and maker.result == f"max {by}"
    m.submit(late)
    for reader in (early, late):
        assert m.wait(LIMIT_S) is reader
        assert (reader.result, reader.output) == ("input missing", None)
        assert f"was ended by its limit (max {by})" in reader.reason
    if not raw:
        called = PythonTask(len, maker.output_file)
        called.set_cores(1)
        m.submit(called)
        assert m.wait(LIMIT_S) is called and called.result == "input missing"
    assert m.fetch_file(maker.output_file) is None

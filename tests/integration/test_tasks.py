"""Shell commands in private directories, on real workers: files, results, environment, limits, resources, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.calls import LIMIT_S, eventually
from vinecore import FunctionCall, Manager, PythonTask, Task

BIG_BYTES = 2_000_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def leaves_nothing_waiting(m: Manager) -> Iterator[None]:
    """Whatever a test did not wait for is cancelled: the manager is shared by the module."""
    yield
    m.cancel_all()
    while not m.empty() and m.wait(LIMIT_S) is not None:
        pass
    assert m.empty()


def small(command: str, **options: Any) -> Task:
    """A task that leaves room for another one beside it."""
    return Task(command, **{"cores": 1, "memory": 10, "disk": 100, **options})


def run(m: Manager, *tasks: Task) -> list[Task]:
    """Submit and wait for all of them; in order of submission."""
    for task in tasks:
        m.submit(task)
    for _ in tasks:
        assert m.wait(LIMIT_S) is not None, "a task never came back"
    return list(tasks)


def ended(task: Task) -> tuple[str, int]:
    return task.result, task.exit_code


# ------------------------------------------------------------ files


def test_a_program_with_a_file_in_and_a_file_out(m: Manager, tmp_path: Path) -> None:
    program, source, target = tmp_path / "prog", tmp_path / "in.txt", tmp_path / "deep" / "out.txt"
    program.write_text("#!/bin/sh\ncat $1\necho to stderr >&2\n")
    program.chmod(0o755)
    source.write_text("hello\n")
    task = small("./prog in > out 2>&1")
    task.add_input(m.declare_file(program), "prog")
    task.add_input(m.declare_file(source), "in")
    task.add_output(m.declare_file(target), "out")
    run(m, task)
    assert ended(task) == ("success", 0) and task.successful() and task.completed()
    assert target.read_text() == "hello\nto stderr\n"
    assert task.output == ""


def test_a_task_says_what_it_is(m: Manager) -> None:
    task = small("true " + "x" * 100)
    assert repr(task) == f"<Task {('true ' + 'x' * 52 + '...')!r} INITIAL>"
    run(m, task)
    assert repr(task) == f"<Task {task.id} {('true ' + 'x' * 52 + '...')!r} DONE>"
    assert repr(PythonTask(os.getpid)) == "<PythonTask 'getpid' INITIAL>"
    assert repr(FunctionCall("lib", "add", 1)) == "<FunctionCall 'add' INITIAL>"


def test_a_buffer_in_and_two_buffers_out(m: Manager) -> None:
    content = bytes(range(256)) * 10
    first, second = m.declare_buffer(), m.declare_buffer()
    task = small("cp in one; mkdir -p sub; cp in sub/two", inputs={m.declare_buffer(content): "in"})
    task.add_output(first, "one")
    task.add_output(second, "sub/two")
    run(m, task)
    assert ended(task) == ("success", 0)
    assert first.contents() == content and second.contents() == content


def test_empty_and_large_buffers_come_back_whole(m: Manager) -> None:
    empty, large = m.declare_buffer(), m.declare_buffer()
    task = small(f": > empty; head -c {BIG_BYTES} /dev/zero > large", outputs={empty: "empty", large: "large"})
    run(m, task)
    assert empty.contents() == b"" and large.contents() == bytes(BIG_BYTES)


def test_outputs_go_into_new_directories_of_the_sandbox_and_of_the_disk(m: Manager, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    task = small("echo made > x/y/z", outputs={m.declare_file(target): "x/y/z"})
    run(m, task)
    assert ended(task) == ("success", 0)
    assert target.read_text() == "made\n"


def test_inputs_in_subdirectories(m: Manager) -> None:
    task = small("cat a/b/one a/two", inputs={m.declare_buffer("1"): "a/b/one", m.declare_buffer("2"): "a/two"})
    assert run(m, task)[0].output == "12"


def test_of_two_inputs_under_one_name_the_last_counts(m: Manager, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * BIG_BYTES)
    file = m.declare_file(big)
    task = small("cat in")
    task.add_input(file, "in")
    task.add_input(m.declare_buffer("last"), "in")
    assert run(m, task)[0].output == "last"
    again = small("wc -c < in", inputs={file: "in"})
    assert run(m, again)[0].output.strip() == str(BIG_BYTES), "the first input was written through"


def test_an_input_where_a_directory_must_be_is_said_in_words(m: Manager) -> None:
    task = small("true", inputs={m.declare_buffer("1"): "a", m.declare_buffer("2"): "a/b"})
    run(m, task)
    assert ended(task) == ("forsaken", -1) and "'a/b' cannot be made" in str(task.std_output)
    assert "'a/b' cannot be made" in task.reason


def test_an_output_that_is_missing_leaves_no_file(m: Manager, tmp_path: Path) -> None:
    target, buffer = tmp_path / "never.txt", m.declare_buffer()
    task = small("echo said; exit 4", outputs={m.declare_file(target): "never", buffer: "nor this"})
    run(m, task)
    assert ended(task) == ("output missing", 4)
    assert task.output == "said\n"
    assert not target.exists()
    assert not task.completed() and not task.successful()


def test_an_input_that_is_missing(m: Manager, tmp_path: Path) -> None:
    task = small("true", inputs={m.declare_file(tmp_path / "never"): "in"})
    run(m, task)
    assert ended(task) == ("input missing", -1)
    assert task.std_output is None


def test_who_reads_the_output_of_a_task_without_its_input_fails_too(m: Manager, tmp_path: Path) -> None:
    middle = m.declare_temp()
    first = small("cp in out", inputs={m.declare_file(tmp_path / "never"): "in"}, outputs={middle: "out"})
    second = small("cat in", inputs={middle: "in"})
    run(m, first, second)
    assert ended(first) == ended(second) == ("input missing", -1)


def test_a_chain_of_readers_fails_with_its_first_task(m: Manager) -> None:
    """Deeper than the interpreter's stack: each reader fails because the one before it made nothing."""
    tasks = []
    last = m.declare_temp()
    tasks.append(small("true", outputs={last: "out"}))
    for _ in range(1200):
        following = m.declare_temp()
        tasks.append(small("cp in out", inputs={last: "in"}, outputs={following: "out"}))
        last = following
    run(m, *tasks)
    assert ended(tasks[0]) == ("output missing", 0)
    assert {task.exit_code for task in tasks[1:]} == {-1}


def test_an_output_is_the_input_of_a_task_submitted_before_it_ran(m: Manager, tmp_path: Path) -> None:
    target = m.declare_file(tmp_path / "middle.txt")
    first = small("sleep 0.2; echo one > out", outputs={target: "out"})
    second = small("cat in; echo two", inputs={target: "in"})
    run(m, first, second)
    assert second.output == "one\ntwo\n"


def test_a_chain_of_temps_and_fetch_file(m: Manager) -> None:
    hello, world = m.declare_temp(), m.declare_temp()
    first = small("printf hello > out", outputs={hello: "out"})
    second = small("(cat in; printf ' world!') > out", inputs={hello: "in"}, outputs={world: "out"})
    run(m, first, second)
    assert m.fetch_file(world, LIMIT_S) == "hello world!"
    assert world.contents() == b"hello world!"


def test_a_file_that_one_task_updates_again_and_again(m: Manager, tmp_path: Path) -> None:
    path = tmp_path / "counter"
    path.write_text("x")
    file = m.declare_file(path)
    tasks = [small("(cat in; printf x) > out", inputs={file: "in"}, outputs={file: "out"}) for _ in range(5)]
    run(m, *tasks)
    assert path.read_text() == "x" * 6


def test_a_file_that_was_changed_by_hand_is_a_new_file(m: Manager, tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = m.declare_file(path)
    run(m, small("echo made > out", outputs={file: "out"}))
    assert run(m, small("cat in", inputs={file: "in"}))[0].output == "made\n"
    path.write_text("changed by hand\n")
    assert run(m, small("cat in", inputs={file: "in"}))[0].output == "changed by hand\n"
    path.write_text("once more\n")
    assert run(m, small("cat in", inputs={file: "in"}))[0].output == "once more\n"


def test_an_output_for_a_place_that_cannot_be_written(m: Manager, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    task = small("echo x > out", outputs={m.declare_file(tmp_path / "file" / "below"): "out"})
    run(m, task)
    assert ended(task) == ("output transfer error", 0)


def test_outputs_for_success_or_failure_only(m: Manager, tmp_path: Path) -> None:
    for code, expected in ((0, {"always", "success"}), (3, {"always", "failure"})):
        folder = tmp_path / str(code)
        task = small(f"touch a s f; exit {code}")
        task.add_output(m.declare_file(folder / "always"), "a")
        task.add_output(m.declare_file(folder / "success"), "s", success_only=True)
        task.add_output(m.declare_file(folder / "failure"), "f", failure_only=True)
        run(m, task)
        assert ended(task) == ("success", code)
        assert {path.name for path in folder.iterdir()} == expected


def test_one_path_may_be_two_outputs(m: Manager) -> None:
    kept, fetched = m.declare_temp(), m.declare_buffer()
    task = small(f"head -c {BIG_BYTES} /dev/zero > out")
    task.add_output(kept, "out")
    task.add_output(fetched, "out")
    run(m, task)
    assert ended(task) == ("success", 0)
    assert len(fetched.contents()) == BIG_BYTES
    assert run(m, small("wc -c < in", inputs={kept: "in"}))[0].output.strip() == str(BIG_BYTES)


@pytest.mark.parametrize("link", ["ln in out", "ln -s in out", "ln -s $PWD/in out"])
@pytest.mark.parametrize("size", [10, BIG_BYTES])
def test_an_output_that_is_a_link_to_an_input(m: Manager, tmp_path: Path, link: str, size: int) -> None:
    (tmp_path / "in").write_bytes(b"a" * size)
    source, target = m.declare_file(tmp_path / "in"), m.declare_temp()
    task = small(link, inputs={source: "in"}, outputs={target: "out"})
    # Writes into the output as its input: the first task's input must not change with it.
    writer = small("printf more >> in; wc -c < in", inputs={target: "in"})
    reader = small("wc -c < in", inputs={source: "in"})
    run(m, task)
    run(m, writer)
    run(m, reader)
    assert ended(task) == ("success", 0)
    assert writer.output.strip() == str(size + 4)
    assert reader.output.strip() == str(size)


@pytest.mark.parametrize("size", [1000, BIG_BYTES])
def test_a_task_cannot_damage_its_input_for_others(m: Manager, tmp_path: Path, size: int) -> None:
    (tmp_path / "in").write_bytes(b"a" * size)
    source = m.declare_file(tmp_path / "in")
    for _ in range(3):
        task = small("chmod u+w in; printf damage >> in; tail -c 6 in; wc -c < in", inputs={source: "in"})
        run(m, task)
        assert task.output.split() == ["damage" + str(size + 6)] or task.output.split() == ["damage", str(size + 6)]
    assert (tmp_path / "in").stat().st_size == size
    assert run(m, small("wc -c < in", inputs={source: "in"}))[0].output.strip() == str(size)


def test_a_damaged_temp_is_made_again(m: Manager, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    temp = m.declare_temp()
    run(m, small(f"mktemp {marks}/XXXXXX; head -c {BIG_BYTES} /dev/zero > out", outputs={temp: "out"}))
    run(m, small("chmod u+w in; printf damage >> in", inputs={temp: "in"}))
    assert run(m, small("wc -c < in", inputs={temp: "in"}))[0].output.strip() == str(BIG_BYTES)
    assert len(list(marks.iterdir())) in (1, 2), "it is made again at most once"


def test_a_symbolic_mount(m: Manager, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("content")
    task = small("cat in; test -L in")
    task.add_input(m.declare_file(tmp_path / "in"), "in", mount_symlink=True)
    assert ended(run(m, task)[0]) == ("success", 0)
    assert task.output == "content"


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../up", "", ".", "..", "./", "/"])
def test_names_that_lead_out_are_refused(m: Manager, name: str) -> None:
    for add in (small("true").add_input, small("true").add_output):
        with pytest.raises(ValueError, match="leads out" if "up" in name or "abs" in name else "names no file in the task's"):
            add(m.declare_buffer("x"), name)


def test_what_is_no_file_or_no_name_is_refused(m: Manager) -> None:
    with pytest.raises(TypeError):
        small("true").add_input("path", "name")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        small("true").add_input(m.declare_buffer("x"), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Task({"command": "true"})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        small("true", inputs=[m.declare_buffer("x")])
    with pytest.raises(ValueError, match="colour"):
        small("true", colour="red")


# ------------------------------------------------------------ results and output


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 3", 3), ("kill -9 $$", 9), ("kill -TERM $$", 15), ("kill -SEGV $$", 11), ("no-such-command", 127), ("true", 0)],
)
def test_exit_codes(m: Manager, command: str, code: int) -> None:
    task = run(m, small(command))[0]
    assert ended(task) == ("success", code)
    assert task.successful() is (code == 0)


def test_an_input_that_is_not_executable(m: Manager, tmp_path: Path) -> None:
    (tmp_path / "prog").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "prog").chmod(0o644)
    task = run(m, small("./prog", inputs={m.declare_file(tmp_path / "prog"): "prog"}))[0]
    assert ended(task) == ("success", 126)


def test_a_large_program_stays_one(m: Manager, tmp_path: Path) -> None:
    (tmp_path / "prog").write_text("#!/bin/sh\necho ran\nexit 0\n" + "#" * BIG_BYTES)
    (tmp_path / "prog").chmod(0o700)
    assert run(m, small("./prog", inputs={m.declare_file(tmp_path / "prog"): "prog"}))[0].output == "ran\n"


def test_output_is_merged_in_order_and_may_be_undecodable(m: Manager) -> None:
    task = run(m, small(r"printf 'bad\377out'; printf err >&2; printf end"))[0]
    assert task.output == "bad\udcffouterrend"
    assert task.std_output == task.output


def test_long_output_is_cut_and_says_so(m: Manager) -> None:
    task = run(m, small("head -c 30000000 /dev/zero | tr '\\0' x"))[0]
    assert ended(task) == ("success", 0)
    assert 1_000_000 < len(task.output) < 5_000_000
    assert task.output.endswith("cut]\n")


def test_standard_input_is_empty(m: Manager) -> None:
    assert run(m, small("cat; echo end"))[0].output == "end\n"


def test_large_outputs_of_many_tasks_at_once(m: Manager) -> None:
    tasks = run(m, *[small("head -c 1900000 /dev/zero | tr '\\0' x") for _ in range(12)])
    assert {len(task.output) for task in tasks} == {1_900_000}


def test_many_small_outputs_of_one_task(m: Manager) -> None:
    buffers = [m.declare_buffer() for _ in range(300)]
    task = small("for i in $(seq 0 299); do head -c 60000 /dev/zero > o$i; done")
    for number, buffer in enumerate(buffers):
        task.add_output(buffer, f"o{number}")
    run(m, task)
    assert ended(task) == ("success", 0)
    assert {len(buffer.contents()) for buffer in buffers} == {60000}


# ------------------------------------------------------------ environment


def test_environment(m: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("env; pwd; ls -a", cores=1, memory=123, disk=45, env={"MINE": "a b=c", "HOME": None})
    task.set_env_var("TMPDIR", "/somewhere/else")
    lines = run(m, task)[0].output.splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    assert (values["CORES"], values["MEMORY"], values["DISK"]) == ("1", "123", "45")
    assert "GPUS" not in values and "DISPLAY" not in values and "HOME" not in values
    assert values["MINE"] == "a b=c"
    assert values["OMP_NUM_THREADS"] == values["OPENBLAS_NUM_THREADS"] == values["MKL_NUM_THREADS"] == "1"
    sandbox = values["VINE_SANDBOX"]
    assert sandbox in lines, "the working directory is the sandbox"
    assert values["TMPDIR"].startswith(sandbox) and values["TMP"] == values["TEMP"] == values["TMPDIR"]
    assert not Path(sandbox).exists(), "the sandbox was left behind"


def test_display_is_removed(leaves_no_process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":99")
    with Manager(local_cores=1) as manager:
        task = run(manager, small('echo "<$DISPLAY>" $CORES'))[0]
        assert task.output == "<> 1\n"


def test_temporary_files_go_with_the_sandbox(m: Manager) -> None:
    made = Path(run(m, small("mktemp; pwd"))[0].output.splitlines()[0])
    assert not made.exists() and not made.parent.exists()


def test_a_sandbox_with_rights_taken_away_is_removed(m: Manager) -> None:
    task = run(m, small("mkdir -p a/b; touch a/b/c; chmod 000 a/b/c; chmod 500 a/b a; pwd"))[0]
    assert ended(task) == ("success", 0)
    assert not Path(task.output.strip()).exists()


def test_what_a_command_leaves_running_ends_with_it(m: Manager, tmp_path: Path) -> None:
    task = run(m, small(f"sleep 300 & echo $! > {tmp_path}/pid; exit 0"))[0]
    assert ended(task) == ("success", 0)
    assert eventually(lambda: not Path("/proc", (tmp_path / "pid").read_text().strip()).exists())


# ------------------------------------------------------------ limits


def test_time_limits(m: Manager) -> None:
    now = time.time()
    short, long = small("sleep 0.1", time_max=10), small("sleep 100", time_max=1)
    early, late = small("sleep 0.1"), small("sleep 100")
    early.set_time_end((now + 30) * 1e6)
    late.set_time_end((now + 1) * 1e6)
    run(m, short, long, early, late)
    assert [ended(task) for task in (short, early)] == [("success", 0)] * 2
    assert ended(long) == ("max wall time", 9)
    assert ended(late) == ("max end time", 9)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now + 1))
    assert late.reason.endswith(f"limit 'max end time': {when} UTC (set_time_end takes microseconds since the epoch)")
    assert long.resources_measured.wall_time == pytest.approx(1, abs=3)
    assert not long.successful() and not long.completed()


def test_a_time_limit_ends_the_children_too_and_keeps_what_was_said(m: Manager, tmp_path: Path) -> None:
    buffer = m.declare_buffer()
    task = small(f"echo said; echo made > out; sleep 300 & echo $! > {tmp_path}/pid; wait", time_max=1, outputs={buffer: "out"})
    run(m, task)
    assert ended(task) == ("max wall time", 9)
    assert task.output == "said\n" and buffer.contents() == b"made\n"
    assert eventually(lambda: not Path("/proc", (tmp_path / "pid").read_text().strip()).exists())


def test_the_end_time_has_passed_already(m: Manager) -> None:
    task = small("sleep 100")
    task.set_time_end((time.time() - 5) * 1e6)
    assert ended(run(m, task)[0]) == ("max end time", 9)


def test_a_task_that_writes_more_than_its_disk_is_ended(m: Manager) -> None:
    task = small("head -c 20000000 /dev/zero > big; sleep 100", disk=5)
    assert ended(run(m, task)[0]) == ("sandbox exhaustion", 9)
    assert task.resources_measured.disk >= 19


# ------------------------------------------------------------ cancelling, tags


def test_cancel_all_of_ten_sleeping_tasks(m: Manager, tmp_path: Path) -> None:
    tasks = [small(f"echo $$ > {tmp_path}/$$; sleep 300; true") for _ in range(10)]
    for task in tasks:
        m.submit(task)
    assert eventually(lambda: len(list(tmp_path.iterdir())) >= 2)
    m.cancel_all()
    for _ in tasks:
        task = m.wait(LIMIT_S)
        assert ended(task) == ("cancelled", -1) and task.std_output is None
    assert m.empty()
    pids = [path.name for path in tmp_path.iterdir()]
    assert eventually(lambda: not any(Path("/proc", pid).exists() for pid in pids))


def _sleepers(directory: Path) -> list[str]:
    """Processes that run somewhere below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "cwd").readlink()).startswith(f"{directory}/"):
                    found.append(entry.name)
            except OSError:
                continue
    return found


def test_cancelling_a_running_task_ends_its_children_and_removes_its_sandbox(m: Manager, tmp_path: Path) -> None:
    task = small(f"pwd > {tmp_path}/cwd.part; setsid sleep 300 & sleep 300 & mv {tmp_path}/cwd.part {tmp_path}/cwd; wait")
    m.submit(task)
    assert eventually((tmp_path / "cwd").exists)
    sandbox = Path((tmp_path / "cwd").read_text().strip())
    assert eventually(lambda: len(_sleepers(sandbox.parent)) >= 3)
    assert m.cancel_by_task_id(task.id or 0) == 1
    assert ended(m.wait(LIMIT_S)) == ("cancelled", -1)
    assert eventually(lambda: not _sleepers(sandbox.parent) and not sandbox.exists())
    assert run(m, small("echo next"))[0].output == "next\n"


def test_tags_are_waited_for_in_any_order(m: Manager) -> None:
    for tag in ("one", "two", "three"):
        task = small(f"echo {tag}")
        task.set_tag(tag)
        m.submit(task)
    for tag in ("three", "one", "two"):
        found = m.wait_for_tag(tag, LIMIT_S)
        assert (found.tag, found.output) == (tag, f"{tag}\n")


# ------------------------------------------------------------ resources


def _most_at_once(marks: Path) -> int:
    """The largest number of intervals (files with begin and end) that overlap."""
    edges = []
    for path in marks.iterdir():
        begin, end = map(float, path.read_text().split())
        edges += [(begin, 1), (end, -1)]
    most = running = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    return most


def _interval(marks: Path) -> str:
    return f"b=$(date +%s.%N); sleep 0.15; echo $b $(date +%s.%N) > {marks}/$$"


def test_tasks_of_one_core_run_beside_each_other_up_to_the_cores(m: Manager, tmp_path: Path) -> None:
    run(m, *[small(_interval(tmp_path)) for _ in range(8)])
    assert _most_at_once(tmp_path) == 2


def test_tasks_that_ask_for_nothing_get_the_worker_one_at_a_time(m: Manager, tmp_path: Path) -> None:
    tasks = run(m, *[Task(f"echo $CORES $GPUS; {_interval(tmp_path)}") for _ in range(4)])
    assert _most_at_once(tmp_path) == 1
    assert {task.output for task in tasks} == {"2\n"}


def test_large_requests_wait_for_room_and_small_ones_come_after(m: Manager, tmp_path: Path) -> None:
    run(m, *[small(_interval(tmp_path), cores=1 + number % 2) for number in range(6)])
    assert _most_at_once(tmp_path) <= 2


@pytest.mark.parametrize(("share", "expected"), [(0.6, 1), (0.4, 2)])
def test_short_tasks_that_wait_at_the_worker_do_not_run_beside_too_many(
    m: Manager, tmp_path: Path, share: float, expected: int
) -> None:
    """Short tasks are sent ahead of room: two slots must not run two that do not fit together."""
    worker = next(iter(m.engine.machine.state.workers.values()))
    memory = int((worker.total.memory or 0) * share)
    say = f"b=$(date +%s.%N); sleep 0.002; echo $b $(date +%s.%N) > {tmp_path}/$$"
    run(m, *[small(say, memory=memory) for _ in range(60)])
    assert _most_at_once(tmp_path) == expected
    mixed = [small(say, memory=memory if number % 3 else 10) for number in range(60)]
    run(m, *mixed)
    assert _most_at_once(tmp_path) <= 2


def test_fractions_of_cores_leave_a_whole_worker_behind(m: Manager) -> None:
    run(m, *[small("true", cores=0.1) for _ in range(30)])
    assert run(m, Task("echo $CORES"))[0].output == "2\n"


def test_a_part_of_a_core_or_megabyte_is_one_in_the_environment(m: Manager) -> None:
    task = run(m, Task("echo $CORES $MEMORY $DISK $OMP_NUM_THREADS ${GPUS-no}", cores=0.5, memory=0.5, disk=0.5))[0]
    assert task.output == "1 1 1 1 no\n"
    assert run(m, small("echo ${CORES-none}", cores=0))[0].output == "none\n"


def test_a_request_that_no_worker_can_meet_waits_and_can_be_cancelled(m: Manager) -> None:
    task = small("true", cores=1000)
    m.submit(task)
    assert run(m, small("echo other"))[0].output == "other\n"
    assert task.state == "READY"
    m.cancel_all()
    assert ended(m.wait(LIMIT_S)) == ("cancelled", -1)


def test_what_was_asked_for_and_measured(m: Manager) -> None:
    task = small("sleep 0.2", cores=2)
    assert vars(task.resources_measured)["wall_time"] == -1
    before = time.time()
    run(m, task)
    asked, measured = task.resources_requested, task.resources_measured
    assert (asked.cores, asked.memory, asked.disk, asked.gpus) == (2, 10, 100, -1)
    assert 0.2 <= measured.wall_time < LIMIT_S
    assert before - 1 < measured.start < measured.end < time.time() + 1


def test_higher_priority_runs_first(m: Manager, tmp_path: Path) -> None:
    holder = Task(f"while ! test -e {tmp_path}/go; do sleep 0.02; done")
    m.submit(holder)
    assert eventually(lambda: holder.state == "RUNNING")
    tasks: list[Task] = []
    for priority in (1, 5, 3, 5):
        task = Task(f"echo {priority}.{len(tasks)} >> {tmp_path}/order", priority=priority)
        tasks.append(task)
        m.submit(task)
    (tmp_path / "go").touch()
    for _ in range(5):
        assert m.wait(LIMIT_S) is not None
    assert (tmp_path / "order").read_text().split() == ["5.1", "5.3", "3.2", "1.0"]


def test_a_task_can_be_submitted_again(m: Manager) -> None:
    buffer = m.declare_buffer()
    task = small("date +%N > out; cat out", outputs={buffer: "out"})
    first = run(m, task)[0].output
    assert buffer.contents().decode() == first
    second = run(m, task)[0].output
    assert buffer.contents().decode() == second != first


# ------------------------------------------------------------ more than one worker, lost workers


@pytest.fixture
def pair(leaves_no_process: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Manager, list[Any]]]:
    """A manager with two workers of one core, each a process of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    workers = []
    with Manager(port=0) as manager:
        try:
            for number in range(2):
                folder = tmp_path / f"worker-{number}"
                folder.mkdir()
                words = [sys.executable, "-m", "vinecore.cli.worker", "--cores", "1", "localhost", str(manager.port)]
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
                workers.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, cwd=folder))
            state = manager.engine.machine.state
            assert eventually(lambda: len(state.workers) == 2)
            yield manager, workers
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                try:
                    worker.wait(LIMIT_S)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()


def _on_both(manager: Manager, tmp_path: Path, make: Any) -> list[Task]:
    """Run ``make(number)`` twice at the same time: each worker has one core."""
    tasks = [make(number) for number in range(2)]
    for number, task in enumerate(tasks):
        other = tmp_path / f"here-{1 - number}"
        task.set_command(f"touch {tmp_path}/here-{number}; while ! test -e {other}; do sleep 0.02; done; {task.command}")
        manager.submit(task)
    for _ in tasks:
        assert manager.wait(LIMIT_S) is not None
    for number in range(2):
        (tmp_path / f"here-{number}").unlink()
    return tasks


@pytest.mark.parametrize("size", [5, BIG_BYTES])
def test_a_file_made_on_one_worker_is_used_on_the_other(pair: tuple[Manager, list[Any]], tmp_path: Path, size: int) -> None:
    manager, _ = pair
    temp = manager.declare_temp()
    made = run(manager, small(f"head -c {size} /dev/zero > out; echo $WORKER_TMPDIR", outputs={temp: "out"}))[0]
    readers = _on_both(manager, tmp_path, lambda _: small("wc -c < in; echo $WORKER_TMPDIR", inputs={temp: "in"}))
    assert [reader.output.split()[0] for reader in readers] == [str(size)] * 2
    homes = {reader.output.split()[1] for reader in readers}
    assert len(homes) == 2 and made.output.strip() in homes


def test_a_file_of_a_lost_worker_is_made_again(pair: tuple[Manager, list[Any]], tmp_path: Path) -> None:
    manager, workers = pair
    (tmp_path / "marks").mkdir()
    temp, target = manager.declare_temp(), manager.declare_file(tmp_path / "result")
    maker = small(f"mktemp {tmp_path}/marks/XXXXXX > /dev/null; head -c {BIG_BYTES} /dev/zero > out; pwd", outputs={temp: "out"})
    home = run(manager, maker)[0].output
    lost = next(n for n in range(2) if str(tmp_path / f"worker-{n}") in home)
    workers[lost].kill()
    reader = small("wc -c < in > out", inputs={temp: "in"}, outputs={target: "out"})
    run(manager, reader)
    assert ended(reader) == ("success", 0)
    assert (tmp_path / "result").read_text().strip() == str(BIG_BYTES)
    assert len(list((tmp_path / "marks").iterdir())) == 2


def test_a_running_task_of_a_lost_worker_runs_elsewhere(pair: tuple[Manager, list[Any]], tmp_path: Path) -> None:
    manager, workers = pair
    say = f"pwd > {tmp_path}/where.part; mv {tmp_path}/where.part {tmp_path}/where-$$"
    task = small(f"{say}; while ! test -e {tmp_path}/go; do sleep 0.02; done; pwd")
    manager.submit(task)
    assert eventually(lambda: list(tmp_path.glob("where-*")))
    first = next(tmp_path.glob("where-*")).read_text()
    lost = next(n for n in range(2) if str(tmp_path / f"worker-{n}") in first)
    workers[lost].kill()
    assert eventually(lambda: len(list(tmp_path.glob("where-*"))) == 2)
    (tmp_path / "go").touch()
    found = manager.wait(LIMIT_S)
    assert ended(found) == ("success", 0)
    assert str(tmp_path / f"worker-{1 - lost}") in found.output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_takes_shells_and_their_children_along(leaves_no_process: str, tmp_path: Path, number: int) -> None:
    with Manager(local_cores=1) as manager:
        task = small(f"pwd > {tmp_path}/cwd; sleep 300 & sleep 300; true")
        manager.submit(task)
        assert eventually(lambda: (tmp_path / "cwd").exists() and (tmp_path / "cwd").read_text().endswith("\n"))
        sandboxes = Path((tmp_path / "cwd").read_text().strip()).parent
        assert eventually(lambda: len(_sleepers(sandboxes)) >= 3)
        before = set(_sleepers(sandboxes))
        assert manager.engine.embedded is not None
        os.kill(manager.engine.embedded.process.pid, number)
        assert eventually(lambda: not any(Path("/proc", pid).exists() for pid in before)), "its shell or children live on"
        assert eventually(lambda: not sandboxes.exists())
        manager.cancel_all()
        assert manager.wait(LIMIT_S) is not None

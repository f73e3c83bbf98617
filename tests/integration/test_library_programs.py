"""Libraries whose instances are more than forked functions: programs, init commands, files, contexts with threads."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daskvine import FuturesExecutor
from tests.kit.calls import LIMIT_S, add, eventually, finish, started
from tests.kit.processes import Worker
from vinecore import FunctionCall, Manager, PythonTask, load_variable_from_library
from vinecore.errors import InputMissing, LibraryFailed, SlotLost, TaskFailed, UsageError

PROGRAM = Path(__file__).parents[1] / "kit" / "library_program.py"


# ---------------------------------------------------------------- programs


@pytest.fixture
def program(m: Manager) -> Iterator[Callable[..., str]]:
    """Install the program as a library of this name; it is removed after the test."""
    names: list[str] = []

    def make(name: str, said: str | None = None, serverized: bool = False, slots: int = 1, path: Path = PROGRAM) -> str:
        if serverized:
            task = m.create_library_from_serverized_files(name, path)
        else:
            task = m.create_library_from_command(path, name)
        task.add_input(m.declare_buffer(said or name), "name.txt")
        task.set_function_slots(slots)
        m.install_library(task)
        names.append(name)
        return name

    yield make
    m.cancel_all()
    while not m.empty() and m.wait(LIMIT_S) is not None:
        pass
    for name in names:
        m.remove_library(name)


def test_a_program_answers_calls(m: Manager, program: Callable[..., str]) -> None:
    library = program("prog")
    calls = [FunctionCall(library, "double", 21), FunctionCall(library, "join", "a", "b", sep="-")]
    assert finish(m, *calls) == [42, "a-b"]
    assert [call.successful() for call in calls] == [True, True]


def test_a_program_does_not_wait_for_somebody_to_read_what_it_says(
    start: Callable[..., Worker],
) -> None:
    """The worker's output is a pipe that nobody reads: the program waited for ever, and its call with it."""
    reader, writer = os.pipe()
    with Manager(port=0) as manager:
        start("127.0.0.1", manager.port, "--cores", 1, streams=writer)
        os.close(writer)
        task = manager.create_library_from_command(PROGRAM, "lib")
        task.add_input(manager.declare_buffer("lib"), "name.txt")
        manager.install_library(task)
        assert finish(manager, *(FunctionCall("lib", "say", "words ", 50_000) for _ in range(3))) == [None] * 3
        assert finish(manager, FunctionCall("lib", "double", 4)) == [8]
    os.close(reader)


def test_a_serverized_program_need_not_be_executable(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    shutil.copyfile(PROGRAM, path)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=r"code\.py is not executable: run  chmod"):
        m.create_library_from_command(path, "x")
    assert finish(m, FunctionCall(program("served", serverized=True, path=path), "double", 4)) == [8]


@pytest.mark.parametrize("serverized", [False, True])
def test_a_program_that_has_changed_until_it_is_installed(m: Manager, tmp_path: Path, serverized: bool) -> None:
    path = tmp_path / "code.py"
    shutil.copy(PROGRAM, path)
    make = m.create_library_from_serverized_files if serverized else lambda name, path: m.create_library_from_command(path, name)
    task = make("changed", path)
    for name in ("code.py", "./code.py"):
        with pytest.raises(
            UsageError, match=r"code\.py' is the name of the program of library 'changed': give this input another"
        ):
            task.add_input(m.declare_buffer("x"), name)
    task.add_input(m.declare_buffer("changed"), "name.txt")
    if not serverized:
        path.chmod(0o644)
        with pytest.raises(UsageError, match=r"code\.py is not executable: run  chmod"):
            m.install_library(task)
        path.chmod(0o755)
    path.rename(tmp_path / "aside")
    with pytest.raises(InputMissing, match=r"code\.py cannot be read: No such file"):
        m.install_library(task)
    (tmp_path / "aside").rename(path)
    m.install_library(task)
    assert finish(m, FunctionCall("changed", "double", 4)) == [8]
    m.remove_library("changed")


def test_an_input_that_is_gone_when_the_library_starts(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    shutil.copy(PROGRAM, path)
    library = program("gone", path=path)
    path.unlink()
    error = finish(m, FunctionCall(library, "double", 4))[0]
    assert isinstance(error, LibraryFailed)
    assert f"{path} cannot be read: No such file or directory; keep it where it is until" in str(error)


def test_large_values_and_temps_pass_through_a_program(m: Manager, program: Callable[..., str]) -> None:
    library = program("large")
    first = FunctionCall(library, "zeros", 3_000_000)
    first.enable_temp_output()
    m.submit(first)
    assert m.wait(LIMIT_S) is first
    assert finish(m, FunctionCall(library, "size_of", first.output_file)) == [3_000_000]
    assert finish(m, FunctionCall(library, "size_of", bytes(2_000_000))) == [2_000_000]


def test_failures_of_a_programs_functions(m: Manager, program: Callable[..., str]) -> None:
    library = program("fails")
    calls = [FunctionCall(library, name) for name in ("fail", "leave_nothing", "no_such_function")]
    raised, nothing, unknown = finish(m, *calls)
    assert isinstance(raised, TaskFailed) and "KeyError: 'no such luck'" in str(raised)
    assert isinstance(nothing, TaskFailed) and "left no result; it printed: about to leave" in str(nothing)
    assert isinstance(unknown, TaskFailed) and "function 'no_such_function' of library 'fails' ended with status" in str(unknown)
    assert finish(m, FunctionCall(library, "double", 1)) == [2]
    with pytest.raises(UsageError, match="a function's name has no blanks"):
        m.submit(FunctionCall(library, "two words"))
    with pytest.raises(UsageError, match="a function's name has at most 1000 bytes, unlike 'éé"):
        m.submit(FunctionCall(library, 501 * "é"))
    (known,) = finish(m, FunctionCall(library, 1000 * "x"))
    assert isinstance(known, TaskFailed) and "ended with status" in str(known)


@pytest.mark.parametrize("line", [b"1" * 5000 + b"\n", b"1" * 5000, b"hello", b"-5\n", "\u0663\n".encode(), b"\n"])
def test_what_is_no_length_ends_the_program_and_loses_that_call(m: Manager, program: Callable[..., str], line: bytes) -> None:
    """Python's int() refuses so many digits with an error like any call's: the program was kept, with the line still unread."""
    library = program("lengths")
    assert finish(m, FunctionCall(library, "double", 1)) == [2]
    call = FunctionCall(library, "answer_with", line)
    call.set_retries(1)
    others = [FunctionCall(library, "double", number) for number in (2, 3)]
    failure, *values = finish(m, call, *others)
    assert isinstance(failure, SlotLost) and "where the length of a message is expected" in str(failure)
    assert values == [4, 6]
    assert "a crash in native code" not in str(failure), "the reason is known"


@pytest.fixture
def no_losses(m: Manager) -> Iterator[None]:
    """The first loss of a call fails it."""
    m.tune("max-losses", 0)
    yield
    m.tune("max-losses", 5)


@pytest.mark.usefixtures("no_losses")
@pytest.mark.parametrize("more", [b"X", b"\n", b"3\n1 0", b"9" * 5000])
def test_a_program_that_says_too_much_costs_no_call(m: Manager, program: Callable[..., str], more: bytes) -> None:
    """The next call took it for its answer, and was lost."""
    library = program("talks")
    before = finish(m, FunctionCall(library, "who"))[0][1]
    assert finish(m, FunctionCall(library, "say_more", more), FunctionCall(library, "double", 2)) == [None, 4]
    assert finish(m, FunctionCall(library, "who"))[0][1] != before


@pytest.mark.usefixtures("no_losses")
def test_what_a_program_says_between_calls_costs_none(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    library, gate = program("later"), tmp_path / "gate"
    finish(m, FunctionCall(library, "say_later", b"X", str(gate)))
    before = finish(m, FunctionCall(library, "who"))[0][1]
    gate.touch()
    assert eventually(lambda: not gate.exists())
    calls = [FunctionCall(library, "double", number) for number in range(3)]
    assert finish(m, *calls, FunctionCall(library, "who"))[:3] == [0, 2, 4]
    assert finish(m, FunctionCall(library, "who"))[0][1] != before


@pytest.mark.usefixtures("no_losses")
def test_a_program_that_dies_between_calls_costs_none(m: Manager, program: Callable[..., str]) -> None:
    library = program("idle")
    pid = finish(m, FunctionCall(library, "who"))[0][1]
    os.kill(pid, signal.SIGKILL)
    # Whoever looks at it by then knows.
    assert eventually(lambda: "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
    assert finish(m, FunctionCall(library, "double", 4)) == [8]


@pytest.mark.usefixtures("no_losses")
def test_a_call_that_removes_the_directory_of_its_slot_harms_itself_only(m: Manager, program: Callable[..., str]) -> None:
    library = program("removes")
    failure, *values = finish(m, FunctionCall(library, "remove_around"), *[FunctionCall(library, "double", i) for i in range(3)])
    assert isinstance(failure, TaskFailed) and "left no result" in str(failure)
    assert values == [0, 2, 4]


def test_what_a_program_links_in_the_place_of_its_directory_is_left_alone(
    m: Manager, program: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "precious/below").mkdir(parents=True)
    (tmp_path / "precious/below/file").touch()
    library = program("links")
    finish(m, FunctionCall(library, "link_in_place", str(tmp_path / "precious")))
    assert finish(m, FunctionCall(library, "double", 4)) == [8]
    assert (tmp_path / "precious/below/file").exists()


def test_what_a_program_links_around_its_directory_is_left_alone(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    library = program("links_around")
    call = FunctionCall(library, "link_around", str(tmp_path))
    (failure,) = finish(m, call)
    assert isinstance(failure, TaskFailed) and "replaced the directory around its sandbox" in str(failure)
    assert finish(m, FunctionCall(library, "double", 4)) == [8]
    assert len(list(tmp_path.glob("call.*/below"))) == 1
    assert all(below.is_dir() and not os.listdir(below) for below in tmp_path.glob("call.*/below"))


def link_around(target: str) -> str:
    """In a direct slot: a link stands where the directories of libraries were; where it leads is one of the same name."""
    here = os.getcwd()
    around = os.path.dirname(here)
    os.makedirs(os.path.join(target, os.path.basename(here), "below"))
    os.rename(around, around + ".aside")
    os.symlink(target, around)
    return here


def test_what_a_call_links_around_the_directory_of_its_library_is_left_alone(m: Manager, tmp_path: Path) -> None:
    def read() -> str:
        return Path("in.txt").read_text()

    def install(name: str) -> str:
        library = m.create_library_from_functions(name, link_around, read, exec_mode="direct")
        library.add_input(m.declare_buffer(b"of the library"), "in.txt")
        m.install_library(library)
        return name

    (here,) = finish(m, FunctionCall(install("linked"), "link_around", str(tmp_path)))
    own = Path(here)
    moved = Path(f"{own.parent}.aside", own.name)
    assert moved.is_dir()
    m.remove_library("linked")
    assert eventually(lambda: not moved.exists())
    assert finish(m, FunctionCall(install("after"), "read")) == ["of the library"]
    m.remove_library("after")
    assert [path.name for path in tmp_path.rglob("*")] == [own.name, "below"]


def test_a_length_may_have_leading_zeros(m: Manager, program: Callable[..., str]) -> None:
    library = program("zeros")
    call = FunctionCall(library, "answer_with", b"0000000005\n1 2 3")
    call.set_retries(1)
    (failure,) = finish(m, call)
    assert isinstance(failure, SlotLost) and "b'1 2 3' instead of a task id and an exit status" in str(failure)


@pytest.mark.parametrize("content", [pickle.dumps([1])[:-2], b"", b"garbage", b"cno_such_module\nf\n.", b"csys\nexit\n(I3\ntR."])
def test_a_result_that_cannot_be_read(m: Manager, program: Callable[..., str], content: bytes) -> None:
    library = program("unread")
    (failure,) = finish(m, FunctionCall(library, "leave_file", content))
    assert type(failure) is TaskFailed
    assert "function 'leave_file' of library 'unread' ended with status 0 and left a result that cannot be read: " in str(failure)
    assert "; it printed: leaving bytes" in str(failure)


@contextmanager
def no_output(how: str) -> Iterator[None]:
    """The standard output of what is started meanwhile takes nothing. No fixture: pytest changes it after these."""
    if how == "full":
        useless = os.open("/dev/full", os.O_WRONLY)
    else:
        unread, useless = os.pipe()
        os.close(unread)
    ours = os.dup(1)
    os.dup2(useless, 1)
    os.close(useless)
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


@pytest.mark.parametrize("how", ["full", "closed"])
def test_what_a_call_prints_where_nobody_takes_it(how: str) -> None:
    with no_output(how), Manager(local_cores=1) as manager:
        task = manager.create_library_from_command(PROGRAM, "prints")
        task.add_input(manager.declare_buffer("prints"), "name.txt")
        manager.install_library(task)
        assert finish(manager, *[FunctionCall("prints", "join", "a", "b", sep="-") for _ in range(3)]) == ["a-b"] * 3


def test_slots_of_a_program_run_at_the_same_time(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    library = program("two", slots=2)
    gate = tmp_path / "gate"
    calls = [FunctionCall(library, "wait_for", str(gate)) for _ in range(2)]
    for call in calls:
        m.submit(call)
    assert started(gate, 2)
    gate.touch()
    while not m.empty():
        assert m.wait(LIMIT_S) is not None
    assert [call.output for call in calls] == [True, True]


def test_a_program_that_dies_is_started_again(m: Manager, program: Callable[..., str]) -> None:
    library = program("dies")
    before = finish(m, FunctionCall(library, "who"))[0][1]
    call = FunctionCall(library, "kill_program")
    (failure,) = finish(m, call)
    assert isinstance(failure, SlotLost) and "the program was killed by SIGKILL" in str(failure)
    assert finish(m, FunctionCall(library, "who"))[0][1] != before


def test_a_workspace_with_a_blank_in_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a blank").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "a blank"))
    with Manager(local_cores=1) as m:
        task = m.create_library_from_command(PROGRAM, "blank")
        task.add_input(m.declare_buffer("blank"), "name.txt")
        m.install_library(task)
        (failure,) = finish(m, FunctionCall("blank", "double", 1))
    assert isinstance(failure, LibraryFailed) and "has a blank in it" in str(failure) and "--workspace" in str(failure)


def test_a_program_that_dies_while_a_child_has_its_pipes(m: Manager, program: Callable[..., str]) -> None:
    """Its end is noticed, though the pipe for answers stays open."""
    library = program("daemon")
    call = FunctionCall(library, "live_on_and_kill_program")
    m.tune("max-losses", 0)
    try:
        (failure,) = finish(m, call)
    finally:
        m.tune("max-losses", 5)
    assert isinstance(failure, SlotLost) and "the program was killed by SIGKILL" in str(failure)


def test_the_last_words_of_a_program_that_dies_in_a_call(m: Manager, program: Callable[..., str]) -> None:
    """More than the error takes: what is cut is the beginning."""
    words = FunctionCall(program("speaks"), "say_and_kill_program", "é" * 99 + "\n", 5000)
    (failure,) = finish(m, words)
    assert isinstance(failure, SlotLost)
    before, _, said = str(failure).partition("the program was killed by SIGKILL: ")
    said = said.partition(" (a crash")[0]
    assert said.endswith("é" * 99) and 1900 < len(said.encode()) <= 2002, before


def test_a_cancelled_call_takes_its_program_along_and_nobody_elses(
    m: Manager, program: Callable[..., str], tmp_path: Path, started_by_test: Callable[[], list[int]]
) -> None:
    library = program("cancel", slots=2)
    gates = [tmp_path / "one", tmp_path / "two"]
    calls = [FunctionCall(library, "wait_for", str(gate)) for gate in gates]
    for call in calls:
        m.submit(call)
    assert all(started(gate, 1) for gate in gates)
    pid = int(next(tmp_path.glob("one-*")).name.rpartition("-")[2])
    m.cancel_by_task_id(calls[0].id)
    assert m.wait(LIMIT_S) is calls[0] and calls[0].result == "cancelled"
    gates[1].touch()
    assert m.wait(LIMIT_S) is calls[1] and calls[1].output is True
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_a_program_of_another_name_is_refused_in_words(m: Manager, program: Callable[..., str]) -> None:
    (failure,) = finish(m, FunctionCall(program("wanted", said="other"), "double", 1))
    assert isinstance(failure, LibraryFailed)
    assert "the program said" in str(failure) and '"name": "other"' in str(failure) and '"name": "wanted"' in str(failure)


@pytest.mark.parametrize(
    ("manner", "text"),
    [
        ("exit", "the program ended with exit code 3: no licence: ask your administrator"),
        ("leave", "the program ended with exit code 4: left early"),
        ("chatter", "where the length of a message is expected"),
        ("talk on", "the program wrote b'and more' without being asked"),
    ],
)
def test_a_program_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manner: str, text: str
) -> None:
    monkeypatch.setenv("TEST_PROGRAM_START", manner)
    with Manager(local_cores=1) as manager:
        task = manager.create_library_from_command(PROGRAM, "bad")
        task.add_input(manager.declare_buffer("bad"), "name.txt")
        manager.install_library(task)
        (failure,) = finish(manager, FunctionCall("bad", "double", 1))
        assert isinstance(failure, LibraryFailed) and text in str(failure)
    said = text.rpartition("code ")[2].partition(": ")[2]
    assert said in capfd.readouterr().err, "the worker's standard error has it, too"


def test_a_program_whose_interpreter_is_not_there(m: Manager, program: Callable[..., str], tmp_path: Path) -> None:
    """The shell says that the program is not found, which it is."""
    path = tmp_path / "my tool"
    path.write_text("#!/no/such/python -u\n")
    path.chmod(0o755)
    (failure,) = finish(m, FunctionCall(program("tool", path=path), "double", 1))
    assert isinstance(failure, LibraryFailed)
    said = "(the first line of 'my tool' names the interpreter '/no/such/python', which is not there on "
    assert "ended with exit code 127" in str(failure) and said in str(failure), failure


def test_what_cannot_be_a_program(m: Manager, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the program .*/nothing of library 'x' is no file"):
        m.create_library_from_command(tmp_path / "nothing", "x")
    with pytest.raises(UsageError, match="of library 'x' is no file"):
        m.create_library_from_serverized_files("x", tmp_path)
    with pytest.raises(UsageError, match="a library needs a name"):
        m.create_library_from_command(PROGRAM, "")
    with pytest.raises(UsageError, match="env is not supported"):
        m.create_library_from_command(PROGRAM, "x", env=m.declare_buffer("e"))


# ---------------------------------------------------------------- files and init commands


def read_here(name: str) -> tuple[str, str | None]:
    return Path(name).read_text(), os.environ.get("TEST_INIT")


def read_context(name: str) -> dict[str, str]:
    return {"text": Path(name).read_text()}


def text_of_context() -> Any:
    return load_variable_from_library("text")


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_files_of_a_library(m: Manager, tmp_path: Path, mode: str) -> None:
    local = tmp_path / "table.txt"
    local.write_text("x" * 2_000_000)
    task = m.create_library_from_functions(
        f"files-{mode}", read_here, text_of_context, exec_mode=mode, library_context_info=[read_context, ["deep/context.txt"], {}]
    )
    task.add_input(m.declare_file(local), "table.txt")
    task.add_input(m.declare_buffer("from a buffer"), "deep/context.txt")
    m.install_library(task)
    assert finish(m, FunctionCall(task, "read_here", "table.txt"), FunctionCall(task, "text_of_context")) == [
        ("x" * 2_000_000, None),
        "from a buffer",
    ]
    m.remove_library(task.name)
    # Once more: its files are sent again.
    m.install_library(task)
    assert finish(m, FunctionCall(task, "text_of_context")) == ["from a buffer"]
    m.remove_library(task.name)


def test_files_that_a_library_cannot_have(m: Manager, tmp_path: Path) -> None:
    task = m.create_library_from_functions("inputs", add)
    with pytest.raises(UsageError, match="a temp cannot be an input of a library"):
        task.add_input(m.declare_temp(), "x")
    with pytest.raises(TypeError, match="an input is a File"):
        task.add_input("x", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leads out of the task's directory"):
        task.add_input(m.declare_buffer("x"), "../x")
    task.add_input(m.declare_file(tmp_path / "missing"), "x")
    with pytest.raises(UsageError, match=r"the input .*/missing cannot be read"):
        m.install_library(task)
    assert not m.check_library_exists("inputs")
    other = m.create_library_from_functions("inputs", add)
    m.install_library(other)
    with pytest.raises(UsageError, match="is installed: add its inputs before"):
        other.add_input(m.declare_buffer("x"), "x")
    m.remove_library("inputs")


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_an_init_command_comes_before_the_interpreter(m: Manager, mode: str) -> None:
    task = m.create_library_from_functions(f"init-{mode}", read_here, exec_mode=mode, init_command=". ./settings.sh &&")
    task.add_input(m.declare_buffer("export TEST_INIT='it works'; echo loud >&2"), "settings.sh")
    m.install_library(task)
    assert finish(m, FunctionCall(task, "read_here", "settings.sh"))[0][1] == "it works"
    m.remove_library(task.name)


def test_an_init_command_that_fails_says_why(m: Manager) -> None:
    task = m.create_library_from_functions("init-bad", add, init_command="no-such-program-anywhere &&")
    m.install_library(task)
    (failure,) = finish(m, FunctionCall(task, "add", 1))
    assert isinstance(failure, LibraryFailed)
    assert "exit code 127 in its init_command" in str(failure) and "no-such-program-anywhere" in str(failure)
    m.remove_library(task.name)
    with pytest.raises(UsageError, match="init_command must be a str, not 3"):
        m.create_library_from_functions("x", add, init_command=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("echo hi", 0, "hi python3 -c "),
        ("echo asked in vain; echo why >&2; exit 7 &&", 7, "asked in vain\nwhy"),
        ("true #", 0, "it said nothing"),
    ],
)
def test_an_init_command_that_never_comes_to_the_interpreter(m: Manager, command: str, code: int, said: str) -> None:
    task = m.create_library_from_functions("init-ends", add, init_command=command)
    m.install_library(task)
    (failure,) = finish(m, FunctionCall(task, "add", 1))
    m.remove_library(task.name)
    assert isinstance(failure, LibraryFailed)
    assert f"ended with exit code {code} in its init_command: {said}" in str(failure)
    hint = "(the init_command is put in front of the interpreter's command line, which has not run: let it end with '&&'"
    assert (hint in str(failure)) == (code == 0)


def say(text: str) -> bool:
    print(text, flush=True)
    print(text.upper(), file=sys.stderr, flush=True)
    return True


def test_what_is_printed_after_an_init_command_goes_where_the_worker_prints(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also what the command itself prints; but a file that it has chosen for what follows stays chosen."""
    with Manager(local_cores=1) as manager:
        for name, command in (("plain", "echo before; true &&"), ("filed", f"exec > {tmp_path}/chosen; true &&")):
            manager.install_library(manager.create_library_from_functions(name, say, init_command=command))
            assert finish(manager, FunctionCall(name, "say", f"words of {name}")) == [True]
    out, err = capfd.readouterr()
    assert "words of plain\n" in out and "WORDS OF PLAIN\n" in err and "before\n" in err
    assert "words of filed" not in out and "WORDS OF FILED\n" in err
    assert (tmp_path / "chosen").read_text() == "words of filed\n"


# ---------------------------------------------------------------- threads


def context_with_thread(log: str) -> dict[str, Any]:
    """A context that works only in the process that made it: a thread answers through a list."""
    questions: list[Any] = []
    answered = threading.Event()

    def answer() -> None:
        while True:
            if questions:
                questions.append(questions.pop() * 2)
                answered.set()
                answered.clear()
            time.sleep(0.001)

    thread = threading.Thread(target=answer, name="answerer", daemon=True)
    thread.start()
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    return {"thread": thread, "kept": []}


def uses_thread(x: int) -> tuple[bool, int, int]:
    thread: Any = load_variable_from_library("thread")
    kept: Any = load_variable_from_library("kept")
    kept.append(x)
    return thread.is_alive(), len(kept), os.getpid()


@pytest.fixture
def speaking(capfd: pytest.CaptureFixture[str]) -> Iterator[Manager]:
    """A manager made inside the test, so that what it says is captured."""
    with Manager(local_cores=2) as manager:
        yield manager


def test_a_context_with_threads_lives_in_slots_of_its_own(speaking: Manager, capfd: Any, tmp_path: Path) -> None:
    m = speaking
    task = m.create_library_from_functions(
        "threads", uses_thread, exec_mode="direct", library_context_info=[context_with_thread, [str(tmp_path / "log")], {}]
    )
    task.set_function_slots(2)
    m.install_library(task)
    results = finish(m, *[FunctionCall(task, "uses_thread", i) for i in range(20)])
    assert all(alive for alive, _, _ in results)
    by_slot: dict[int, list[int]] = {}
    for _, count, pid in results:
        by_slot.setdefault(pid, []).append(count)
    # Each slot made its context once and kept what its calls left in it; the parent made one to find the thread.
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_slot.values())
    assert set(map(int, (tmp_path / "log").read_text().split())) >= by_slot.keys()
    assert (
        "library 'threads' cannot be forked: its context or a module that it imports started 1 thread" in capfd.readouterr().err
    )


def test_fork_mode_loads_a_context_with_threads_for_each_call(speaking: Manager, capfd: Any, tmp_path: Path) -> None:
    m = speaking
    task = m.create_library_from_functions(
        "forked", uses_thread, exec_mode="fork", library_context_info=[context_with_thread, [str(tmp_path / "log")], {}]
    )
    m.install_library(task)
    results = finish(m, *[FunctionCall(task, "uses_thread", i) for i in range(5)])
    assert [(alive, count) for alive, count, _ in results] == [(True, 1)] * 5
    assert len({pid for _, _, pid in results}) == 5
    assert "each call loads it anew in a process of its own" in capfd.readouterr().err


MODULE = """
import threading, time
thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="of-a-module")
thread.start()
"""


@pytest.fixture
def threaded_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module, found through PYTHONPATH and so imported by name, that starts a thread when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "starts_a_thread.py").write_text(MODULE)
    path = str(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")])))
    monkeypatch.syspath_prepend(path)
    return "starts_a_thread"


def is_alive() -> bool:
    import starts_a_thread  # type: ignore[import-not-found]

    return bool(starts_a_thread.thread.is_alive())


def test_modules_that_start_threads(threaded_module: str, capfd: Any) -> None:
    with FuturesExecutor(2) as executor:
        assert list(executor.map(is_alive_by_name, range(8))) == [True] * 8
        assert "library 'python' cannot be forked" in capfd.readouterr().err


def is_alive_by_name(_: int) -> bool:
    import starts_a_thread

    return bool(starts_a_thread.thread.is_alive())


def test_a_python_task_with_such_a_module(threaded_module: str) -> None:
    with Manager(local_cores=1) as manager:
        tasks = [PythonTask(is_alive) for _ in range(3)]
        assert finish(manager, *tasks) == [True] * 3  # type: ignore[arg-type]

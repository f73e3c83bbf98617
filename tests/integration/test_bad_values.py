"""Values that cannot mean anything: refused in words where they are given, and the manager goes on."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from daskvine import DaskVine, FuturesExecutor
from tests.kit.calls import LIMIT_S
from vinecore import FunctionCall, Manager, PythonTask, Resources, Task
from vinecore.errors import LoopDied, UsageError
from vinecore.model.config import RANGES, Tunables

_numbers = itertools.count()


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def run(manager: Manager) -> None:
    """It has a worker, which runs tasks."""
    task = Task("echo fine", cores=1)
    manager.submit(task)
    assert manager.wait(LIMIT_S) is task and task.output == "fine\n"


@pytest.fixture(scope="module")
def m() -> Iterator[Manager]:
    """A manager with one worker, which nothing here may harm."""
    with Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add))
        run(manager)
        yield manager


@pytest.fixture(scope="module")
def other() -> Iterator[Manager]:
    """A second manager, with one worker too."""
    with Manager(local_cores=1) as manager:
        yield manager


@pytest.fixture(scope="module")
def dask_manager() -> Iterator[DaskVine]:
    """A manager of graphs, with one worker."""
    with DaskVine(local_cores=1, reuse=False) as manager:
        yield manager


@pytest.fixture(autouse=True)
def still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was refused: managers have nothing under way, and run the next task."""
    yield
    for name in ("m", "other"):
        if name in request.fixturenames:
            manager = request.getfixturevalue(name)
            assert manager.engine.loop.died is None
            assert manager.empty()
            run(manager)


# ---------------------------------------------------------------- files of another manager


@pytest.mark.parametrize("kind", ["file", "buffer", "temp"])
@pytest.mark.parametrize("make", [lambda: Task("true"), lambda: PythonTask(add, 1), lambda: FunctionCall("lib", "add", 1)])
def test_files_of_another_manager(m: Manager, other: Manager, tmp_path: Path, kind: str, make: Any) -> None:
    (tmp_path / "in").write_text("x")
    file = {"file": lambda: other.declare_file(tmp_path / "in"), "buffer": lambda: other.declare_buffer(b"x")}.get(
        kind, other.declare_temp
    )()
    for way in ("add_input", "add_output"):
        task = make()
        getattr(task, way)(file, "name")
        with pytest.raises(UsageError, match=r"<File .* belongs to another manager"):
            m.submit(task)
        assert task.id is None and task.state == "INITIAL"


def test_result_in_a_temp_of_another_manager(m: Manager, other: Manager) -> None:
    call = FunctionCall("lib", "add", 1)
    call.set_output(other.declare_temp())
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.submit(call)


def test_library_with_a_file_of_another_manager(m: Manager, other: Manager) -> None:
    library = m.create_library_from_functions(f"lib-{next(_numbers)}", add)
    library.add_input(other.declare_buffer(b"x"), "name")
    with pytest.raises(UsageError, match="belongs to another manager"):
        m.install_library(library)
    assert not m.check_library_exists(library.name)


# ---------------------------------------------------------------- amounts

NO_AMOUNTS = [float("nan"), float("inf"), 10**400, 2**63, "2", None, True, [1]]


@pytest.mark.parametrize("value", NO_AMOUNTS, ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("name", ["cores", "memory", "disk", "gpus"])
def test_amounts_that_are_none(name: str, value: Any) -> None:
    wanted = rf"resource {name} must be (a number >= 0|at most \d+), not {re.escape(repr(value)[:5])}"
    with pytest.raises(UsageError, match=wanted):
        Task("true", **{name: value})
    with pytest.raises(UsageError, match=wanted):
        getattr(FunctionCall("lib", "add", 1), f"set_{name}")(value)


def test_a_negative_amount_is_unset() -> None:
    for least in (-1, float("-inf")):
        assert vars(Task("true", cores=3, memory=least).resources_requested) == {"cores": 3, "memory": -1, "disk": -1, "gpus": -1}


@pytest.mark.parametrize("value", NO_AMOUNTS[:4], ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("mode", ["function-calls", "tasks"])
def test_amounts_of_graphs(dask_manager: DaskVine, value: Any, mode: str) -> None:
    for given in ({"cores": value}, Resources(cores=value)):
        with pytest.raises(UsageError, match="resource cores must be"):
            dask_manager.get({"x": (add, 1)}, "x", resources=given, task_mode=mode)
    with pytest.raises(UsageError, match="resource memory must be"), dask.annotate(resources={"memory": value}):
        dask.delayed(add)(1).compute(scheduler=dask_manager.get, task_mode=mode, optimize_graph=False)
    assert dask_manager.get({"x": (add, 1)}, "x", resources={"cores": 1}, task_mode=mode) == 2


@pytest.mark.parametrize("value", [float("nan"), 10**400, "5", None])
def test_priorities_that_are_none(dask_manager: DaskVine, value: Any) -> None:
    with pytest.raises(UsageError, match=r"priority must be .*, not"):
        Task("true", priority=value)
    if isinstance(value, float | int):  # Dask itself refuses the others
        with pytest.raises(UsageError, match="priority must be"), dask.annotate(priority=value):
            dask.delayed(add)(1).compute(scheduler=dask_manager.get, optimize_graph=False)
    assert dask_manager.get({"x": (add, 1)}, "x") == 2


@pytest.mark.parametrize("value", [2**70, -1, 1.5, float("nan"), "7", None, True])
def test_task_ids_that_cannot_be_sent(m: Manager, value: Any) -> None:
    with pytest.raises(UsageError, match="the least task id must be a whole number from 0 to"):
        m.set_min_task_id(value)


@pytest.mark.parametrize("value", [2**70, float("nan"), "two"])
def test_libraries_of_absurd_size(m: Manager, value: Any) -> None:
    library = m.create_library_from_functions(f"lib-{next(_numbers)}", add)
    for method, what in (
        ("set_cores", "the cores of library 'lib-"),
        ("set_function_slots", "function slots"),
        ("set_max_calls_per_slot", "calls per slot"),
    ):
        with pytest.raises(UsageError, match=f"{what}.* must be"):
            getattr(library, method)(value)


# ---------------------------------------------------------------- settings of the manager


@pytest.mark.parametrize("name", sorted(RANGES))
def test_tunables_out_of_their_range(m: Manager, name: str) -> None:
    span, documented, before = RANGES[name], name.replace("_", "-"), dataclasses.astuple(m.engine.tunables)
    values = [float("nan"), float("inf"), float("-inf"), 10**400, span.most * 2, "5", None, True]
    values += [] if span.is_raised else [span.least - 1]
    values += [1.5] if span.is_whole else []
    for value in values:
        wanted = (
            rf"the tunable {documented} takes a (whole )?number from {re.escape(str(span))}, not {re.escape(repr(value)[:9])}"
        )
        with pytest.raises(UsageError, match=wanted):
            m.tune(documented, value)
    assert dataclasses.astuple(m.engine.tunables) == before


def test_tunables_at_the_ends_of_their_range() -> None:
    for name, span in RANGES.items():
        tunables = Tunables()
        for value in (span.least, span.most):
            assert tunables.set(name, value)
            if name != "keepalive_interval":
                assert getattr(tunables, name) == value
        if span.is_raised:
            assert tunables.set(name, span.least - 7) and getattr(tunables, name) == span.least


def test_workers_are_asked_before_they_count_as_lost() -> None:
    tunables = Tunables()
    assert tunables.set("keepalive-timeout", 3) and tunables.keepalive_interval == 1.5
    assert tunables.set("keepalive-interval", 120) and tunables.keepalive_interval == 1.5
    assert tunables.set("keepalive-timeout", 900) and tunables.keepalive_interval == 120
    assert tunables.set("keepalive-interval", 0) and tunables.keepalive_interval == 0


@pytest.mark.parametrize("value", [0, -1, 0.5, float("nan"), "5"])
def test_keepalive_that_would_kill_every_worker(m: Manager, value: Any) -> None:
    with pytest.raises(UsageError, match="the tunable keepalive-timeout takes a number from 1 to"):
        m.set_keepalive_timeout(value)
    if value not in (0, 0.5):
        with pytest.raises(UsageError, match=r"the tunable keepalive-interval takes a number from 0 \(never\) to"):
            m.set_keepalive_interval(value)


def test_tunables_that_do_not_exist(m: Manager, capfd: pytest.CaptureFixture[str]) -> None:
    assert m.tune("max-loses", 3) == m.tune("banana", 3) == -1
    assert capfd.readouterr().err.splitlines() == [
        "vine: tune: there is no tunable 'max-loses'; did you mean 'max-losses'?",
        "vine: tune: there is no tunable 'banana'",
    ]
    with pytest.raises(UsageError, match="the name of a tunable is a str such as 'max-losses', not 3"):
        m.tune(3, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [-1, 1.5, float("nan"), "2", None, True, 2**70])
def test_numbers_of_workers_to_end(m: Manager, count: Any) -> None:
    with pytest.raises(UsageError, match=r"the number of workers to end must be (a whole number >= 0|at most \d+), not"):
        m.workers_shutdown(count)
    assert m.stats.workers_connected == 1


@pytest.mark.parametrize("value", [np.array([1, 2]), "soon", True, float("nan"), [3]])
def test_timeouts_that_are_none(m: Manager, value: Any) -> None:
    for wait in (m.wait, lambda limit: m.wait_for_tag("tag", limit)):
        with pytest.raises(UsageError, match='a timeout is a number of seconds, None or "wait_forever", not '):
            wait(value)


@pytest.mark.parametrize("value", [[1], None, float("nan"), "1", 1.0, object()])
def test_ids_that_are_none(m: Manager, value: Any) -> None:
    for method in (m.cancel_by_task_id, m.explain):
        with pytest.raises(UsageError, match="a task id must be a whole number"):
            method(value)


def test_numbers_of_other_libraries(m: Manager) -> None:
    """Their whole numbers are whole numbers, decimals are numbers."""
    task = Task("true", cores=1)
    task.set_retries(np.int64(3))
    m.submit(task)
    assert m.wait(np.float32(LIMIT_S)) is task
    m.block_host_with_timeout("no such host", Decimal(2))
    m.unblock_host("no such host")


@pytest.mark.parametrize("value", [5, None, b"path", 1.5])
def test_paths_that_are_none(m: Manager, value: Any) -> None:
    with pytest.raises(TypeError, match="declare_file takes the path of a file as a str or Path, not "):
        m.declare_file(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "which is not empty"),
        ("a\0b", "holds a null character"),
        ("https://host/data.root", "not the URL https://host/data.root: "),
    ],
)
def test_paths_of_no_file(m: Manager, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        m.declare_file(value)


def test_paths_that_look_odd(m: Manager, tmp_path: Path) -> None:
    """A name may hold what makes a URL, and a path may be bytes behind its object."""

    class Home:
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "a:")

    (tmp_path / "a:").mkdir()
    (tmp_path / "a:" / "b").write_text("x")
    assert m.declare_file(f"{tmp_path}/a://b").source() == f"{tmp_path}/a:/b"
    assert m.declare_file(Home()).source() == f"{tmp_path}/a:"  # type: ignore[type-var]


@pytest.mark.parametrize("value", ["text", b"bytes", 5, None])
def test_arguments_that_are_no_list(value: Any) -> None:
    call = FunctionCall("library", "fn", 1)
    with pytest.raises(UsageError, match=r"set_fn_args takes a list of arguments, not .*: write \["):
        call.set_fn_args(value)
    with pytest.raises(UsageError, match="set_fn_args takes the named arguments as a dict, not "):
        call.set_fn_args([1], kwargs=[("a", 1)])  # type: ignore[arg-type]
    assert (call.args, call.kwargs) == ((1,), {})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_methods_in_a_fork_of_the_program(m: Manager) -> None:
    """Nothing there has a loop: what would wait, cancel or change something says so."""
    uses = {
        "wait": lambda: m.wait(1),
        "wait_for_tag": lambda: m.wait_for_tag("tag", 1),
        "cancel_all": m.cancel_all,
        "tune": lambda: m.tune("max-losses", 5),
        "hungry": m.hungry,
        "submit": lambda: m.submit(Task("true")),
    }
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for name, use in uses.items():
                try:
                    os.write(write, f"{name}: {use()!r}\n".encode())
                except UsageError as error:
                    os.write(write, b"refused\n" if "another process" in str(error) else f"{name}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lines == ["refused"] * len(uses)


# ---------------------------------------------------------------- limits of time


@pytest.mark.parametrize("name", ["time_max", "time_end"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "5", None, True, [5]])
def test_times_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} must be (a number of \w*seconds|at most \d+).*, not"):
        Task("true", **{name: value})
    with pytest.raises(UsageError, match=f"{name} must be"):
        getattr(PythonTask(add, 1), f"set_{name}")(value)


def test_parts_of_a_second_are_a_limit(m: Manager) -> None:
    task = Task("sleep 100", cores=1, time_max=0.5)
    m.submit(task)
    assert m.wait(LIMIT_S) is task and task.result == "max wall time"


@pytest.mark.parametrize("value", [0, -1, -0.5])
def test_no_limit_of_time(m: Manager, value: float) -> None:
    task = Task("echo fine", cores=1, time_max=value, time_end=value)
    m.submit(task)
    assert m.wait(LIMIT_S) is task and task.result == "success"


# ---------------------------------------------------------------- commands, retries


@pytest.mark.parametrize("command", ["", " \n"])
def test_commands_without_text(m: Manager, command: str) -> None:
    with pytest.raises(UsageError, match="a command is not empty"):
        Task(command)
    with pytest.raises(UsageError, match="a command is not empty"):
        Task("true").set_command(command)


def test_a_command_that_fails_is_not_run_again(m: Manager, tmp_path: Path) -> None:
    """As the reference says: it comes back."""
    task = Task(f"echo ran >> {tmp_path}/runs; false", cores=1, retries=3)
    m.submit(task)
    assert m.wait(LIMIT_S) is task and task.exit_code == 1
    assert (tmp_path / "runs").read_text() == "ran\n"


def test_environments_that_are_no_dict() -> None:
    with pytest.raises(TypeError, match="env is a dict of name to value, not list"):
        Task("true", env=["A"])


# ---------------------------------------------------------------- temps that are taken


def test_two_tasks_that_make_one_temp(m: Manager) -> None:
    temp = m.declare_temp()
    first, second = (Task(f"echo {number} > out", cores=1, outputs={temp: "out"}) for number in (1, 2))
    m.submit(first)
    with pytest.raises(UsageError, match=r"another task makes the temp for 'out', <File temp .*: declare one for each task"):
        m.submit(second)
    assert m.wait(LIMIT_S) is first
    with pytest.raises(UsageError, match="another task makes the temp"):
        m.submit(second)
    # The same task may make it again.
    m.submit(first)
    assert m.wait(LIMIT_S) is first and m.fetch_file(temp) == "1\n"
    with pytest.raises(UsageError, match="is an output of this task already"):
        first.add_output(temp, "again")


@pytest.mark.parametrize("command", ["true", "echo 1 > out; false"])
def test_a_temp_whose_task_failed_may_be_made_by_another(m: Manager, command: str) -> None:
    temp = m.declare_temp()
    for number, text in enumerate((command, "echo 2 > out")):
        task = Task(text, cores=1, outputs={temp: "out"})
        m.submit(task)
        assert m.wait(LIMIT_S) is task and task.successful() is bool(number)
    assert m.fetch_file(temp) == "2\n"


def test_two_calls_with_one_temp(m: Manager) -> None:
    temp = m.declare_temp()
    first, second = FunctionCall("lib", "add", 1), FunctionCall("lib", "add", 2)
    first.set_output(temp)
    second.set_output(temp)
    m.submit(first)
    with pytest.raises(UsageError, match="another task makes the temp of this one, <File temp"):
        m.submit(second)
    assert m.wait(LIMIT_S) is first
    assert m.fetch_file(temp) is not None and temp.contents(pickle.load) == 2


def test_a_call_that_was_refused_still_has_its_temp(m: Manager, tmp_path: Path) -> None:
    temp, buffer = m.declare_temp(), m.declare_buffer()
    call = FunctionCall("lib", "add", 1)
    call.set_output(temp)
    call.add_input(buffer, "in")
    with pytest.raises(UsageError, match="this buffer has no content yet"):
        m.submit(call)
    maker = Task("echo made > out", cores=1, outputs={buffer: "out"})
    m.submit(maker)
    assert m.wait(LIMIT_S) is maker
    m.submit(call)
    assert m.wait(LIMIT_S) is call and call.output_file is temp
    assert m.fetch_file(temp) is not None and temp.contents(pickle.load) == 2


# ---------------------------------------------------------------- wrong words


def test_a_call_without_its_library(m: Manager) -> None:
    with pytest.raises(UsageError, match=r"not the function add: write FunctionCall\(library, 'add', ...\), or PythonTask\(add"):
        FunctionCall(add, 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the name of a library, or a LibraryTask, not 3"):
        FunctionCall(3, "add")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the name of a function in the library: 'add', not <function add"):
        FunctionCall("lib", add, 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the name of a function in the library: a str, not 1"):
        FunctionCall("lib", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["", " ", 3, None, "a\0b"])
def test_hosts_that_are_none(m: Manager, host: Any) -> None:
    blocked = set(m.engine.machine.state.blocked_hosts)
    for use in (m.block_host, lambda name: m.block_host_with_timeout(name, 5), m.set_draining_by_hostname):
        with pytest.raises(UsageError, match="the name of a host"):
            use(host)
    if host is not None:  # all of them
        with pytest.raises(UsageError, match="the name of a host"):
            m.unblock_host(host)
    assert m.engine.call_in_loop(lambda: set(m.engine.machine.state.blocked_hosts)) == blocked


@pytest.mark.parametrize("seconds", ["x", None, float("nan"), float("inf"), True, 10**400])
def test_times_for_which_no_host_is_blocked(m: Manager, seconds: Any) -> None:
    with pytest.raises(UsageError, match="the time for which a host is blocked must be"):
        m.block_host_with_timeout("somewhere", seconds)


def test_options_that_libraries_do_not_have(m: Manager) -> None:
    with pytest.raises(
        UsageError, match=r"no option 'hoisting_module'; did you mean 'hoisting_modules'\? It takes: exec_mode, hoist"
    ):
        m.create_library_from_functions("other", add, hoisting_module=[])
    with pytest.raises(UsageError, match=r"no option 'banana'\. It takes: exec_mode, .*init_command, poncho_env, add_env"):
        m.create_library_from_functions("other", add, banana=1)


def test_a_buffer_without_content(m: Manager, tmp_path: Path) -> None:
    buffer = m.declare_buffer()
    with pytest.raises(UsageError, match="<File buffer not made yet> has no content yet: make it an output of a task"):
        buffer.contents()
    forgets = Task("true", cores=1, outputs={buffer: "out"})
    m.submit(forgets)
    assert m.wait(LIMIT_S) is forgets and forgets.result == "output missing"
    with pytest.raises(UsageError, match="the task that was to make it did not"):
        buffer.contents()
    makes = Task(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo 1 > out", cores=1, outputs={buffer: "out"})
    m.submit(makes)
    with pytest.raises(UsageError, match="wait for the task that makes it"):
        buffer.contents()
    (tmp_path / "go").touch()
    assert m.wait(LIMIT_S) is makes and buffer.contents() == b"1\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("initializer", "context of a library"), ("initargs", "docs/functions.md"), ("mp_context", "fork their slots")],
)
def test_options_of_process_pools(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"FuturesExecutor has no option '{name}': .*{hint}"):
        FuturesExecutor(max_workers=1, **{name: None})


@pytest.mark.parametrize("options", [{"max_workers": 2}, {"port": 0}, {"ssl": True}, {"password_file": "secret"}, {"auth": None}])
def test_executors_on_a_manager_have_nothing_of_their_own(m: Manager, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} is for an executor with a manager of its own"):
        FuturesExecutor(manager=m, **options)


def test_an_executor_on_a_closed_manager() -> None:
    m = Manager(port=0)
    m.close()
    with pytest.raises(LoopDied, match="has been closed"):
        FuturesExecutor(manager=m)


def test_options_that_dask_managers_do_not_have() -> None:
    with pytest.raises(TypeError, match=r"DaskVine has no option 'foo'; it takes: port, local_cores, .*, reuse"):
        DaskVine(local_cores=1, foo=1)


def test_a_process_for_more_calls_than_can_be_counted() -> None:
    with pytest.raises(UsageError, match="max_tasks_per_child must be a whole number from 1 to"):
        FuturesExecutor(max_workers=1, max_tasks_per_child=2**70)


@pytest.mark.parametrize("timeout", [10**400, float("inf"), 10**10])
def test_waiting_longer_than_anybody_can(m: Manager, timeout: float) -> None:
    """Without limit, that is: it ends when there is nothing to wait for."""
    assert m.wait(timeout) is None
    call = FunctionCall("lib", "add", 1)
    m.submit(call)
    assert m.wait(timeout) is call and call.output == 2


def test_descriptions_that_no_message_carries_are_refused(m: Manager) -> None:
    """One of 40 MB used to end every worker that it was sent to."""
    for make in (lambda: Task("true " + "x" * 9_000_000), lambda: PythonTask(add, 1)):
        task = make()
        if isinstance(task, PythonTask):
            task.set_env_var("LONG", "x" * 9_000_000)
        with pytest.raises(UsageError, match=r"take 9,000,\d\d\d bytes, more than 8,388,608: put what is long into a file"):
            m.submit(task)
    # Many that are just small enough do not travel in one message.
    tasks = [Task("true " + "x" * 2_000_000, cores=1) for _ in range(30)]
    for task in tasks:
        m.submit(task)
    for _ in tasks:
        assert m.wait(LIMIT_S) is not None
    assert {task.result for task in tasks} == {"forsaken"} and "128 KiB" in tasks[0].reason
    run(m)


@pytest.mark.parametrize(
    "port", [10**5000, -(10**5000), (1, 10**5000), (10**5000, 1), ["x" * 10**6, 2]], ids=["long", "below", "high", "low", "text"]
)
def test_ports_that_cannot_be_shown(port: Any) -> None:
    """A number of so many digits is not even shown by Python."""
    with pytest.raises(UsageError, match=r"(port must be a number|a range of ports is) .{,60}, not .{,70}$"):
        Manager(port=port)


def test_a_port_of_the_environment_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINE_PORT", "9" * 5000)
    with pytest.raises(UsageError, match=r"VINE_PORT='9{59}\.\.\. is no port number"):
        Manager()
    monkeypatch.setenv("VINE_PORT", "9" * 50)
    with pytest.raises(UsageError, match="port must be a number from 0 to 65535"):
        Manager()


def test_other_options_that_cannot_be_shown(m: Manager) -> None:
    for options, what in (({"auth": 10**5000}, "auth"), ({"ssl": 10**5000}, "ssl"), ({"auth": "x" * 10**6}, "auth")):
        with pytest.raises(UsageError, match=f"{what} must be .{{,140}}$"):
            Manager(port=0, **options)
    with pytest.raises(UsageError, match="a library needs a name, not an object of type int"):
        m.create_library_from_functions(10**5000, add)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="init_command must be a str, not an object of type int"):
        m.create_library_from_functions("long", add, init_command=10**5000)  # type: ignore[arg-type]


def test_descriptions_are_measured_in_bytes(m: Manager) -> None:
    """Characters of four bytes got past the limit, and ended every worker."""
    with pytest.raises(UsageError, match=r"take 20,000,006 bytes, more than 8,388,608"):
        m.submit(Task("true #" + "\U0001f600" * 5_000_000))
    run(m)

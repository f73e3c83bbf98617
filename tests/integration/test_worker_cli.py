"""``vine_worker HOST PORT`` as a process of its own: command line, connecting, secrets, times, end, two of them.

Each worker has a home and a directory for temporary files below the test's own directory, so what it leaves is seen.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine, FuturesExecutor
from tests.kit.processes import LIMIT_S, MODULE, ROOT, Worker
from vinecore import FunctionCall, Manager, PythonTask
from vinecore.api.engine import Engine
from vinecore.cli.worker import build_parser

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")

_numbers = itertools.count()


def eventually(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> bool:
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def workers_of(manager: Manager) -> dict[int, Any]:
    """Hello of each connected worker, by pid."""
    return manager.engine.call_in_loop(  # type: ignore[no-any-return]
        lambda: {worker.hello.pid: worker.hello for worker in manager.engine.machine.state.workers.values()}
    )


def connected(manager: Manager, count: int = 1) -> bool:
    return eventually(lambda: manager.stats.workers_connected == count)


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def run(manager: Manager, function: Callable[..., Any], *args: Any) -> Any:
    """One call in a library of its own."""
    name = f"lib-{next(_numbers)}"
    manager.install_library(manager.create_library_from_functions(name, function, exec_mode="direct"))
    call = FunctionCall(name, function.__name__, *args)
    manager.submit(call)
    assert manager.wait(LIMIT_S) is call, "the call never came back"
    manager.remove_library(name)
    return call.output


def wait_for_file(path: str) -> int:
    """Say that the call runs, then wait for a file, for a bounded time; returns the slot's pid."""
    Path(f"{path}-{os.getpid()}").touch()
    until = time.monotonic() + LIMIT_S
    while not Path(path).exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{path} never came")
        time.sleep(0.005)
    return os.getpid()


# ---------------------------------------------------------------- the command line


def test_help_explains_every_flag() -> None:
    done = subprocess.run(
        [sys.executable, *MODULE, "--help"], capture_output=True, text=True, timeout=LIMIT_S, check=True, cwd=ROOT
    )
    shown = " ".join(done.stdout.split())
    flags = "--cores --memory --disk --gpus --workspace --password --timeout --single-shot --debug --connect-timeout"
    flags += " --idle-timeout --keep-workspace --no-authentication --feature --min-backoff --max-backoff --version"
    for flag in flags.split():
        assert flag in shown
    hidden = {"--secret-fd", "--lifeline-fd"}
    for action in build_parser()._actions:
        names = set(action.option_strings)
        if names & hidden:
            assert not any(name in shown for name in names)
        else:
            assert action.help and action.help != "==SUPPRESS==", names
            assert " ".join((action.help % {"prog": "vine_worker"}).split()) in shown.replace("- ", "-") or action.help in shown
    assert "HOST PORT" in shown and "[IPV6]:PORT" in shown


def test_version() -> None:
    done = subprocess.run([sys.executable, *MODULE, "-v"], capture_output=True, text=True, timeout=LIMIT_S, check=True, cwd=ROOT)
    assert re.fullmatch(r"vine_worker \S.*\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "the following arguments are required"),
        ("localhost", "'localhost' is no HOST:PORT with a port from 1 to 65535"),
        ("localhost port", "'localhost:port' is no HOST:PORT"),
        ("localhost 0", "'localhost:0' is no HOST:PORT with a port from 1 to 65535"),
        ("localhost 65536", "'localhost:65536' is no HOST:PORT"),
        ("::1:9123", "write an IPv6 address as [ADDRESS]:PORT"),
        ("one two three", "give HOST PORT or HOST:PORT, not 3 words: one two three"),
        (";", "no manager was named"),
        (f"localhost {'1' * 5000}", f"'localhost:{'1' * 49}... is no HOST:PORT with a port from 1 to 65535"),
        (".a..b 9123", "'.a..b' is no name of a host: the parts between its dots have 1 to 63 characters each"),
        (f"127.0.0.1:1;{'x' * 64}:1", f"'{'x' * 59}... is no name of a host"),
        ("localhost 9123 --tls-sni=", "--tls-sni takes the name of a server, not '' (leave it out for none)"),
        ("localhost 9123 --tls-sni ..bad..", "--tls-sni takes the name of a server, not '..bad..'"),
        ("localhost 9123 --tls-sni .x", "--tls-sni takes the name of a server, not '.x'"),
        (f"localhost 9123 --tls-sni {'x' * 300}", f"--tls-sni takes the name of a server, not '{'x' * 59}..."),
        (f"localhost 9123 --tls-sni {'xxx.' * 75}x", f"--tls-sni takes the name of a server, not '{'xxx.' * 14}xxx..."),
        ("localhost 9123 --cores 0", "--cores takes a whole number from 1 to 2048 or 'all', not '0'"),
        ("localhost 9123 --cores two", "--cores takes a whole number from 1 to 2048 or 'all', not 'two'"),
        ("localhost 9123 --cores 2049", "--cores takes a whole number from 1 to 2048 or 'all', not '2049'"),
        (f"localhost 9123 --cores {'9' * 5000}", f"--cores takes a whole number from 1 to 2048 or 'all', not '{'9' * 59}..."),
        (f"localhost 9123 --memory {2**40 + 1}", "--memory takes a whole number from 1 to 1099511627776 or 'all'"),
        ("localhost 9123 --disk 9999999999999999999999", "--disk takes a whole number from 1 to 1099511627776 or 'all'"),
        ("localhost 9123 --gpus -1", "--gpus takes a whole number from 0 to 2048 or 'all', not '-1'"),
        ("localhost 9123 -t inf", "--timeout takes a number of seconds from 0 to 1000000000, not inf"),
        ("localhost 9123 -t 1e30", "--timeout takes a number of seconds from 0 to 1000000000, not 1e+30"),
        ("localhost 9123 --workspace=", "--workspace takes the name of a directory, not ''"),
        ("localhost 9123 --password=", "--password takes the name of a file, not '' (leave it out and"),
        ("localhost 9123 --memory -5", "--memory"),
        ("localhost 9123 --memory 1.5", "--memory takes a whole number"),
        ("localhost 9123 --disk 0", "--disk takes a whole number from 1"),
        ("localhost 9123 --gpus many", "--gpus takes a whole number"),
        ("localhost 9123 --timeout soon", "--timeout: invalid float value: 'soon'"),
        ("localhost 9123 --timeout=-1", "--timeout takes a number of seconds from 0 to 1000000000, not -1"),
        ("localhost 9123 --idle-timeout nan", "--idle-timeout takes a number of seconds from 0 to 1000000000, not nan"),
        ("localhost 9123 --connect-timeout=-0.5", "--connect-timeout takes a number of seconds from 0"),
        ("localhost 9123 --min-backoff 9", "--max-backoff 8 is below --min-backoff 9"),
        ("localhost 9123 --no-authentication --password x", "--no-authentication and --password contradict each other"),
        ("localhost 9123 --nonsense", "unrecognized arguments: --nonsense"),
        ("localhost 9123 --no-authentication --workspace /proc/version", "cannot use /proc/version as the workspace"),
        ("localhost 9123 --no-authentication --workspace /proc/1/x", "cannot use /proc/1/x as the workspace"),
    ],
)
def test_bad_command_lines(start: Callable[..., Worker], words: str, told: str) -> None:
    worker = start(*words.split())
    assert worker.ended() == 2
    assert told in worker.err and "Traceback" not in worker.err
    assert worker.err.count("\n") == 1 or worker.err.startswith("usage: ")
    assert list(worker.tmp.iterdir()) == []


def test_bad_environment(start: Callable[..., Worker]) -> None:
    worker = start("localhost", 9123, "--no-authentication", CORES="lots")
    assert worker.ended() == 2 and "CORES" in worker.err and "'lots'" in worker.err


# ---------------------------------------------------------------- connecting


@pytest.mark.parametrize(
    "words",
    ["127.0.0.1 {}", "::1 {}", "localhost {}", "127.0.0.1:{}", "[::1]:{}", "localhost:{}", "127.0.0.1:{other};localhost:{}"],
)
def test_addresses(start: Callable[..., Worker], words: str) -> None:
    if ":1" in words.replace("127.0.0.1:", "") and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with Manager(port=0) as manager:
        worker = start(*words.format(manager.port, other=free_port()).split(), "--single-shot", "--cores", 1)
        assert run(manager, add, 1) == 2
        assert list(workers_of(manager)) == [worker.process.pid]
    assert worker.ended() == 0
    assert "manager at" in worker.out and worker.err == "" and list(worker.tmp.iterdir()) == []


def test_started_before_its_manager(start: Callable[..., Worker], home: Path) -> None:
    with Manager(port=0):
        pass  # makes the secret
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        port = listener.getsockname()[1]
        worker = start("127.0.0.1", port, "--min-backoff", 0.05, "--max-backoff", 0.2)
        # It has tried in vain twice: somebody answered and hung up.
        for _ in range(2):
            connection, _ = listener.accept()
            connection.close()
    with Manager(port=port) as manager:
        assert run(manager, add, 1) == 2
        assert list(workers_of(manager)) == [worker.process.pid]


def test_one_manager_after_another(start: Callable[..., Worker]) -> None:
    port = free_port()
    worker = None
    pids = set()
    for number in range(3):
        with Manager(port=port) as manager:
            worker = worker or start("localhost", port, "--min-backoff", 0.05, "--max-backoff", 0.2)
            assert run(manager, add, number) == number + 1
            pids.update(workers_of(manager))
    assert worker is not None and pids == {worker.process.pid} and worker.process.poll() is None


def test_a_full_manager_is_not_asked_without_a_pause(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        manager.tune("max-workers", 0)
        worker = start("127.0.0.1", manager.port, "--min-backoff", 0.3, "--max-backoff", 0.3)
        assert eventually(lambda: "left the manager: this manager has as many workers as it may" in worker.out)
        manager.tune("max-workers", -1)
        assert connected(manager)
        assert worker.out.count("left the manager") <= 3, worker.out
        said = "this manager has as many workers as it may"
        assert f"no manager lets this worker in: 127.0.0.1:{manager.port} ({said}); trying again\n" in worker.out


def test_single_shot(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--single-shot")
        assert connected(manager)
    assert worker.ended() == 0 and list(worker.tmp.iterdir()) == []


@pytest.mark.parametrize("flag", ["--connect-timeout", "--timeout", "-t"])
def test_no_manager_in_time(start: Callable[..., Worker], flag: str) -> None:
    port = free_port()
    worker = start("127.0.0.1", port, flag, 0.3, "--no-authentication", "--min-backoff", 0.1)
    assert worker.ended() == 1
    assert f"no manager answered at 127.0.0.1:{port} within 0.3 s" in worker.err and list(worker.tmp.iterdir()) == []


def test_a_manager_that_comes_later_is_waited_for_and_that_is_said_once(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        port = manager.port
    worker = start("127.0.0.1", port, "--min-backoff", 0.05, "--max-backoff", 0.1)
    said = f"no manager answers at 127.0.0.1:{port} ("
    assert eventually(lambda: said in worker.out)
    assert re.search(r"\(Connection refused\); trying again for (900|899) s", worker.out), worker.out
    with Manager(port=port) as manager:
        manager.submit(PythonTask(abs, -3))
        task = manager.wait(LIMIT_S)
        assert task is not None and task.output == 3
    assert eventually(lambda: worker.out.count(said) == 2), "it waits for the next one"
    worker.process.terminate()
    assert worker.ended() == 0 and worker.out.count(said) == 2 and worker.err == ""


def test_a_worker_that_finds_no_other_manager_says_so_and_ends_well(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        port = manager.port
        worker = start("127.0.0.1", port, "--connect-timeout", 0.5, "--min-backoff", 0.1)
        assert connected(manager)
    assert worker.ended() == 0
    assert f"no manager answered at 127.0.0.1:{port} within 0.5 s: " in worker.out and worker.out.endswith("; ending\n")
    assert list(worker.tmp.iterdir()) == []


def answer_as_http(connection: socket.socket) -> None:
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def answer_as_echo(connection: socket.socket) -> None:
    connection.sendall(connection.recv(4096))


@pytest.mark.parametrize("answer", [answer_as_http, answer_as_echo])
def test_something_else_answers(start: Callable[..., Worker], answer: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        port = listener.getsockname()[1]
        worker = start("127.0.0.1", port, "--no-authentication")
        connection, _ = listener.accept()
        with connection:
            answer(connection)
            said = f"no manager answers at 127.0.0.1:{port} (what answers there is no manager of this kind: "
            assert eventually(lambda: said in worker.out), worker.out
        worker.process.terminate()
        assert worker.ended(10.0) == 0


def test_unknown_host(start: Callable[..., Worker]) -> None:
    worker = start("no-such-host.invalid", 9123, "--connect-timeout", 0.2, "--no-authentication")
    assert worker.ended() == 1 and "no manager answered at no-such-host.invalid:9123" in worker.err


@pytest.mark.parametrize("flag", ["--idle-timeout", "--timeout"])
def test_idle_worker_leaves_though_it_is_pinged(start: Callable[..., Worker], flag: str) -> None:
    with Manager(port=0) as manager:
        manager.tune("keepalive-interval", 0.1)
        worker = start("127.0.0.1", manager.port, flag, 1)
        assert worker.ended(15.0) == 0
        assert "left the manager: no work for 1 s" in worker.out and list(worker.tmp.iterdir()) == []
        assert connected(manager, 0)


def test_a_long_call_is_no_idleness(start: Callable[..., Worker], tmp_path: Path) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--idle-timeout", 0.3, "--cores", 1)
        manager.install_library(manager.create_library_from_functions("lib", wait_for_file, exec_mode="direct"))
        call = FunctionCall("lib", "wait_for_file", str(tmp_path / "gate"))
        manager.submit(call)
        assert eventually(lambda: list(tmp_path.glob("gate-*")))
        # Well beyond the limit, while the call runs.
        assert manager.wait(1.2) is None and worker.process.poll() is None
        (tmp_path / "gate").touch()
        assert manager.wait(LIMIT_S) is call and call.successful()
        assert manager.stats.workers_joined == 1
        assert worker.ended(15.0) == 0


# ---------------------------------------------------------------- what it offers, where it works


def test_resources_by_flags_and_environment(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        flags = ("--cores", 3, "--memory", 1000, "--disk", 2000, "--gpus", 1, "--feature", "large", "--feature", "fast")
        first = start("127.0.0.1", manager.port, *flags, CORES="7")
        assert connected(manager)
        stats = manager.stats
        assert (stats.total_cores, stats.total_memory, stats.total_disk, stats.total_gpus) == (3, 1000, 2000, 1)
        assert workers_of(manager)[first.process.pid].features == ["large", "fast"]
        assert "3 cores, 1000 MB memory, 2000 MB disk, 1 gpus" in first.out
        start("127.0.0.1", manager.port, CORES="4", MEMORY="50", DISK="60", GPUS="2")
        assert connected(manager, 2)
        stats = manager.stats
        assert (stats.total_cores, stats.total_memory, stats.total_disk, stats.total_gpus) == (7, 1050, 2060, 3)


def test_all_of_the_machine(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", "all", "--memory", "all", "--gpus", 0)
        assert connected(manager)
        hello = workers_of(manager)[worker.process.pid]
        assert hello.cores == len(os.sched_getaffinity(0)) and hello.memory_mb > 100 and hello.disk_mb > 0


@pytest.mark.parametrize(("made_before", "keep"), [(True, False), (False, False), (False, True)])
def test_workspace(start: Callable[..., Worker], tmp_path: Path, made_before: bool, keep: bool) -> None:
    place = tmp_path / "deep" / "space"
    if made_before:
        place.mkdir(parents=True)
        (place / "mine").write_text("kept")
    with Manager(port=0) as manager:
        flags = ["--keep-workspace"] if keep else []
        worker = start("127.0.0.1", manager.port, "--workspace", place, *flags)
        assert run(manager, np.zeros, 50_000).shape == (50_000,)
        assert str(place) in worker.out and workers_of(manager)[worker.process.pid].store.startswith(f"{place}/")
        assert place.stat().st_mode & 0o777 == 0o700 or made_before
        worker.process.terminate()
        assert worker.ended() == 0
    assert place.exists() == (made_before or keep)
    if place.exists():
        assert [path.name for path in place.iterdir()] == (["mine"] if made_before else [])
    assert list(worker.tmp.iterdir()) == []


@pytest.mark.parametrize("is_private", [True, False])
def test_a_workspace_whose_name_is_no_utf8_is_refused(start: Callable[..., Worker], tmp_path: Path, is_private: bool) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    if is_private:
        worker = start("127.0.0.1", free_port(), "--no-authentication", TMPDIR=str(place))
    else:
        worker = start("127.0.0.1", free_port(), "--no-authentication", "--workspace", place)
    assert worker.ended() == 2
    assert "caf\\udce9' is no valid UTF-8: name another directory" in worker.err
    assert worker.err.count("\n") == 1, worker.err
    assert not list(place.iterdir()) and not list(worker.tmp.iterdir())


def test_debug_prints_events(start: Callable[..., Worker]) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--single-shot", "--debug")
        assert run(manager, add, 1) == 2
    assert worker.ended() == 0 and "Welcome(" in worker.err and "StartLibrary(" in worker.err


# ---------------------------------------------------------------- secrets and versions


def test_password_file_of_both_sides(start: Callable[..., Worker], tmp_path: Path, home: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    (tmp_path / "same").write_bytes(b"open sesame")
    with Manager(port=0, password_file=str(tmp_path / "password")) as manager:
        start("127.0.0.1", manager.port, "--password", tmp_path / "same")
        assert run(manager, add, 1) == 2
        start("127.0.0.1", manager.port, VINE_PASSWORD_FILE=str(tmp_path / "password"))
        assert connected(manager, 2)
    # A named password is enough: no secret was made.
    assert list(home.iterdir()) == []


def refused(worker: Worker) -> str:
    """What a worker says that must give up at once, well before any limit of time."""
    assert worker.ended(10.0) == 1
    assert "Traceback" not in worker.err and list(worker.tmp.iterdir()) == []
    return worker.err


def test_wrong_secret(start: Callable[..., Worker], tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("something else")
    with Manager(port=0) as manager:
        text = refused(start("127.0.0.1", manager.port, "--password", tmp_path / "wrong"))
        assert "the manager's secret is another one than this worker's" in text and "--password" in text
        # Nobody else is disturbed.
        start("127.0.0.1", manager.port)
        assert run(manager, add, 1) == 2


def test_missing_secret(start: Callable[..., Worker], tmp_path: Path, home: Path) -> None:
    with Manager(port=0) as manager:
        elsewhere = str(tmp_path / "elsewhere")
        worker = start("127.0.0.1", manager.port, "--connect-timeout", 0.1, XDG_CONFIG_HOME=elsewhere)
        text = refused(worker)
        assert f"there is no secret at {elsewhere}/vine/secret: copy" in text and "--password FILE" in text
        assert (
            worker.out.count(f"there is no secret at {elsewhere}/vine/secret yet: the first manager of this user makes it") == 1
        )
        text = refused(start("127.0.0.1", manager.port, "--password", tmp_path / "nothing"))
        named = f"vine_worker: there is no password file {tmp_path}/nothing: "
        assert text == f"{named}create it with a password in it, or name another one\n"
        text = refused(start("127.0.0.1", manager.port, "--no-authentication"))
        assert "the manager wants a secret and this worker has none" in text and "--password FILE" in text
    assert not Path(elsewhere).exists()


def test_a_secret_that_is_made_later(start: Callable[..., Worker], home: Path) -> None:
    """On a first use there is no secret yet: a worker that is started before its manager waits for both."""
    port = free_port()
    worker = start("127.0.0.1", port, "--min-backoff", 0.05, "--max-backoff", 0.2)
    assert eventually(lambda: f"there is no secret at {home}/config/vine/secret yet" in worker.out)
    with Manager(port=port) as manager:
        assert run(manager, np.zeros, 50_000).shape == (50_000,)
        assert list(workers_of(manager)) == [worker.process.pid]
    assert worker.err == ""


def test_secret_that_others_can_read(start: Callable[..., Worker], home: Path) -> None:
    with Manager(port=0) as manager:
        secret = home / "config" / "vine" / "secret"
        secret.chmod(0o644)
        text = refused(start("127.0.0.1", manager.port))
        assert f"{secret} can be used by other users (mode 0644)" in text and f"chmod 600 {secret}" in text


def test_without_authentication(start: Callable[..., Worker], home: Path) -> None:
    with Manager(port=0, auth=None) as manager:
        start("127.0.0.1", manager.port, "--no-authentication")
        assert run(manager, add, 1) == 2
        assert list(home.iterdir()) == []
        (home / "password").write_text("x")
        text = refused(start("127.0.0.1", manager.port, "--password", home / "password"))
        assert "this worker has a secret and the manager uses none" in text


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_protocol_version(start: Callable[..., Worker], version: int) -> None:
    code = f"""
import sys
from vinecore.wire import messages
messages.PROTOCOL_VERSION = {version}
from vinecore.cli.worker import main
sys.exit(main())
"""
    with Manager(port=0) as manager:
        text = refused(start("127.0.0.1", manager.port, code=("-c", code)))
        assert f"the manager speaks protocol 1, this worker {version}: install the same version of daskvine on both" in text


# ---------------------------------------------------------------- the end


def start_sleep(path: str, own_session: bool) -> int:
    """Leave a process behind, then block."""
    subprocess.Popen(["sleep", "300"], start_new_session=own_session)
    return wait_for_file(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_a_signal_ends_the_whole_tree(
    start: Callable[..., Worker], started_by_test: Callable[[], list[int]], tmp_path: Path, number: int, exec_mode: str
) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 2)
        manager.install_library(manager.create_library_from_functions("lib", start_sleep, exec_mode=exec_mode))
        two = manager.create_library_from_functions("two", wait_for_file, exec_mode="direct")
        two.set_function_slots(2)
        manager.install_library(two)
        gate = str(tmp_path / "gate")
        for call in (
            FunctionCall("lib", "start_sleep", gate, False),
            FunctionCall("two", "wait_for_file", gate),
            FunctionCall("two", "wait_for_file", gate),
        ):
            manager.submit(call)
        assert eventually(lambda: len(list(tmp_path.glob("gate-*"))) >= 3)
        tree = started_by_test()
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree]
        assert any(command.startswith(b"sleep") for command in commands) and len(tree) >= 6
        worker.process.send_signal(number)
        assert worker.ended(10.0) == 0
        assert eventually(lambda: started_by_test() == [], 2.0), started_by_test()
        assert list(worker.tmp.iterdir()) == []
        assert connected(manager, 0)
        # Its work is not lost: another one takes it over.
        (tmp_path / "gate").touch()
        start("127.0.0.1", manager.port, "--cores", 2)
        assert all(manager.wait(LIMIT_S).successful() for _ in range(3))


def test_what_made_itself_a_session_ends_too(
    start: Callable[..., Worker], started_by_test: Callable[[], list[int]], tmp_path: Path
) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port)
        manager.install_library(manager.create_library_from_functions("lib", start_sleep, exec_mode="direct"))
        manager.submit(FunctionCall("lib", "start_sleep", str(tmp_path / "gate"), True))
        assert eventually(lambda: list(tmp_path.glob("gate-*")))
        worker.process.terminate()
        assert worker.ended(10.0) == 0
        assert eventually(lambda: started_by_test() == [], 2.0)


def test_killed_worker_takes_parents_and_slots_along(
    start: Callable[..., Worker], started_by_test: Callable[[], list[int]], tmp_path: Path
) -> None:
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 2)
        for mode in ("direct", "fork"):
            manager.install_library(manager.create_library_from_functions(mode, wait_for_file, exec_mode=mode))
            manager.submit(FunctionCall(mode, "wait_for_file", str(tmp_path / "gate")))
        assert eventually(lambda: len(list(tmp_path.glob("gate-*"))) == 2)
        # The worker, three parents (the default library too) and their slots.
        assert len(started_by_test()) >= 7
        worker.process.kill()
        assert eventually(lambda: started_by_test() == [], 2.0), started_by_test()
        assert connected(manager, 0)


# ---------------------------------------------------------------- two workers, one manager


@pytest.fixture
def two(start: Callable[..., Worker]) -> Callable[[Engine], list[Worker]]:
    """Start two workers of one core each; returns when both take calls."""

    def make(engine: Engine) -> list[Worker]:
        workers = [start("127.0.0.1", engine.port, "--cores", 1, "--min-backoff", 0.05) for _ in range(2)]
        instances = engine.python.instances
        assert eventually(lambda: engine.call_in_loop(lambda: [i.state for i in instances.values()]) == ["up", "up"])
        return workers

    return make


@contextlib.contextmanager
def executor() -> Iterator[FuturesExecutor]:
    """One that does not wait for its calls when the test has failed."""
    ex = FuturesExecutor(port=0)
    try:
        yield ex
    finally:
        ex.shutdown(cancel_futures=True)


def meet(directory: str, count: int, value: Any) -> Any:
    """Return when this many calls run at the same time; one slot each means: in different slots."""
    Path(directory, f"met-{os.getpid()}").touch()
    until = time.monotonic() + LIMIT_S
    while len(list(Path(directory).glob("met-*"))) < count:
        if time.monotonic() > until:
            raise RuntimeError("the others never came")
        time.sleep(0.005)
    return value


def array_with_home(directory: str, seed: int) -> tuple[int, Any]:
    meet(directory, 2, None)
    return os.getpid(), np.full(500_000, float(seed))


def both(one: tuple[int, Any], two: tuple[int, Any]) -> tuple[int, int, float]:
    return one[0], two[0], float((one[1] + two[1]).sum())


def test_work_spreads_over_two_workers(two: Callable[[Engine], list[Worker]], tmp_path: Path) -> None:
    with executor() as ex:
        two(ex.engine)
        # Each worker has one slot: these two end only if both of them run.
        futures = [ex.submit(meet, str(tmp_path), 2, i) for i in range(2)]
        assert [future.result(LIMIT_S) for future in futures] == [0, 1]
        pids = [ex.submit(os.getpid) for _ in range(300)]
        assert len({future.result(LIMIT_S) for future in pids}) == 2


def test_large_values_move_between_workers_as_arguments(two: Callable[[Engine], list[Worker]], tmp_path: Path) -> None:
    with executor() as ex:
        two(ex.engine)
        made = [ex.submit(array_with_home, str(tmp_path), seed) for seed in (1, 2)]
        joined = [ex.submit(both, made[0], made[1]) for _ in range(4)]
        results = [future.result(LIMIT_S) for future in joined]
        assert {total for _, _, total in results} == {1_500_000.0}
        one, other, _ = results[0]
        # They were made on both workers, so at least one of them travelled.
        assert one != other
        assert made[0].result(LIMIT_S)[1].sum() == 500_000.0


def test_dask_graph_with_large_values_on_two_workers(two: Callable[[Engine], list[Worker]], tmp_path: Path) -> None:
    with DaskVine(port=0) as m:
        two(m.engine)
        graph: dict[Any, Any] = {("made", i): (array_with_home, str(tmp_path), i) for i in range(2)}
        graph["all"] = (both, ("made", 0), ("made", 1))
        one, other, total = m.get(graph, "all")
        assert one != other and total == 500_000.0


def test_dask_array_on_two_workers(two: Callable[[Engine], list[Worker]]) -> None:
    import dask.array as da

    with DaskVine(port=0) as m:
        two(m.engine)
        x = da.ones((2000, 2000), chunks=500)
        total = (x + 2 * x.T).sum()
        assert total.compute(scheduler=m.get) == 3 * 4_000_000


def slow_sum(path: str, one: Any, two: Any) -> Any:
    Path(path).touch()
    time.sleep(0.02)
    return one + two


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_losing_one_of_two_workers_while_a_graph_runs(two: Callable[[Engine], list[Worker]], tmp_path: Path, number: int) -> None:
    """The killer waits until a third of the sums has run, so values are lost in the middle."""
    leaves = 64
    graph: dict[Any, Any] = {("s", 0, i): (np.full, 20_000, i) for i in range(leaves)}
    level, width = 0, leaves
    while width > 1:
        for i in range(width // 2):
            marker = str(tmp_path / f"ran-{level + 1}-{i}")
            graph["s", level + 1, i] = (slow_sum, marker, ("s", level, 2 * i), ("s", level, 2 * i + 1))
        level, width = level + 1, width // 2
    with DaskVine(port=0) as m:
        workers = two(m.engine)
        told: list[bool] = []

        def kill() -> None:
            told.append(eventually(lambda: len(list(tmp_path.glob("ran-*"))) >= leaves // 3))
            workers[0].process.send_signal(number)

        killer = threading.Thread(target=kill)
        killer.start()
        result = m.get(graph, ("s", level, 0))
        killer.join(LIMIT_S)
        assert told == [True]
        assert np.array_equal(result, np.full(20_000, leaves * (leaves - 1) // 2))
        workers[0].ended()
        assert eventually(lambda: m.stats.workers_removed == 1) and m.stats.workers_connected == 1

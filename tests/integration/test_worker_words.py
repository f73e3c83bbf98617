"""What a worker says of its own reaches people where it can, and never holds it up or ends it."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.calls import add, eventually, finish
from tests.kit.processes import Worker
from vinecore import FunctionCall, Manager
from vinecore.shell.own_words import say

# This process and its workers look for secrets and settings below the test's directory only.
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def talk(path: str) -> None:
    Path(path).touch()
    os.write(1, b"x" * 1_000_000)


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_a_worker_whose_output_nobody_reads_ends(
    start: Callable[..., Worker], tmp_path: Path, pipe: tuple[int, int], exec_mode: str
) -> None:
    """Its call is stuck in its print, and what the worker says at its end finds the pipe full."""
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 1, "--debug", streams=pipe[1])
        manager.install_library(manager.create_library_from_functions("lib", talk, exec_mode=exec_mode))
        manager.submit(FunctionCall("lib", "talk", str(tmp_path / "talks")))
        assert eventually((tmp_path / "talks").exists)
        worker.process.terminate()
        assert worker.ended() == 0 and list(worker.tmp.iterdir()) == []


def test_a_worker_whose_output_is_closed_works(start: Callable[..., Worker]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 1, streams=writer)
        os.close(writer)
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        assert finish(manager, FunctionCall("lib", "add", 1)) == [2]
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0 and list(worker.tmp.iterdir()) == []


def test_a_line_is_whole_or_not_there(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    say(writer, "caf\xe9 \udce9")
    assert os.read(reader, 1 << 20) == "caf\xe9 \\udce9\n".encode()
    say(writer, "y" * 100_000)
    line = os.read(reader, 1 << 20)
    assert line == b"y" * (len(line) - 1) + b"\n" and len(line) == 4096
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"z" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    say(writer, "lost")
    assert set(os.read(reader, 1 << 20)) == {ord("z")}
    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK


def few_files_first(count: int) -> tuple[str, ...]:
    """Run the worker where it may open so many files only."""
    limit = f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))"
    return "-c", f"{limit}\nfrom vinecore.cli.worker import main\nsys.exit(main())"


def test_a_worker_that_may_not_open_enough_files_says_so(start: Callable[..., Worker]) -> None:
    reader, writer = os.pipe()
    with Manager(port=0) as manager:
        worker = start("127.0.0.1", manager.port, "--cores", 100, code=few_files_first(100), streams=writer)
        os.close(writer)
        assert worker.ended() == 1
    with open(reader) as said:
        text = said.read()
    assert "vine_worker: it cannot open a slot (Too many open files): raise the limit (ulimit -Hn), or offer fewer" in text
    assert "Traceback" not in text, text

"""Real processes for tests: workers started by their command, a private home for them, and marks by which what is left is found.

Whatever a marked process starts inherits the mark in its environment, so nothing hides from ``processes_marked``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 30.0
# Ends are orderly, but a busy machine may take its time for them.
GONE_LIMIT_S = 8.0
ROOT = Path(__file__).resolve().parents[2]
MODULE = ("-m", "vinecore.cli.worker")
SCRIPT_MARK = "VINE_SCRIPT_MARK"
_numbers = itertools.count()


# ---------------------------------------------------------------- marks


def processes_marked(mark: str) -> list[int]:
    """The ids of living processes that inherited ``NAME=value`` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until_gone(mark: str, limit_s: float = GONE_LIMIT_S) -> list[int]:
    """Wait for the marked processes to end; those that are left at the limit."""
    until = time.monotonic() + limit_s
    while (left := processes_marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def marked(name: str) -> Iterator[str]:
    """Mark whatever is started from here on; at the end nothing of it may be left."""
    value = uuid.uuid4().hex
    os.environ[name] = value
    try:
        yield f"{name}={value}"
        left = wait_until_gone(f"{name}={value}")
        commands = []
        for process_id in left:
            try:
                commands.append(f"{process_id}: {Path(f'/proc/{process_id}/cmdline').read_bytes()[:200]!r}")
                os.kill(process_id, signal.SIGKILL)
            except OSError:
                continue
        assert not left, f"processes were left behind: {commands}"
    finally:
        os.environ.pop(name, None)


# ---------------------------------------------------------------- workers


def private_home(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process and its workers look for secrets and settings below this directory only."""
    place = directory / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    for name in ("VINE_PASSWORD_FILE", "VINE_PORT", "CORES", "MEMORY", "DISK", "GPUS"):
        monkeypatch.delenv(name, raising=False)
    return place


class Worker:
    """A running ``vine_worker``; what it prints goes to files.

    Parameters:
        words: its command line.
        code: how the interpreter finds the command.
        prefix: a command that runs it, for one inside a namespace.
        tmp: parent of its directory for temporary files, which is ``directory`` if nothing is said.
        streams: a descriptor that is its standard output and error, instead of files.
    """

    def __init__(
        self,
        directory: Path,
        *words: object,
        code: tuple[str, ...] = MODULE,
        prefix: Sequence[str] = (),
        tmp: Path | None = None,
        streams: int | None = None,
        **environment: str,
    ) -> None:
        number = next(_numbers)
        self.tmp = (tmp or directory) / f"tmp-{number}"
        self.tmp.mkdir()
        self._out, self._err = directory / f"worker-{number}.out", directory / f"worker-{number}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *code, *map(str, words)],
                env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=out if streams is None else streams,
                stderr=err if streams is None else streams,
                cwd=directory,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code; it must end in time."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the worker did not end within {limit_s} s; it printed:\n{self.out}\n{self.err}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def workers_below(directory: Path) -> Iterator[Callable[..., Worker]]:
    """A function that starts workers; those that still run at the end get SIGTERM, then SIGKILL."""
    workers: list[Worker] = []

    def make(*words: object, **options: Any) -> Worker:
        workers.append(Worker(directory, *words, **options))
        return workers[-1]

    try:
        yield make
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(LIMIT_S)
            worker.kill()


# ---------------------------------------------------------------- programs


class Script:
    """A user's program in a process group of its own."""

    def __init__(self, directory: Path, text: str, name: str = "script.py", **more: str) -> None:
        self.mark = uuid.uuid4().hex
        path = directory / name
        path.write_text(textwrap.dedent(text))
        # Buffered, so that a line of a slot leaves in one write, whatever its neighbour prints.
        path_list = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, SCRIPT_MARK: self.mark, "PYTHONUNBUFFERED": "", "PYTHONPATH": path_list, **more}
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, limit_s: float = LIMIT_S) -> tuple[str, str, int]:
        """What it printed on both streams, and its exit code."""
        try:
            out, err = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return out, err, self.process.returncode

    def pids(self) -> list[int]:
        """Living processes that carry its mark."""
        return processes_marked(f"{SCRIPT_MARK}={self.mark}")

    def left_after(self, limit_s: float) -> list[int]:
        """What is left of it after at most this time."""
        until = time.monotonic() + limit_s
        while (left := self.pids()) and time.monotonic() < until:
            time.sleep(0.01)
        return left

    def kill(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process and its workers look for secrets and settings below the test's directory only."""
    return private_home(tmp_path, monkeypatch)


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start workers; those that still run at the end of the test get SIGTERM."""
    with workers_below(tmp_path) as make:
        yield make


@contextlib.contextmanager
def worker_of(port: int, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the manager at that port of this machine; what it says goes to a file in the directory."""
    command = [sys.executable, *MODULE, "127.0.0.1", str(port), *options]
    with open(directory / f"out-{next(_numbers)}", "wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(LIMIT_S)

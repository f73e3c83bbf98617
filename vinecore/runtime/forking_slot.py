"""A slot that gives each call a process of its own: what the call changes is lost with it, what kills it kills only it.

    call of a function ------------> fork; the child writes its Result to a pipe and exits
    ... with a sandbox ------------> the same, in a private directory, its output in a file
    ... whose sandbox has a command  -> /bin/sh -c, in a private directory

The slot waits, watches limits (time, disk of the sandbox), reaps and reports. A child of a function that leaves no Result was
killed or left on its own (``os._exit``): the call counts as lost, unless a limit was the reason.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from time import perf_counter
from typing import NoReturn

from vinecore.runtime import payload as payloads
from vinecore.runtime.lifeline import die_with_parent
from vinecore.runtime.randomness import reseed
from vinecore.runtime.sandbox import STDOUT, Box
from vinecore.runtime.slot import MissingInput, Slot
from vinecore.wire import messages
from vinecore.wire.messages import Call, Report, Result, Sandbox

_READ_BYTES = 65536
# How often limits are looked at; higher: a task that exceeds one runs on longer.
LOOK_S = 1.0
# The disk of a sandbox is measured less often, since that walks its files.
DISK_LOOK_S = 5.0


class Limits:
    """When a task has to be ended."""

    def __init__(self, spec: Sandbox | None, box: Box | None) -> None:
        now = time.time()
        ends = []
        if spec is not None and spec.wall_time_s > 0:
            ends.append((now + spec.wall_time_s, "max wall time"))
        if spec is not None and spec.end_at_s > 0:
            ends.append((spec.end_at_s, "max end time"))
        self.end, self.reason = min(ends, default=(0.0, ""))
        self.box = box if spec is not None and spec.disk_mb > 0 else None
        self.disk_mb = spec.disk_mb if spec is not None else 0
        self.disk_at = now + DISK_LOOK_S
        self.seen_mb = 0

    def wait_ms(self) -> int | None:
        """Milliseconds until the next look; None: there is nothing to look at."""
        if not self.end and self.box is None:
            return None
        wait = LOOK_S
        if self.end:
            wait = min(wait, max(0.0, self.end - time.time()))
        return int(wait * 1000) + 1

    def exceeded(self) -> str:
        """The result string of the limit that was passed; empty when none was."""
        now = time.time()
        if self.end and now >= self.end:
            return self.reason
        if self.box is not None and now >= self.disk_at:
            self.disk_at = now + DISK_LOOK_S
            self.seen_mb = self.box.size_mb()
            if self.seen_mb > self.disk_mb:
                return "sandbox exhaustion"
        return ""


class ForkingSlot(Slot):
    """Runs every call in a child of its own."""

    def execute(self, call: Call) -> Result:
        """Run one call in a process of its own; nothing that user code does gets out of here."""
        started = perf_counter()
        try:
            result = self._plain(call) if call.sandbox is None else self._boxed(call, call.sandbox)
        except MissingInput as error:
            result = Result(call.task_id, call.attempt, messages.NO_INPUT, 0, str(error).encode())
        except OSError as error:
            # The sandbox could not be built or emptied (disk full, rights): not the task's fault.
            result = Result(call.task_id, call.attempt, messages.LOST, 0, f"its sandbox failed: {error}".encode())
        except Exception as error:
            result = Result(call.task_id, call.attempt, messages.RAISED, 0, payloads.encode_error(error))
        result.duration_us = int((perf_counter() - started) * 1e6)
        return result

    def _plain(self, call: Call) -> Result:
        result, _, how = self._fork(call, Limits(None, None), None)
        if result is None:
            return Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how}".encode())
        return result

    # ------------------------------------------------------------ in a sandbox

    def _boxed(self, call: Call, spec: Sandbox) -> Result:
        store = Path(self.store)
        box = Box(store.parent / f"sandboxes-{os.getpid()}", f"task.{call.task_id}.{call.attempt}", spec, store)
        try:
            try:
                box.build(self.inline)
            except FileNotFoundError as error:
                raise MissingInput(Path(str(error.filename)).name) from None
            began = time.time()
            limits = Limits(spec, box)
            if spec.command:
                result, report = self._command(call, spec, box, limits)
            else:
                result, report = self._function(call, box, limits)
            report.started_s, report.ended_s = began, time.time()
            self._finish(result, report, spec, box, limits)
            return result
        finally:
            box.remove()

    def _finish(self, result: Result, report: Report, spec: Sandbox, box: Box, limits: Limits) -> None:
        """Outputs, standard output and damage, whatever the end was."""
        succeeded = report.exit_code == 0 and not report.outcome and result.status <= messages.OK_KEPT
        if report.outcome in ("", "max wall time", "max end time"):
            report.products, report.missing = box.collect(succeeded, self.inline_limit_bytes)
        if report.outcome:
            report.missing = []
        report.damaged = box.damaged()
        kept = min(spec.stdout_limit_bytes, self.inline_limit_bytes * 64)
        report.stdout, report.stdout_cut = _read_limited(box.path / STDOUT, kept)
        report.disk_mb = limits.seen_mb
        result.report = report

    def _command(self, call: Call, spec: Sandbox, box: Box, limits: Limits) -> tuple[Result, Report]:
        slot = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_shell(spec.command, box, slot)
        outcome = ""
        try:
            outcome = _watch_process(pid, limits)
        finally:
            _kill_group(pid)
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        exit_code = 9 if outcome else (-code if code < 0 else code)
        return Result(call.task_id, call.attempt, messages.OK_INLINE, 0), Report(exit_code, b"", [], [], [], outcome)

    def _function(self, call: Call, box: Box, limits: Limits) -> tuple[Result, Report]:
        result, outcome, how = self._fork(call, limits, box)
        if outcome:
            return Result(call.task_id, call.attempt, messages.OK_INLINE, 0), Report(9, b"", [], [], [], outcome)
        if result is None:
            lost = Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how}".encode())
            return lost, Report(-1, b"", [], [], [])
        return result, Report(1 if result.status == messages.RAISED else 0, b"", [], [], [])

    # ------------------------------------------------------------ processes

    def _fork(self, call: Call, limits: Limits, box: Box | None) -> tuple[Result | None, str, str]:
        """Run the call in a child: its Result or None, the limit that ended it, and how the process ended."""
        receive, send = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        slot = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._child(call, receive, send, box, slot)
        os.close(send)
        try:
            data, outcome = _read_all(receive, limits)
        finally:
            os.close(receive)
            if limits.wait_ms() is not None or box is not None:
                _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        if data and not outcome:
            done = messages.decode_from_slot(data)
            assert isinstance(done, messages.Done)
            return done.results[0], "", ""
        code = os.waitstatus_to_exitcode(status)
        return None, outcome, f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _child(self, call: Call, receive: int, send: int, box: Box | None, slot: int) -> None:
        """Run the call, write its Result, leave without the slot's clean-up."""
        code = 1
        try:
            # The wish to die with the parent is not inherited over a fork: without it a killed worker would leave this call
            # running.
            die_with_parent(slot)
            os.close(receive)
            self.sock.close()
            reseed()
            if box is not None:
                _enter(box)
            result = super().execute(call)
            data = memoryview(messages.encode(messages.Done([result])))
            sys.stdout.flush()
            sys.stderr.flush()
            while data:
                data = data[os.write(send, data) :]
            code = 0
        finally:
            os._exit(code)


def _become_shell(command: str, box: Box, slot: int) -> NoReturn:
    """In the child: /bin/sh in the sandbox. Forked here and not spawned: the wish to die with the slot survives only an exec."""
    try:
        die_with_parent(slot)
        _enter(box)
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execve("/bin/sh", ["/bin/sh", "-c", command], dict(os.environ))
    finally:
        os._exit(126)


def _enter(box: Box) -> None:
    """Make this process live in a sandbox: own group, directory, environment, output."""
    os.setpgid(0, 0)
    os.chdir(box.path)
    environment = box.environment(dict(os.environ))
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(STDOUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(nothing)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _watch_process(pid: int, limits: Limits) -> str:
    """Wait for a process; returns the limit that it passed, empty when it ended by itself."""
    if limits.wait_ms() is None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return ""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(limits.wait_ms()):
            outcome = limits.exceeded()
            if outcome:
                return outcome
        return ""
    finally:
        os.close(fd)


def _read_all(fd: int, limits: Limits) -> tuple[bytes, str]:
    """Read a pipe to its end; gives up with the name of a limit that was passed."""
    parts: list[bytes] = []
    poll = None
    if limits.wait_ms() is not None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
    while True:
        if poll is not None and not poll.poll(limits.wait_ms()):
            outcome = limits.exceeded()
            if outcome:
                return b"", outcome
            continue
        data = os.read(fd, _READ_BYTES)
        if not data:
            return b"".join(parts), ""
        parts.append(data)


def _read_limited(path: Path, limit_bytes: int) -> tuple[bytes, bool]:
    """The beginning of a file, and whether that is not all of it."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return b"", False
    return data[:limit_bytes], len(data) > limit_bytes

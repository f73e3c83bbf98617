"""A slot that gives each call a process of its own: what the call changes is lost with it, what kills it kills only it.

    call of a function ------------> fork; the child leaves its Result in shared memory and exits
    ... with a sandbox ------------> the same, in a private directory, its output in a file
    ... whose sandbox has a command  -> /bin/sh -c, in a private directory (spawned: that copies no page tables)

The slot waits, watches limits (time, disk of the sandbox), reaps and reports. A child of a function that leaves no Result
was killed or left on its own (``os._exit``): the call counts as lost, unless a limit was the reason. The slot has no threads,
since it forks all the time; its guard cleans up when it is killed itself.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from time import perf_counter

from vinecore.errors import UsageError
from vinecore.runtime import error_texts, raised
from vinecore.runtime.answers import Answers
from vinecore.runtime.ends import end_text, signal_text
from vinecore.runtime.exec_limits import too_long_text
from vinecore.runtime.fork_hooks import lean_fork
from vinecore.runtime.guard import Guard, kill_group
from vinecore.runtime.library_code import FILES_VARIABLE, load_functions, threads_beside
from vinecore.runtime.lifeline import adopt_orphans
from vinecore.runtime.places import Place
from vinecore.runtime.randomness import reseed
from vinecore.runtime.sandbox import STDOUT, Box, Unreadable, read_regular
from vinecore.runtime.slot import Broken, Codes, MissingInput, Slot
from vinecore.runtime.strays import end_stray
from vinecore.runtime.streams import fill_streams, flush_streams
from vinecore.wire import messages
from vinecore.wire.messages import Call, Report, Result, Sandbox

# Standard output that rides with a result; far below the limit of a frame, where other results travel too.
STDOUT_LIMIT_BYTES = 2 << 20
# A result waits at most this long for the next call to end: the time of about three forks, so that the worker and the manager,
# who need the same cores, are woken for several results at once. Higher: fewer messages, later results before a long call.
HOLD_MS = 6
# Rounds of ending what a task left behind; bounds a fight with a task that forks all the time.
_END_ROUNDS = 1000
# Ends of orphans that calls without a sandbox left behind are noted once for so many calls, and when there is nothing to do, this
# often while some live. Asking after each call would touch as much as a short call does otherwise.
_REAP_EVERY = 64
ORPHAN_LOOK_MS = 1000
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

    hold_s = HOLD_MS / 1000

    def __init__(
        self,
        sock: socket.socket,
        claims: memoryview,
        begin: messages.Begin,
        functions: dict[int, Callable[..., object]],
        lazy: bool = False,
    ) -> None:
        super().__init__(sock, claims, begin, functions)
        # The library's code starts threads when it is loaded: each child loads what its call needs, and this process nothing.
        self._late = begin if lazy else None
        # Code that children have unpickled without side effects that would harm this process.
        self._harmless: set[int] = set()
        # Of this, what could not be unpickled here all the same: left to the children.
        self._stubborn: set[int] = set()
        # Children are gone after their call, and this process runs no user code.
        self.growth_bytes = 0
        self.sandboxes = Place(Path(begin.store).parent / f"sandboxes-{os.getpid()}")
        # Files of the library, which calls find where they run.
        files = os.environ.pop(FILES_VARIABLE, "") or (os.getcwd() if begin.mounts else "")
        self._shared = [(mount.path, f"{files}/{mount.path}") for mount in begin.mounts]
        self.guard = Guard(self.sandboxes)
        adopt_orphans()
        self._answers = Answers(begin.inline_limit_bytes)
        self._number = 0
        # For the wait of a short while for a child; its descriptor nearly always has the same number.
        self._poll = select.poll()
        self._polled_fd = -1
        # Read once: it does not change here, and reading it takes a tenth of a spawn.
        self._environment = dict(os.environ)
        self._sock_fd = sock.fileno()
        # Objects that tasks wrote into, and that were dropped for that; forgotten when they are here again.
        self._spoilt: set[str] = set()

    def receiver(self) -> Callable[[memoryview], int]:
        """As every slot waits; when there is nothing to do it takes note of the ends of orphans, as long as some live."""
        receive = self.sock.recv_into
        poll = select.poll()
        poll.register(self._sock_fd, select.POLLIN)

        def receive_or_reap(buffer: memoryview) -> int:
            wait_ms = 0
            while not poll.poll(wait_ms) and _reap_adopted():
                wait_ms = ORPHAN_LOOK_MS
            return receive(buffer)

        return receive_or_reap

    def forget(self, code_ids: list[int]) -> None:
        """Drop code that is not used again, with what it holds in cycles."""
        self._harmless.difference_update(code_ids)
        self._stubborn.difference_update(code_ids)
        if self.functions.forget(code_ids) | self.pieces.forget(code_ids):
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _load(self, call: Call) -> None:
        """Unpickle the code of a call, once for all children, if that did a child no harm; else each child does it by itself,
        under the limits of its call."""
        codes = self._codes_of(call)
        message = codes.waiting.get(call.code_id)
        if message is not None and call.code_id in self._harmless and call.code_id not in self._stubborn:
            # Results do not wait for that.
            self.flush()
            process = os.getpid()
            self._unpickle(call)
            if os.getpid() != process:
                end_stray()  # this time the code has forked
            # It may have set variables.
            self._environment = dict(os.environ)
            if isinstance(codes[call.code_id], Broken):
                del codes[call.code_id]
                codes.waiting[call.code_id] = message
                self._stubborn.add(call.code_id)
            # User code ran here, for once: what it printed must not be written by each child.
            flush_streams()
            # Children never scan what is there now: its pages stay shared.
            gc.freeze()

    def _codes_of(self, call: Call) -> Codes:
        return self.functions if call.index < 0 else self.pieces

    def _unpickle(self, call: Call) -> None:
        """The code of a call, and the functions that it names."""
        codes = self._codes_of(call)
        message = codes.waiting.get(call.code_id)
        if message is not None:
            self.functions.load(message.requires)
            codes.load([call.code_id])

    def _try_code(self, call: Call) -> bool:
        """In a child: unpickle what its call needs; True when that left nothing behind which the slot must not have."""
        process = os.getpid()
        opened, limits = _descriptors(), _limits()
        self._unpickle(call)
        if os.getpid() != process:
            end_stray()
        if self._late is not None or signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL:
            return False  # a process that ignores SIGCHLD does not hear of the ends of its children
        try:
            # The slot needs its descriptors, and room for more.
            is_whole = opened <= _descriptors() and limits == _limits()
        except OSError:
            return False
        # A process with threads must not fork, and a child that was forked there would take part in the slot's work.
        return is_whole and not threads_beside() and not _children()

    def _watch(self) -> None:
        """No helper thread: a process that forks must not have any. Who waits for a child sends what a long call holds up."""

    def execute(self, call: Call) -> Result:
        """Run one call in a process of its own; nothing that user code does gets out of here."""
        started = perf_counter()
        try:
            if self._harmless and self._late is None:
                self._load(call)
            result = self._plain(call) if call.sandbox is None else self._boxed(call, call.sandbox)
        except MissingInput as error:
            status = messages.SPOILT_INPUT if str(error) in self._spoilt else messages.NO_INPUT
            result = Result(call.task_id, call.attempt, status, 0, str(error).encode())
        except OSError as error:
            # The sandbox could not be built or emptied, the child not forked: no fault of the task. A value would have no owner.
            (Path(self.store) / f"{self.run_name}-{call.task_id}.{call.attempt}").unlink(missing_ok=True)
            what = "sandbox failed" if call.sandbox is not None else "process could not be started"
            why = error_texts.sendable(f"its {what}: {error}")
            result = Result(call.task_id, call.attempt, messages.LOST, 0, why.encode())
        except Exception as error:
            result = Result(call.task_id, call.attempt, messages.RAISED, 0, raised.encode_error(error))
        result.duration_us = int((perf_counter() - started) * 1e6)
        return result

    def _plain(self, call: Call) -> Result:
        """A call without a sandbox, on the shortest way: whatever is touched here is copied once for each call."""
        self._number += 1
        pid = lean_fork()
        if pid == 0:
            self._child(call, None, ())
        if self.out:
            self._hold(pid)
        _, status = os.waitpid(pid, 0)
        if self._number % _REAP_EVERY == 0:
            _reap_adopted()
        result = self._answer(call)
        if result is None:
            self._discard(call)
            how = end_text(os.waitstatus_to_exitcode(status))
            return Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how}".encode())
        return result

    def _hold(self, pid: int) -> None:
        """Wait a short while for a child; results of calls before it are sent when it takes longer."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            self.flush()  # no descriptor is free: nobody waits then
            return
        try:
            if fd != self._polled_fd:
                self._poll = select.poll()
                self._poll.register(fd, select.POLLIN)
                self._polled_fd = fd
            if not self._poll.poll(HOLD_MS):
                self.flush()
        finally:
            os.close(fd)

    # ------------------------------------------------------------ in a sandbox

    def _boxed(self, call: Call, spec: Sandbox) -> Result:
        box = Box(self.sandboxes, f"task.{call.task_id}.{call.attempt}", spec, Path(self.store))
        try:
            try:
                box.build(self.inline)
            except FileNotFoundError as error:
                raise MissingInput(Path(str(error.filename)).name) from None
            except UsageError as error:
                return _refused(call, str(error))
            if self._shared:
                box.show(self._shared)
            if self._spoilt:
                self._spoilt.difference_update(str(mount.source) for mount in spec.mounts)
            began = time.time()
            limits = Limits(spec, box)
            if outcome := limits.exceeded():
                # Its end had come before its turn.
                result, report = _ended(call, outcome)
            elif spec.command:
                try:
                    result, report = self._command(call, spec, box, limits)
                except UsageError as error:
                    return _refused(call, str(error))
            else:
                result, report = self._function(call, box, limits)
            report.started_s, report.ended_s = began, time.time()
            self._finish(result, report, spec, box, limits)
            return result
        finally:
            box.recycle()

    def _finish(self, result: Result, report: Report, spec: Sandbox, box: Box, limits: Limits) -> None:
        """Outputs, standard output and damage, whatever the end was."""
        succeeded = report.exit_code == 0 and not report.outcome and result.status <= messages.OK_KEPT
        box.regain()
        if report.outcome in ("", "max wall time", "max end time"):
            report.products, report.missing = box.collect(succeeded, self.inline_limit_bytes)
        if report.outcome:
            report.missing = []
        if report.missing:
            report.reason = _missing_text(report, box.path, box.unread)
        report.damaged = box.damaged()
        for name in report.damaged:
            # At once: tasks that wait here already must not read it.
            Path(self.store, name).unlink(missing_ok=True)
        self._spoilt.update(report.damaged)
        limit_bytes = min(spec.stdout_limit_bytes, STDOUT_LIMIT_BYTES)
        if box.place.stands():
            report.stdout, report.stdout_cut = _read_limited(box.path / STDOUT, limit_bytes)
        report.disk_mb = limits.seen_mb
        result.report = report

    def _command(self, call: Call, spec: Sandbox, box: Box, limits: Limits) -> tuple[Result, Report]:
        others = _adopted()
        pid = self._spawn(spec.command, box)
        outcome = ""
        try:
            self.guard.group[0] = pid
            outcome = self._wait_for(pid, limits)
        finally:
            kill_group(pid)
            _, status = os.waitpid(pid, 0)
            _end_adopted(others)
            self.guard.group[0] = 0
        code = os.waitstatus_to_exitcode(status)
        exit_code = 9 if outcome else (-code if code < 0 else code)
        report = Report(exit_code, b"", [], [], [], outcome)
        if code < 0 and not outcome:
            report.reason = f"it {signal_text(code)}"
        return Result(call.task_id, call.attempt, messages.OK_INLINE, 0), report

    def _spawn(self, command: str, box: Box) -> int:
        """Start /bin/sh in the sandbox, in a group of its own.

        Raises:
            UsageError: the kernel takes no command or environment of that length; it would not elsewhere.
        """
        environment = box.environment(self._environment)
        # The child starts where this process is: there is no other way to tell a spawned one. Nothing else runs here meanwhile.
        os.chdir(box.path)
        try:
            return os.posix_spawn(
                "/bin/sh",
                ["/bin/sh", "-c", command],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, STDOUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setpgroup=0,
                setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise UsageError(too_long_text(command, environment)) from None
        finally:
            os.chdir(self.store)

    def _function(self, call: Call, box: Box, limits: Limits) -> tuple[Result, Report]:
        result, outcome, how = self._fork(call, limits, box)
        if outcome:
            return _ended(call, outcome)
        if result is None:
            lost = Result(call.task_id, call.attempt, messages.LOST, 0, f"its process {how}".encode())
            return lost, Report(-1, b"", [], [], [])
        return result, Report(1 if result.status == messages.RAISED else 0, b"", [], [], [])

    # ------------------------------------------------------------ processes

    def _fork(self, call: Call, limits: Limits, box: Box) -> tuple[Result | None, str, str]:
        """Run the call in a child in its sandbox: its Result or None, the limit that ended it, and how the process ended."""
        self._number += 1
        # Only what differs: setting every variable again in the child takes as long as the fork.
        have = self._environment
        changes = [(name, value) for name, value in box.variables().items() if have.get(name) != value]
        others = _adopted()
        pid = lean_fork()
        if pid == 0:
            self._child(call, box, changes)
        outcome = ""
        try:
            outcome = self._wait_for(pid, limits)
        finally:
            kill_group(pid)
            # It may not have left the slot's group yet.
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            _end_adopted(others)
            self.guard.group[0] = 0
        result = None if outcome else self._answer(call)
        if result is None:
            self._discard(call)
        return result, outcome, end_text(os.waitstatus_to_exitcode(status))

    def _discard(self, call: Call) -> None:
        """What a child wrote of its value, and could not tell of, has no owner."""
        name = f"{self.run_name}-{call.task_id}.{call.attempt}"
        for path in (f"{self.store}/.aside-{name}", f"{self.store}/{name}"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def _wait_for(self, pid: int, limits: Limits) -> str:
        """Wait for a child, without reaping it; returns the limit that it passed, empty when it ended by itself.

        Results of calls before it are sent when this one takes longer.
        """
        if limits.wait_ms() is None and not self.out:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return ""
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(HOLD_MS):
                return ""
            self.flush()
            while not poll.poll(limits.wait_ms()):
                outcome = limits.exceeded()
                if outcome:
                    return outcome
            return ""
        finally:
            os.close(fd)

    def _answer(self, call: Call) -> Result | None:
        """What the last child left; None when it did not get that far."""
        answer = self._answers.take(self._number, call)
        if answer is None:
            return None
        result, is_harmless = answer
        if is_harmless:
            self._harmless.add(call.code_id)
        return result

    def _child(self, call: Call, box: Box | None, changes: Iterable[tuple[str, str | None]]) -> None:
        """Run the call, leave its Result, end without the slot's clean-up."""
        code = 1
        try:
            # The guard ends this process when the slot is killed; asking the kernel for that is a tenth of a fork's time.
            os.close(self.guard.alive_fd)
            os.close(self._sock_fd)
            reseed()
            if box is not None:
                os.setpgid(0, 0)
                self.guard.group[0] = os.getpid()
                _enter(box, changes)
            if self._late is None and call.code_id not in (self.functions if call.index < 0 else self.pieces).waiting:
                result, is_harmless = super().execute(call), False
            else:
                result, is_harmless = self._run_first(call, box)
            flush_streams()
            self._answers.leave(self._number, result, is_harmless)
            code = 0
        finally:
            os._exit(code)

    def _run_first(self, call: Call, box: Box | None) -> tuple[Result, bool]:
        """Load what the slot has not; the result, and whether its code may be unpickled in the slot from now on."""
        if self._late is not None:
            try:
                self.functions.update(load_functions(self._late))
            except BaseException as error:
                return Result(call.task_id, call.attempt, messages.RAISED, 0, raised.encode_error(error)), False
            fill_streams()
            if box is not None:
                os.chdir(box.path)  # the library's code may have gone elsewhere
        is_harmless = call.code_id in self._codes_of(call).waiting and self._try_code(call)
        return super().execute(call), is_harmless


def _enter(box: Box, changes: Iterable[tuple[str, str | None]]) -> None:
    """Make this process live in a sandbox: directory, environment, output."""
    os.chdir(box.path)
    for name, value in changes:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    output = os.open(STDOUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(nothing)


def _end_adopted(others: Collection[int]) -> None:
    """End whatever a task left behind: orphans of its processes are children of this one.

    Parameters:
        others: children that were here before it: calls without a sandbox may leave some running.
    """
    for _ in range(_END_ROUNDS):
        if not _reap_adopted():
            return
        ours = [pid for pid in _children() if pid not in others]
        if not ours:
            return
        for pid in ours:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _reap_adopted() -> bool:
    """Take note of the ends of orphans; True when some live."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _adopted() -> Collection[int]:
    """Orphans that live."""
    return _children() if _reap_adopted() else ()


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _limits() -> bytes:
    with open("/proc/self/limits", "rb") as file:
        return file.read()


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []  # a kernel without that list: the group was killed, which is nearly always all


def _ended(call: Call, outcome: str) -> tuple[Result, Report]:
    """One of its limits ended it, or had passed before it began: no value."""
    return Result(call.task_id, call.attempt, messages.OK_INLINE, 0), Report(9, b"", [], [], [], outcome)


def _refused(call: Call, why: str) -> Result:
    """It cannot run here, nor anywhere else."""
    # It may quote a name of megabytes.
    why = error_texts.sendable(why)
    report = Report(-1, f"{why}\n".encode(), [], [], [], "forsaken", reason=why)
    return Result(call.task_id, call.attempt, messages.OK_INLINE, 0, report=report)


def _missing_text(report: Report, sandbox: Path, unread: Mapping[str, str]) -> str:
    """Why outputs are missing, where that says more than their names; otherwise empty. Bounded: they may be many."""
    directories = [name for name in report.missing if name not in unread and os.path.isdir(sandbox / name)]
    if not directories and not unread and not report.reason:
        return ""
    absent = ", ".join(name for name in report.missing if name not in directories and name not in unread)
    parts = [report.reason, f"it did not make {absent}" if absent else ""]
    parts += [f"its output {name} cannot be read: {why}" for name, why in unread.items()]
    parts += [
        f"its output {name} is a directory, which cannot be an output: pack it (tar -cf {name}.tar {name}) and take the archive"
        for name in directories
    ]
    return error_texts.sendable("; ".join(filter(None, parts)))


def _read_limited(path: Path, limit_bytes: int) -> tuple[bytes, bool]:
    """The beginning of a file, and whether that is not all of it; a line that says why when it cannot be read."""
    try:
        data = read_regular(path, limit_bytes + 1)
    except FileNotFoundError:
        return b"", False
    except Unreadable as error:
        return f"its standard output cannot be read: {error.strerror}\n".encode(), False
    return data[:limit_bytes], len(data) > limit_bytes

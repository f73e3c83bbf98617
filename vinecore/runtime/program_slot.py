"""A slot whose calls are answered by a program of the user's, through the protocol of libraries made from commands.

    worker --Batch--> slot --"<length>\\n<task id> <function> <sandbox> <stdout>"--> program
    worker <--Done--- slot <--"<length>\\n<task id> <exit status>"------------------ program

    program --in-pipe-fd N --out-pipe-fd N --task-id N --library-cores N --function-slots N --worker-pid N

The program first says who it is, as JSON: ``{"name": ..., "taskid": ..., "exec_mode": "fork" | "direct"}``. Arguments and results
travel as files of the call's sandbox: ``infile``, a pickle of ``{"fn_args": ..., "fn_kwargs": ...}``, and ``outfile``, one of
``{"Result": ..., "Success": bool, "Reason": text or None}`` (source: the public description of TaskVine's library protocol).

Each slot has a program of its own with one function slot, so that a call that must be ended takes no neighbour along. A program
that ends takes its slot along, which then says how: the worker opens another. So does one that says more than it was asked: the
rest would be taken for the answer to the next call.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import select
import shlex
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vinecore.errors import TaskFailed
from vinecore.runtime import error_texts, unrunnable
from vinecore.runtime import payload as payloads
from vinecore.runtime.ends import end_text
from vinecore.runtime.guard import Guard
from vinecore.runtime.passing import pass_on
from vinecore.runtime.places import Place
from vinecore.runtime.sandbox import read_regular
from vinecore.runtime.slot import NoRoom, Slot
from vinecore.wire import messages
from vinecore.wire.messages import Call

# A program that has not said who it is by then is taken for stuck; higher: slow starts are let be, stuck ones found later.
START_LIMIT_S = 300.0
# A program whose pipes are closed gets this long to end by itself; higher: one that only closed them is ended later.
END_WAIT_MS = 1000
# What it said last is waited for that long, when something that it started still has its standard error.
WORDS_WAIT_S = 1.0
# Longer messages of a program are no protocol.
_MESSAGE_LIMIT_BYTES = 1 << 16
# A length may have leading zeros; higher: from 4300 digits on int() raises something else than what it is told here.
_LENGTH_DIGITS = 20
# What a call printed, as far as it is passed on.
_OUTPUT_LIMIT_BYTES = 1 << 16


# The end of what a program said on its standard error goes into the error of its end.
WORDS_BYTES = 2000
_PIPE_BYTES = 1 << 16
_INT = struct.Struct("i")


class ProgramFailed(Exception):
    """The program ended, or does not speak the protocol; the text is for people."""


class ProgramEnded(ProgramFailed):
    """The program ended, or closed its pipes."""


class NotBegun(ProgramEnded):
    """The same, and it had read nothing of the call that it was given."""


class Words:
    """What a program says on its standard error: passed on to this process's own, and its end kept.

    A thread of its own reads, since the program must never wait for that.
    """

    def __init__(self) -> None:
        self._read, self.theirs = os.pipe()
        self._last = b""
        self._thread = threading.Thread(target=self._pass_on, name="vine-words", daemon=True)

    def start(self) -> None:
        """The program has its end of the pipe: close ours, and read."""
        os.close(self.theirs)
        self._thread.start()

    def _pass_on(self) -> None:
        while data := os.read(self._read, _PIPE_BYTES):
            self._last = (self._last + data)[-WORDS_BYTES:]
            pass_on(data, 2)

    def last_text(self, wait_s: float) -> str:
        """For the end of a sentence: its last words, empty when there are none. All of them if the pipe ends within that time."""
        self._thread.join(wait_s)
        text = self._last.decode(errors="replace").strip()
        return f": {text}" if text else ""


class Program:
    """A running program and the pipes to it.

    Raises:
        ProgramFailed: it ended, or did not say in time that it is the library ``begin`` describes.
    """

    def __init__(self, begin: messages.Begin) -> None:
        self.name = begin.name
        # The file that the kernel runs; empty: the worker's interpreter reads it, whatever its first line names.
        run, *rest = shlex.split(begin.program)
        self._file = "" if rest else run
        # What it said beyond the last message.
        self.received = b""
        theirs_in, self._calls = os.pipe()
        self._answers, theirs_out = os.pipe()
        for fd in (theirs_in, theirs_out):
            os.set_inheritable(fd, True)
        options = {
            "in-pipe-fd": theirs_in,
            "out-pipe-fd": theirs_out,
            "task-id": begin.library_id,
            "library-cores": 1,
            "function-slots": 1,
            "worker-pid": os.getpid(),
        }
        command = " ".join([begin.program, *(f"--{option} {value}" for option, value in options.items())])
        environment = {**os.environ, "VINE_PYTHON": sys.executable}
        self._words = Words()
        self.pid = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", f"exec {command}"],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, self._words.theirs, 2)],
            setsigdef=[signal.SIGINT],
        )
        self._words.start()
        os.close(theirs_in)
        os.close(theirs_out)
        # Its end shows here too, when something that it started lives on with the pipes.
        self._handle = os.pidfd_open(self.pid)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._poll.register(self._handle, select.POLLIN)
        said = self._receive(time.monotonic() + START_LIMIT_S)
        expected = {"name": begin.name, "taskid": begin.library_id, "exec_mode": begin.exec_mode}
        try:
            about = json.loads(said)
            right = isinstance(about, dict) and all(about.get(key) == value for key, value in expected.items())
        except (ValueError, RecursionError):
            right = False
        if not right:
            raise ProgramFailed(
                f"the program said {said[:200]!r} at its start; library {self.name!r} expects {json.dumps(expected)}"
            )

    def call(self, task_id: int, function: str, sandbox: str, stdout: str) -> int:
        """Have a function called and return the exit status that the program reports.

        Raises:
            NotBegun: it ended before that. ProgramFailed: it ended meanwhile, or answered something else.
        """
        line = os.fsencode(f"{task_id} {function} {sandbox} {stdout}")
        data = b"%d\n%s" % (len(line), line)
        written = 0
        try:
            try:
                while written < len(data):
                    written += os.write(self._calls, data[written:])
            except BrokenPipeError:
                raise ProgramEnded(self._end_text()) from None
            answer = self._receive(None)
        except ProgramEnded as error:
            if self._unread_bytes() >= written:
                raise NotBegun(*error.args) from None
            raise
        try:
            number, status = map(int, answer.split())
        except ValueError:
            raise ProgramFailed(f"the program answered {answer[:200]!r} instead of a task id and an exit status") from None
        if number != task_id:
            raise ProgramFailed(f"the program answered for task {number} instead of {task_id}")
        return status

    def _unread_bytes(self) -> int:
        """How much of what it was told it has not read."""
        (count,) = _INT.unpack(fcntl.ioctl(self._calls, termios.FIONREAD, bytes(_INT.size)))
        return int(count)

    def why_unfit(self) -> str:
        """Why it cannot be given a call: it ended, or said what nobody asked for. Empty: it waits for one."""
        if not self.received:
            ready = self._poll.poll(0)
            if not ready:
                return ""
            if self._answers in dict(ready):
                self.received = os.read(self._answers, _MESSAGE_LIMIT_BYTES)
        return f"the program wrote {self.received[:200]!r} without being asked" if self.received else self._end_text()

    def _receive(self, deadline: float | None) -> bytes:
        """The next message: a line with its length, then so many bytes."""
        head, found, _ = self.received.partition(b"\n")
        while not found or len(self.received) < len(head) + 1 + self._length(head):
            self._read(deadline)
            head, found, _ = self.received.partition(b"\n")
            if not found:
                # What cannot become a length is refused now: the rest of the line may never come.
                self._length(head)
        end = len(head) + 1 + self._length(head)
        message, self.received = self.received[len(head) + 1 : end], self.received[end:]
        return message

    def _length(self, head: bytes) -> int:
        if len(head) > _LENGTH_DIGITS or not head.isdigit() or int(head) > _MESSAGE_LIMIT_BYTES:
            raise ProgramFailed(f"the program wrote {head[:200]!r} where the length of a message is expected")
        return int(head)

    def _read(self, deadline: float | None) -> None:
        wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(self._poll.poll(wait_ms))
        if not ready:
            said = self._words.last_text(0)
            raise ProgramFailed(f"the program did not say within {START_LIMIT_S:g} s that it is ready{said}")
        if self._answers not in ready:
            raise ProgramEnded(self._end_text())
        data = os.read(self._answers, _MESSAGE_LIMIT_BYTES)
        if not data:
            raise ProgramEnded(self._end_text())
        self.received += data

    def _end_text(self) -> str:
        """How it ended, and its last words; one that only closed its pipes is ended."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        if poll.poll(END_WAIT_MS):
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            how = end_text(code)
        else:
            # Something that it started may have the pipes, or it closed them.
            os.kill(self.pid, signal.SIGKILL)
            code, how = 0, "closed its pipes"
        words = self._words.last_text(WORDS_WAIT_S)
        why = unrunnable.why(self._file, code, words.removeprefix(": ")) if self._file else ""
        return f"the program {how}{words}{why and f' ({why})'}"


class ProgramSlot(Slot):
    """Hands each call to its program and makes a result of what that leaves behind."""

    def __init__(
        self,
        sock: socket.socket,
        claims: memoryview,
        begin: messages.Begin,
        functions: dict[int, Callable[..., object]],
    ) -> None:
        super().__init__(sock, claims, begin, functions)
        # The call that runs.
        self.task_id = 0
        self.sandboxes = Place(Path(begin.store).parent / f"sandboxes-{os.getpid()}")
        path = self.sandboxes.path
        if len(str(path).split()) > 1:
            raise ProgramFailed(
                f"the path of the worker's workspace has a blank in it ({path.parent}), and library programs are told "
                "their directories between blanks: start the worker with another --workspace (or TMPDIR)"
            )
        self.sandboxes.ensure()
        self.guard = Guard(self.sandboxes)
        self.program = Program(begin)
        self.failure: ProgramFailed | None = None
        # The last call that began.
        self.begun = claims[0]

    def learn(self, message: messages.SlotCode) -> None:
        """The code of a program's function is its name."""
        self.functions[message.code_id] = partial(self.answer, message.payload.decode())

    def execute(self, call: Call) -> messages.Result:
        """Run one call; when the program fails, what came before it is told, and this slot ends."""
        if why := self.program.why_unfit():
            # No fault of this call, which has not begun: the next slot has it.
            self.claims[0] = self.begun
            self._replace(why)
        before, self.begun = self.begun, self.claims[0]
        self.task_id = call.task_id
        result = super().execute(call)
        if isinstance(self.failure, NotBegun):
            self.claims[0] = before
            self._replace(str(self.failure))
        if self.failure is not None:
            self.flush()
            raise self.failure
        if self.program.received:
            self.report(result, False)
            self._replace(self.program.why_unfit())
        return result

    def _replace(self, why: str) -> NoReturn:
        """End this slot with its program, for which no call is to blame."""
        self.flush()
        pass_on(f"vine_worker: library {self.program.name!r}: {why}; it is started again\n".encode(), 2)
        raise ProgramFailed(why)

    def answer(self, name: str, /, *args: object, **kwargs: object) -> object:
        """The value that the program's function of this name left for the running call.

        Raises:
            TaskFailed: the program says that the function failed, or left no result. NoRoom: there is no place for its files.
        """
        infile = payloads.dump({"fn_args": args, "fn_kwargs": kwargs})
        sandbox = self._make_sandbox()
        try:
            stdout = f"{sandbox}/.vine.stdout"
            try:
                Path(sandbox, "infile").write_bytes(infile)
            except OSError as error:
                raise NoRoom(f"its arguments could not be written: {error.strerror}") from None
            try:
                status = self.program.call(self.task_id, name, sandbox, stdout)
            except BaseException as error:
                # Whatever it was, the program goes: it may have more to say, which the next call would take for its answer.
                what = f"talking to the program raised {error_texts.line_of(error)}"
                self.failure = error if isinstance(error, ProgramFailed) else ProgramFailed(what)
                raise
            if not self.sandboxes.stands():
                # Whatever is there now is not what the function left.
                who = f"function {name!r} of library {self.program.name!r}"
                raise TaskFailed(f"{who} removed or replaced the directory around its sandbox, and left no result")
            output = _beginning(Path(stdout))
            pass_on(output, 1)
            return self._value(name, Path(sandbox, "outfile"), status, output)
        finally:
            self.sandboxes.remove(os.path.basename(sandbox))

    def _make_sandbox(self) -> str:
        try:
            # An earlier call may have removed or replaced what is around its own.
            self.sandboxes.ensure()
            return tempfile.mkdtemp(prefix=f"call.{self.task_id}.", dir=self.sandboxes.path)
        except OSError as error:
            raise NoRoom(f"its sandbox could not be made: {error.strerror}") from None

    def _value(self, name: str, file: Path, status: int, output: bytes) -> object:
        who = f"function {name!r} of library {self.program.name!r}"
        printed = f"; it printed: {output.decode(errors='replace').strip()}" if output.strip() else ""
        try:
            left: Any = pickle.loads(read_regular(file))
        except FileNotFoundError:
            raise TaskFailed(f"{who} ended with status {status} and left no result{printed}") from None
        except BaseException as error:
            # Unpickling may raise anything, also SystemExit.
            why = error_texts.line_of(error)
            raise TaskFailed(f"{who} ended with status {status} and left a result that cannot be read: {why}{printed}") from None
        if not isinstance(left, dict) or "Success" not in left:
            raise TaskFailed(f"{who} left a result without 'Success', 'Result' and 'Reason'")
        if not left["Success"]:
            raise TaskFailed(f"{who} failed: {left.get('Reason')}")
        return left.get("Result")


def _beginning(file: Path) -> bytes:
    try:
        return read_regular(file, _OUTPUT_LIMIT_BYTES)
    except FileNotFoundError:
        return b""

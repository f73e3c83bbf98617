"""The parent of a library's slots: an exec'd interpreter with a plain blocking loop.

    worker  --Begin, Hoist, ForkSlots (+ descriptors)-->  host  --Loading, Began, Hoisted, Forked, SlotExited-->  worker
                                                           |
                                                           fork: slot, slot, ...   (they talk to the worker directly)

It puts the library's files in place, loads its code (functions and context), imports modules before slots are forked, freezes the
collector, forks and reaps. It never runs a call. It ends, with all its slots, when the worker's end of the socket closes; slots
are told by the kernel when it dies itself.

A library with an ``init_command`` passes through here twice: this process becomes the shell that runs the command, which starts
the interpreter that it has chosen. When what was loaded has started threads, slots are not forked but spawned
(``spawned_slot.py``).
"""

from __future__ import annotations

import errno
import gc
import importlib
import mmap
import os
import selectors
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from vinecore.errors import UsageError
from vinecore.model.refusals import refused_text
from vinecore.runtime import error_texts, fork_hooks, raised, spawned_slot
from vinecore.runtime import payload as payloads
from vinecore.runtime.exec_limits import too_long_text
from vinecore.runtime.forking_slot import ForkingSlot
from vinecore.runtime.library_code import import_quietly, load_functions, why_unsafe
from vinecore.runtime.lifeline import die_with_parent
from vinecore.runtime.places import Place
from vinecore.runtime.randomness import reseed
from vinecore.runtime.sandbox import Box
from vinecore.runtime.slot import CLAIM_BYTES, Slot
from vinecore.runtime.streams import fill_streams, flush_streams
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter

MAX_DESCRIPTORS = 253  # the kernel's SCM_MAX_FD
# Last words of a slot; longer ones are cut. A program's are up to 2000 bytes, of which each may become three.
_WORDS_BYTES = 8192
# What an init command said is passed on in pieces of this size.
_COPY_BYTES = 1 << 16
# No single quotes: a shell gets it in some.
_CODE = "from vinecore.runtime.library_host import main; main()"


class Host:
    """State of one library parent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.writer = FrameWriter()
        self.descriptors: list[int] = []
        # Slot id, and where the slot may leave last words (-1: nowhere).
        self.slots_by_pid: dict[int, tuple[int, int]] = {}
        self.begin: messages.Begin | None = None
        self.functions: dict[int, Callable[..., object]] = {}
        self.selector = selectors.DefaultSelector()
        self.wake_read = -1
        self.wake_write = -1
        # The directory with the library's files, when it has any.
        self.box: Box | None = None
        self.is_initialised = False
        # Where user code is searched besides; the processes that follow want it too.
        self.extra_path = ""
        # Why slots cannot be forked from here; empty when they can.
        self.unsafe = ""
        # What it was doing when loading failed; its number, which user code that forks must not answer for.
        self.doing = "putting its files in place"
        self.pid = os.getpid()
        # What its descriptors are, by which it is known whether they still are what they were.
        self.files = {sock.fileno(): os.fstat(sock.fileno())}

    def send(self, message: object) -> None:
        self.sock.sendall(self.writer.write(messages.encode(message)))

    def serve(self) -> None:
        """Obey until the socket ends, then take the slots along."""
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.files.update({fd: os.fstat(fd) for fd in (self.wake_read, self.wake_write)})
        self.listen()
        self.selector.register(self.sock, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        reader = FrameReader(messages.CONTROL_FRAME_LIMIT_BYTES)
        try:
            while True:
                for key, _ in self.selector.select():
                    if key.fd == self.wake_read:
                        os.read(self.wake_read, 512)
                        self.reap()
                        continue
                    data, descriptors, flags, _ = socket.recv_fds(self.sock, 65536, MAX_DESCRIPTORS)
                    if not data:
                        return
                    if flags & socket.MSG_CTRUNC:
                        # No more are free here: those of one slot, since one message is read at a time that has some.
                        for fd in descriptors:
                            os.close(fd)
                        descriptors = [-1, -1]
                    self.descriptors.extend(descriptors)
                    for frame in reader.feed(data):
                        self.obey(messages.decode_to_library(frame))
        finally:
            self.end_slots()
            if self.box is not None:
                os.chdir("/")
                self.box.remove()

    def has_lost_descriptors(self) -> bool:
        """Whether user code has closed some that this process needs, or put something else in their place."""
        try:
            return not all(os.path.samestat(os.fstat(fd), was) for fd, was in self.files.items())
        except OSError:
            return True

    def listen(self) -> None:
        """Hear of the ends of slots, whatever user code has made of their signal; in slots it has its usual effect."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)

    def obey(self, message: object) -> None:
        if isinstance(message, messages.Begin):
            self.begin_library(message)
        elif isinstance(message, messages.Hoist):
            self.hoist(message.modules)
        elif isinstance(message, messages.ForkSlots):
            for slot_id in message.slot_ids:
                sock_fd, claim_fd = self.descriptors[:2]
                del self.descriptors[:2]
                self.open_slot(slot_id, sock_fd, claim_fd)

    def begin_library(self, message: messages.Begin) -> None:
        """Put the library's files in place, run its init command, load its code; failures are reported, with their traceback."""
        self.begin = message
        try:
            if message.mounts and self.box is None:
                self.box = _box_of(message, os.getpid())
                self.box.build({})
            if self.box is not None:
                os.chdir(self.box.path)
            if message.init_command and not self.is_initialised:
                self._initialise(message)
            if not message.program:
                if message.exec_mode == "fork":
                    fork_hooks.put_off()
                    # A child would do it for each result that is more than plain data.
                    payloads.make_pickler()
                else:
                    # Once here instead of in each slot.
                    importlib.import_module("vinecore.runtime.flusher")
                self.functions = load_functions(message, self.tell)
            self._end_copies()
            fill_streams()
            self.unsafe = why_unsafe()
        except BaseException as error:
            self._end_copies()
            where = f"raised while library {message.name!r} was started, {self.doing}"
            # An exception that takes no notes has it in its traceback.
            encoded = raised.encode_error(error, "" if raised.add_note(error, where) else where)
            self.send(messages.Began(encoded, f"{self.doing} raised {error_texts.line_of(error)}"))
            return
        self.listen()
        self.send(messages.Began(b"", "", self.unsafe))

    def tell(self, step: int, name: str = "") -> None:
        """Say what begins now: if it does not end well, the worker knows what to blame."""
        self._end_copies()
        message = messages.Loading(step, name)
        self.doing = message.text()
        self.send(message)

    def _end_copies(self) -> None:
        """End this process if it is a child that the library's code forked, and that came back here."""
        if os.getpid() != self.pid:
            os._exit(0)

    def _initialise(self, message: messages.Begin) -> None:
        """Become a shell that runs the init command and, at its end, the interpreter that this command has chosen.

        Without a choice that is the worker's own: its directory comes first in PATH. What the command says goes into a file,
        which the worker reads when nothing comes of it.
        """
        self.tell(messages.INIT)
        begin_fd = os.memfd_create("vine-begin", 0)
        os.write(begin_fd, messages.encode(message))
        stdout_fd, stderr_fd = os.dup(1), os.dup(2)
        for fd in (stdout_fd, stderr_fd, self.sock.fileno()):
            os.set_inheritable(fd, True)
        log = os.open(init_log(os.environ["TMPDIR"], os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        flush_streams()
        os.dup2(log, 1)
        os.dup2(log, 2)
        directory, name = os.path.split(sys.executable)
        python = "python3" if os.path.exists(os.path.join(directory, "python3")) else name
        environment = {
            **os.environ,
            "VINE_EXTRA_PATH": self.extra_path,
            "PATH": f"{directory}:{os.environ.get('PATH', os.defpath)}",
        }
        descriptors = f"{self.sock.fileno()} {os.getpid()} {begin_fd} {stdout_fd} {stderr_fd}"
        command = f"{message.init_command} {python} -c '{_CODE}' {descriptors}"
        try:
            os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise UsageError(too_long_text(command, environment)) from None
            raise

    def take_over(self, begin_fd: int, streams: tuple[int, int], first_pid: int) -> None:
        """After the init command: go on where ``_initialise`` ended. ``streams``: the standard output and error of then."""
        self.is_initialised = True
        flush_streams()
        log = Path(init_log(os.environ["TMPDIR"], first_pid))
        for number, fd in zip((1, 2), streams, strict=True):
            now = os.fstat(number)
            # A file that the command has chosen itself is left.
            if not stat.S_ISREG(now.st_mode) or os.path.samestat(now, log.stat()):
                os.dup2(fd, number)
            os.close(fd)
        with open(log, "rb") as file:
            while said := file.read(_COPY_BYTES):
                os.write(2, said)
        log.unlink()
        os.lseek(begin_fd, 0, os.SEEK_SET)
        with open(begin_fd, "rb") as file:
            begin = messages.decode_to_library(file.read())
        assert isinstance(begin, messages.Begin)
        if begin.mounts:
            self.box = _box_of(begin, first_pid)
            self.box.place.find()
        self.begin_library(begin)

    def hoist(self, names: list[str]) -> None:
        """Import modules; what fails here is left to fail in the call, where the user sees it."""
        # Slots that are not forked from here import what they need themselves.
        done = names if self.unsafe else import_quietly(names)
        self._end_copies()
        fill_streams()
        self.listen()
        self.unsafe = self.unsafe or why_unsafe()
        self.send(messages.Hoisted(done, len(os.listdir("/proc/self/task")), self.unsafe))

    def open_slot(self, slot_id: int, sock_fd: int, claim_fd: int) -> None:
        """Make one slot, which gets both descriptors; this process closes its copies. That it cannot be made harms no other."""
        assert self.begin is not None
        words_fd = -1
        try:
            if sock_fd < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if self.unsafe or self.begin.program:
                words_fd = os.memfd_create("vine-last-words", os.MFD_CLOEXEC)
            if self.unsafe:
                pid = spawned_slot.spawn(self.begin, sock_fd, claim_fd, words_fd)
            else:
                pid = self.fork(sock_fd, claim_fd, words_fd)
        except OSError as error:
            if words_fd >= 0:
                os.close(words_fd)
            self.send(messages.SlotExited(slot_id, 0, 1, error_texts.sendable(refused_text(error, os.uname().nodename))))
            return
        finally:
            if sock_fd >= 0:
                os.close(sock_fd)
                os.close(claim_fd)
        self.slots_by_pid[pid] = slot_id, words_fd
        self.send(messages.Forked(slot_id, pid))

    def fork(self, sock_fd: int, claim_fd: int, words_fd: int) -> int:
        """Fork one slot."""
        # Frozen objects are never scanned in the slots, so their pages stay shared. Not collected first: that would cost more
        # time after a heavy import than the little garbage of imports is worth.
        gc.freeze()
        parent = os.getpid()
        flush_streams()
        pid = os.fork()
        if pid == 0:
            self._become_slot(parent, sock_fd, claim_fd, words_fd)
        return pid

    def _become_slot(self, parent: int, sock_fd: int, claim_fd: int, words_fd: int) -> None:
        """In the child: drop what belongs to the parent, run calls, end without the parent's clean-up."""
        code = 1
        try:
            die_with_parent(parent)
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number, handler in ((signal.SIGCHLD, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL)):
                signal.signal(number, handler)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            gc.enable()
            reseed()
            self.selector.close()
            self.sock.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            begin = self.begin
            assert begin is not None
            claims = memoryview(mmap.mmap(claim_fd, CLAIM_BYTES)).cast("Q")
            os.close(claim_fd)
            # What calls start must not keep it open, nor write into it.
            os.set_inheritable(sock_fd, False)
            sock = socket.socket(fileno=sock_fd)
            slot = _kind_for(begin)(sock, claims, begin, self.functions)
            if begin.program:
                slot.say_ready()
            slot.serve()
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            code = 0
        except BaseException as error:
            if words_fd >= 0:
                os.write(words_fd, error_texts.text_of(error).encode()[:_WORDS_BYTES])
            else:
                sys.excepthook(type(error), error, error.__traceback__)
        finally:
            try:
                flush_streams()
            finally:
                os._exit(code)

    def reap(self) -> None:
        """Report slots that ended. Only our own pids are waited for: user code may have children too."""
        for pid in list(self.slots_by_pid):
            try:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
            except ChildProcessError:
                self._report_end(pid, 1, "code of its library has waited for it, so how it ended is not known")
                continue
            # What its calls have left behind, before the number of the group is free for others.
            _quietly(os.killpg, pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            self._report_end(pid, os.waitstatus_to_exitcode(status))

    def _report_end(self, pid: int, code: int, words: str = "") -> None:
        slot_id, words_fd = self.slots_by_pid.pop(pid)
        if words_fd >= 0:
            words = words or os.pread(words_fd, _WORDS_BYTES, 0).decode(errors="replace")
            os.close(words_fd)
        self.send(messages.SlotExited(slot_id, pid, code, words))

    def end_slots(self) -> None:
        """Kill every slot with what it started, and wait for it."""
        for pid in self.slots_by_pid:
            _quietly(os.killpg, pid, signal.SIGKILL)
            _quietly(os.kill, pid, signal.SIGKILL)
        for pid in self.slots_by_pid:
            _quietly(os.waitpid, pid, 0)


def _quietly(function: Callable[..., object], *args: object) -> None:
    try:
        function(*args)
    except (ProcessLookupError, PermissionError, ChildProcessError):
        pass


def _box_of(begin: messages.Begin, pid: int) -> Box:
    """The directory for a library's files, next to those of the worker's other libraries."""
    store = Path(begin.store)
    return Box(Place(store.parent / "libraries", is_shared=True), str(pid), messages.Sandbox(begin.mounts, [], []), store)


def _kind_for(begin: messages.Begin) -> type[Slot]:
    if begin.program:
        from vinecore.runtime.program_slot import ProgramSlot

        return ProgramSlot
    return ForkingSlot if begin.exec_mode == "fork" else Slot


def init_log(directory: str, pid: int) -> str:
    """Where the init command of the parent with this process id writes what it has to say."""
    return f"{directory}/init-{pid}.log"


def main() -> None:
    """Entry: ``python -m vinecore.runtime.library_host FD PARENT_PID``; after an init command also where to go on."""
    fd, parent_pid, *rest = map(int, sys.argv[1:])
    # There may be a shell between this process and the one that it was before.
    die_with_parent(os.getppid() if rest else parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imports make much that lives for ever: scanning it again and again is a tenth of their time. Slots enable it again.
    gc.disable()
    sys.argv = ["vine_library"]
    extra_path = os.environ.get("VINE_EXTRA_PATH", "")
    spawned_slot.extend_path()
    os.set_inheritable(fd, False)
    host = Host(socket.socket(fileno=fd))
    try:
        host.extra_path = extra_path
        if rest:
            begin_fd, stdout_fd, stderr_fd = rest
            host.take_over(begin_fd, (stdout_fd, stderr_fd), parent_pid)
        host.serve()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except (OSError, ValueError) as error:
        if not host.has_lost_descriptors():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(messages.NO_CHANNEL)
    os._exit(0)


if __name__ == "__main__":
    main()

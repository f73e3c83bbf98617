"""The parent of a library's slots: an exec'd interpreter with a plain blocking loop.

    worker  --Begin, Hoist, ForkSlots (+ descriptors)-->  host  --Began, Hoisted, Forked, SlotExited-->  worker
                                                           |
                                                           fork: slot, slot, ...   (they talk to the worker directly)

It loads the library's own code (functions and context), imports modules before slots are forked, freezes the collector, forks and
reaps. It never runs a call. It ends, with all its slots, when the worker's end of the socket closes; slots are told by the kernel
when it dies itself.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import pickle
import selectors
import signal
import socket
import sys
from collections.abc import Callable

from vinecore.runtime import context
from vinecore.runtime import payload as payloads
from vinecore.runtime.forking_slot import ForkingSlot
from vinecore.runtime.lifeline import die_with_parent
from vinecore.runtime.randomness import reseed
from vinecore.runtime.slot import Slot
from vinecore.runtime.streams import flush_streams
from vinecore.wire import messages
from vinecore.wire.framing import FrameReader, FrameWriter

CLAIM_BYTES = 16
MAX_DESCRIPTORS = 253  # the kernel's SCM_MAX_FD


class Host:
    """State of one library parent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.writer = FrameWriter()
        self.descriptors: list[int] = []
        self.slots_by_pid: dict[int, int] = {}
        self.begin: messages.Begin | None = None
        self.functions: dict[int, Callable[..., object]] = {}
        self.selector = selectors.DefaultSelector()
        self.wake_read = -1
        self.wake_write = -1

    def send(self, message: object) -> None:
        self.sock.sendall(self.writer.write(messages.encode(message)))

    def serve(self) -> None:
        """Obey until the socket ends, then take the slots along."""
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
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
                    data, descriptors, _, _ = socket.recv_fds(self.sock, 65536, MAX_DESCRIPTORS)
                    if not data:
                        return
                    self.descriptors.extend(descriptors)
                    for frame in reader.feed(data):
                        self.obey(messages.decode_to_library(frame))
        finally:
            self.end_slots()

    def obey(self, message: object) -> None:
        if isinstance(message, messages.Begin):
            self.load(message)
        elif isinstance(message, messages.Hoist):
            self.hoist(message.modules)
        elif isinstance(message, messages.ForkSlots):
            for slot_id in message.slot_ids:
                sock_fd, claim_fd = self.descriptors[:2]
                del self.descriptors[:2]
                self.fork(slot_id, sock_fd, claim_fd)

    def load(self, message: messages.Begin) -> None:
        """Unpickle the library's functions and build its context; failures are reported, with their traceback."""
        self.begin = message
        for name in message.modules:
            self._import(name)
        try:
            data: bytes = message.payload
            if message.payload_path:
                with open(message.payload_path, "rb") as file:
                    data = file.read()
            if data:
                # (modules that must be there, pickled: code id -> function, context function or None, its args, its kwargs)
                required, body = pickle.loads(data)
                for name in required:
                    importlib.import_module(name)
                functions, make_context, args, kwargs = pickle.loads(body)
                self.functions = dict(functions)
                if make_context is not None:
                    context.fill(make_context(*args, **kwargs), message.name)
        except BaseException as error:
            self.send(messages.Began(payloads.encode_error(error), f"{type(error).__name__}: {error}"))
            return
        self.send(messages.Began(b""))

    def hoist(self, names: list[str]) -> None:
        """Import modules; what fails here is left to fail in the call, where the user sees it."""
        done = [name for name in names if self._import(name)]
        self.send(messages.Hoisted(done, _thread_count()))

    def _import(self, name: str) -> bool:
        try:
            importlib.import_module(name)
        except BaseException:
            return False
        return True

    def fork(self, slot_id: int, sock_fd: int, claim_fd: int) -> None:
        """Fork one slot, which gets both descriptors; this process closes its copies."""
        assert self.begin is not None
        # Frozen objects are never scanned in the slots, so their pages stay shared. Not collected first: that would cost more
        # time
        # after a heavy import than the little garbage of imports is worth.
        gc.freeze()
        parent = os.getpid()
        flush_streams()
        pid = os.fork()
        if pid == 0:
            self._become_slot(parent, sock_fd, claim_fd)
        os.close(sock_fd)
        os.close(claim_fd)
        self.slots_by_pid[pid] = slot_id
        self.send(messages.Forked(slot_id, pid))

    def _become_slot(self, parent: int, sock_fd: int, claim_fd: int) -> None:
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
            sock = socket.socket(fileno=sock_fd)
            kind = ForkingSlot if begin.exec_mode == "fork" else Slot
            kind(sock, claims, begin.store, begin.run, begin.inline_limit_bytes, self.functions).serve()
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            code = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            try:
                flush_streams()
            finally:
                os._exit(code)

    def reap(self) -> None:
        """Report slots that ended. Only our own pids are waited for: user code may have children too."""
        for pid in list(self.slots_by_pid):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                slot_id = self.slots_by_pid.pop(pid)
                self.send(messages.SlotExited(slot_id, pid, os.waitstatus_to_exitcode(status)))

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


def _thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    """Entry: ``python -m vinecore.runtime.library_host FD PARENT_PID``."""
    fd, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imports make much that lives for ever: scanning it again and again is a tenth of their time. Slots enable it again.
    gc.disable()
    sys.argv = ["vine_library"]
    for path in filter(None, os.environ.pop("VINE_EXTRA_PATH", "").split(os.pathsep)):
        if path not in sys.path:
            sys.path.append(path)
    sock = socket.socket(fileno=fd)
    try:
        Host(sock).serve()
    except (BrokenPipeError, ConnectionResetError):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()

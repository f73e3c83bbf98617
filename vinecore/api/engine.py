"""The engine as user threads see it: a manager loop, perhaps an embedded worker, and interned code.

Everything that users hold (futures, manager facade, Dask's ``get``) stands on this. User threads pickle here, build entries, and
post them; they never touch the machine. Start-up order matters for the time to the first result: bind the port, start the
embedded worker, and only then import and start the loop, so that both come up at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vinecore.api.code import CODES_LIMIT_BYTES, CODES_LIMIT_COUNT, CodeMethods
from vinecore.api.startup import core_count, encrypt, listen, secret_of_start, worker_flags
from vinecore.errors import LoopDied, UsageError, WorkerLost

if TYPE_CHECKING:
    from vinecore.api.embedded import EmbeddedWorker
    from vinecore.manager.entries import CodeEntry, FileEntry, Handle, Kind, LibraryEntry, Shape, TaskEntry
    from vinecore.model.resources import Resources
    from vinecore.runtime.functions import FunctionPickle
    from vinecore.shell.manager_loop import ManagerLoop

STOP_TIMEOUT_S = 5.0
# An embedded worker that dies is started again, unless it did so this often within this time: then something kills it on purpose.
EMBEDDED_STARTS = 3
EMBEDDED_WINDOW_S = 60.0
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine(CodeMethods):
    """A running manager.

    Parameters:
        port: TCP port; None: any free one on loopback when only an embedded worker is used, else 9123 on all interfaces; 0: any
            free
            one; (low, high): the first free one of a range. ``$VINE_PORT``, if set, beats it.
        local_cores: start an embedded worker with this many cores; True: all cores; None: none.
        auth: "secret" (default) or None, which switches authentication off.
        password_file: file with a secret or password; default: the user's own secret file.
        slots: slots of the default library per worker; 0: the worker's cores.
        ssl: encrypt every link: (key file, certificate file) in PEM, or True for a self-signed certificate; None or False: plain.
        say: prints one line for the user.
    """

    def __init__(
        self,
        port: int | tuple[int, int] | list[int] | None = None,
        local_cores: int | bool | None = None,
        auth: str | None = "secret",
        password_file: str | None = None,
        slots: int = 0,
        say: Callable[[str], None] | None = None,
        ssl: bool | tuple[str, str] | None = None,
        max_tasks_per_child: int = 0,
    ) -> None:
        self.pid = os.getpid()
        self.closed = False
        # What the user calls it, and says of it.
        self.name = ""
        self.properties: dict[str, str] = {}
        self._lock = threading.Lock()
        # Held while processes are started or ended; the loop's thread never takes it.
        self._life_lock = threading.Lock()
        self._revivals: list[float] = []
        self.embedded: EmbeddedWorker | None = None
        cores = core_count(local_cores)
        listener, only_embedded = listen(port, cores)
        self._only_embedded = only_embedded
        self._worker_flags = worker_flags(auth, password_file) + (" --ssl" if ssl else "")
        self.using_ssl = bool(ssl)
        try:
            self.port: int = listener.getsockname()[1]
            self.secret = secret_of_start(auth, password_file, only_embedded)
            if cores:
                from vinecore.api.embedded import EmbeddedWorker

                self.embedded = EmbeddedWorker(self.port, self.secret, cores, ("--ssl",) if ssl else ())
            self._start(listener, slots, say or self._print_line, ssl, max_tasks_per_child)
        except BaseException:
            listener.close()
            if self.embedded is not None:
                self.embedded.stop()
            raise
        _engines.add(self)
        _ensure_exit_hook()

    def _start(
        self,
        listener: socket.socket,
        slots: int,
        say: Callable[[str], None],
        ssl: bool | tuple[str, str] | None,
        max_calls: int,
    ) -> None:
        # Imported late: the embedded worker boots on another core meanwhile.
        from vinecore.manager import entries
        from vinecore.model.config import Tunables
        from vinecore.runtime.functions import FunctionCache
        from vinecore.shell.machine_id import machine_id
        from vinecore.shell.manager_loop import ManagerLoop

        self.tunables = Tunables()
        self.loop: ManagerLoop = ManagerLoop(f"r{os.urandom(6).hex()}", self.tunables, listener, self.secret, say)
        self.machine = self.loop.machine
        if ssl:
            encrypt(self.loop, ssl)
        self.machine.state.machine = machine_id()
        # Empty where nobody else can join: no command is told then.
        self.machine.state.address = "" if self._only_embedded else f"{socket.gethostname()} {self.port}{self._worker_flags}"
        self.functions = FunctionCache()
        self._task_entry = entries.TaskEntry
        self._entries = entries
        self._code_ids = itertools.count(1)
        self._library_ids = itertools.count(1)
        self._file_ids = itertools.count(1)
        self.graph_ids = itertools.count(1)
        self.task_ids: Iterator[int] = itertools.count(1)
        self.codes: dict[FunctionPickle, tuple[CodeEntry, Kind]] = {}
        self._codes_limit, self._codes_limit_bytes, self._codes_bytes = CODES_LIMIT_COUNT, CODES_LIMIT_BYTES, 0
        self.kinds: dict[tuple[str, Shape], Kind] = {}
        self._process_library: LibraryEntry | None = None
        self._process_codes: dict[FunctionPickle | None, CodeEntry] = {}
        self._local_files = {}
        self.loop.worker_left = self._worker_left
        self.loop.start()
        setup = entries.LibrarySetup(max_calls=max_calls, is_stateless=True)
        self.python = self.new_library("python", slots=slots, setup=setup)
        self.python.eager = True
        self.default_shape = entries.Shape(self.python)
        self._shapes: weakref.WeakValueDictionary[tuple[int, Resources, bool], Shape] = weakref.WeakValueDictionary()
        self.install(self.python)

    def _print_line(self, text: str) -> None:
        print(f"vine{f' {self.name}' if self.name else ''}: {text}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------ posting

    def post(self, item: object) -> None:
        """Hand an event, an entry or a callable to the loop.

        Raises:
            UsageError: this process is a fork of the one that made the manager.
            LoopDied: the manager has ended.
        """
        loop = self.loop
        loop.inbox.append(item)
        if not loop.awake:
            self.check_process()
            if self.closed:
                raise LoopDied("the manager has been closed; make a new one")
            loop.wake()

    def check_process(self) -> None:
        """The loop runs in the process that made the manager, not in its forks.

        Raises:
            UsageError: this process is a fork of that one.
        """
        if os.getpid() != self.pid:
            raise UsageError("this manager was made in another process, which forked this one: make a new one here")

    def refuse_in_loop(self, what: str) -> None:
        """A blocking call from the loop's own thread would wait for itself.

        Raises:
            UsageError: this is the loop's thread.
        """
        if threading.current_thread() is self.loop.thread:
            raise UsageError(
                f"{what} would block the manager's own thread (is it called from a done-callback?): call it elsewhere"
            )

    def call_in_loop(self, function: Callable[[], Any]) -> Any:
        """Run a function in the loop's thread and return what it returned."""
        self.refuse_in_loop("this call")
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.append((True, function()))
            except Exception as error:
                box.append((False, error))
            done.set()

        self.post(run)
        while not done.wait(1.0):
            if self.loop.thread is None or not self.loop.thread.is_alive():
                raise LoopDied("the manager has ended")
        ok, value = box[0]
        if not ok:
            raise value
        return value

    # ------------------------------------------------------------ calls

    def submit_call(
        self,
        function: object,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        handle: Handle,
        retries: int = 0,
        priority: float = 0.0,
    ) -> TaskEntry:
        """Pickle a call in the caller's thread and hand it over.

        Raises:
            UnpicklableError: the function or an argument cannot be pickled.
        """
        code, kind = self.code_of(function)
        return self.submit_code(code, kind, args, kwargs, handle, retries, priority)

    def submit_code(
        self,
        code: CodeEntry,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        handle: Handle,
        retries: int = 0,
        priority: float = 0.0,
    ) -> TaskEntry:
        """The same for code that is interned already."""
        entry = self.build_entry(code, kind, args, kwargs, handle, retries, priority)
        self.post(entry)
        return entry

    def build_entry(
        self,
        code: CodeEntry,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        handle: Handle,
        retries: int = 0,
        priority: float = 0.0,
    ) -> TaskEntry:
        """Pickle the arguments and make the entry; it is not posted."""
        payload, dependencies = encode_arguments(args, kwargs, kind.name)
        if type(payload) is bytes and len(payload) <= INLINE_LIMIT_BYTES:
            entry = self._task_entry(next(self.task_ids), kind, code, payload, handle, (), retries, priority)
        else:
            entry = self._with_payload(kind, code, payload, handle, retries, priority)
        if dependencies:
            entry.inputs += tuple(self._entry_of(dependency) for dependency in dependencies)
        return entry

    def _entry_of(self, dependency: Any) -> Any:
        """The entry that makes the value of a future among the arguments.

        Raises:
            UsageError: the future belongs to another manager.
        """
        if dependency.engine is not self:
            raise UsageError(
                f"{dependency!r} is among the arguments, but belongs to another executor or manager: pass its result() instead"
            )
        return dependency.entry

    def _with_payload(
        self, kind: Kind, code: CodeEntry, payload: Any, handle: Handle, retries: int, priority: float
    ) -> TaskEntry:
        """An entry whose arguments are too large for a message, or have buffers of their own."""
        if type(payload) is not bytes and payload.size_bytes <= INLINE_LIMIT_BYTES:
            return self._task_entry(next(self.task_ids), kind, code, payload.join(), handle, (), retries, priority)
        if type(payload) is bytes:
            file = self.new_file([payload], len(payload))
        else:
            # The caller may change its arrays after submit returns: what is sent is what they were.
            file = self.new_file([payload.join()], payload.size_bytes)
        entry = self._task_entry(next(self.task_ids), kind, code, b"", handle, (file,), retries, priority)
        entry.payload_file = True
        return entry

    # ------------------------------------------------------------ values

    def read_value(self, file: FileEntry, timeout: float | None = None, name: str = "") -> Any:
        """Bring a file's value here and decode it, in the caller's thread; ``name``: of the call that made it.

        Raises:
            TimeoutError, FileLost, LoopDied: it did not come. UnpicklableError: it cannot be rebuilt here.
            UsageError: this is the loop's thread, and the value is on no disk of this machine.
        """
        from vinecore.api.waiting import FileWaiter

        waiter = FileWaiter(self, file, name)
        if threading.current_thread() is self.loop.thread:
            return waiter.value_in_loop()
        return waiter.value(timeout)

    def change_secret(self, secret: bytes) -> None:
        """Links that are made from now on must prove that they know this secret.

        Raises:
            UsageError: the embedded worker has the secret of the start, which its data links must prove too.
        """
        if self.embedded is not None:
            raise UsageError("the embedded worker has the secret of the start: give password_file= when the manager is made")
        self.secret = self.loop.secret = secret

    def raise_task_ids(self, minimum: int) -> int:
        """Let ids of later tasks begin at ``minimum``, unless they are higher; returns where they begin."""
        with self._lock:
            start = max(next(self.task_ids), minimum)
            self.task_ids = itertools.count(start)
        return start

    def read_raw(self, file: FileEntry, timeout: float | None = None) -> bytes:
        """Bring a file here and return its bytes as they are.

        Raises:
            TimeoutError, FileLost, LoopDied: it did not come.
        """
        from vinecore.api.waiting import FileWaiter

        self.refuse_in_loop("reading a file that is on a worker")
        return FileWaiter(self, file).raw(timeout)

    def cancel(self, entries: list[TaskEntry]) -> None:
        """Give these entries up; those that are finished are ignored."""
        from vinecore.manager.events import TasksCancelled

        self.post(TasksCancelled(0.0, entries))

    def release(self, files: list[FileEntry]) -> None:
        """References of the user to these files ended; also legal in a finaliser: it takes no lock."""
        if os.getpid() != self.pid or self.closed:
            return
        from vinecore.manager.events import FileReleased

        with contextlib.suppress(LoopDied):
            self.post(FileReleased(0.0, files))

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """End the embedded worker, release the others, stop the loop. Safe to call twice, and from any thread."""
        if os.getpid() != self.pid:
            # In a fork another thread may have held the lock, and nothing here is ours to end.
            self.closed = True
            return
        # A second caller returns when the first is done: then every process is gone for both.
        with self._life_lock:
            if self.closed:
                return
            self.closed = True
            _engines.discard(self)
            self.loop.stop(STOP_TIMEOUT_S)
            if self.embedded is not None:
                self.embedded.stop()

    def _worker_left(self, pid: int) -> None:
        """A worker left (loop's thread): if it was ours, another thread replaces it."""
        if self.embedded is not None and self.embedded.process.pid == pid and not self.closed:
            threading.Thread(target=self._revive, args=(pid,), name="vine-revive", daemon=True).start()

    def _revive(self, pid: int) -> None:
        """Put another embedded worker in the place of this one; calls that wait run on the new one."""
        from vinecore.api.embedded import EmbeddedWorker

        with self._life_lock:
            embedded = self.embedded
            if self.closed or embedded is None or embedded.process.pid != pid:
                return
            # It serves one link only. One that lives on without (frozen, say) never comes back, and has to make room.
            how = embedded.end_text() or "was cut off from the manager"
            embedded.stop()
            now = time.monotonic()
            self._revivals = [at for at in self._revivals if now - at < EMBEDDED_WINDOW_S] + [now]
            if len(self._revivals) <= EMBEDDED_STARTS:
                self.embedded = EmbeddedWorker(self.port, self.secret, embedded.cores, embedded.extra)
                return
        count = len(self._revivals)
        text = f"the worker of this machine ended {count} times within {EMBEDDED_WINDOW_S:g} s, and it {how} the last time"
        if self._only_embedded:
            self.loop.died = WorkerLost(text)
            self.loop.stop(STOP_TIMEOUT_S)
        else:
            self.loop.say(f"{text}; it is not started again")


def secret_of_password(password: str) -> bytes:
    """The secret that a password stands for.

    Raises:
        UsageError: it is empty.
    """
    from vinecore.shell.secrets import secret_from_password

    return secret_from_password(password)


def secret_of_file(path: str) -> bytes:
    """The secret in a file.

    Raises:
        AuthenticationError, UsageError: it cannot be had; the text names the file.
    """
    from vinecore.shell.secrets import secret_from_password_file

    return secret_from_password_file(path)


# ---------------------------------------------------------------- interpreter exit, forks

_exit_hook = False
_before_exit: list[Callable[[], None]] = []


def before_exit(function: Callable[[], None]) -> None:
    """Run a function when the interpreter ends, before engines are closed."""
    _before_exit.append(function)


def _ensure_exit_hook() -> None:
    global _exit_hook
    if not _exit_hook:
        _exit_hook = True
        # Like concurrent.futures: before the interpreter joins threads, so that pending work can finish.
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close_all)
        os.register_at_fork(after_in_child=_after_fork)


def _close_all() -> None:
    try:
        for function in _before_exit:
            function()
    finally:
        # Also after Ctrl-C during the last wait.
        for engine in list(_engines):
            engine.close()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.loop.close_in_child()
        if engine.embedded is not None:
            engine.embedded.close_lifeline()


from vinecore.runtime.payload import encode_arguments  # noqa: E402
from vinecore.wire.messages import INLINE_LIMIT_BYTES  # noqa: E402

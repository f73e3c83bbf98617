"""``Manager``: the facade, composed by subject (tasks, files, libraries, workers)."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vinecore.api.engine import Engine, secret_of_file, secret_of_password
from vinecore.api.files import FileMethods
from vinecore.api.libraries import LibraryMethods
from vinecore.api.numbers import SECONDS_LIMIT, WHOLE_LIMIT, checked_number, checked_whole
from vinecore.api.tasks import InstalledLibrary, SubmittableTask, TaskMethods
from vinecore.api.texts import checked_text
from vinecore.errors import AuthenticationError, UsageError
from vinecore.manager.events import HostsChanged, WorkerDrained
from vinecore.model.config import near_tunable


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts at the moment of reading. Times in microseconds."""

    workers_connected: int
    workers_idle: int
    workers_busy: int
    workers_joined: int
    workers_removed: int
    workers_lost: int
    tasks_waiting: int
    tasks_running: int
    tasks_on_workers: int
    tasks_with_results: int
    tasks_submitted: int
    tasks_dispatched: int
    tasks_done: int
    tasks_failed: int
    tasks_cancelled: int
    tasks_recovery: int
    time_workers_execute: int
    total_cores: int
    total_memory: int
    total_disk: int
    total_gpus: int


class WorkerMethods:
    """The part of a manager that deals with workers and settings."""

    engine: Engine
    _done: OrderedDict[int, SubmittableTask]

    @property
    def port(self) -> int:
        """The TCP port that workers connect to."""
        return self.engine.port

    @property
    def using_ssl(self) -> bool:
        """Whether links are encrypted."""
        return self.engine.using_ssl

    @property
    def stats(self) -> Stats:
        """Statistics, computed now."""
        return self.engine.call_in_loop(self._stats)  # type: ignore[no-any-return]

    def _stats(self) -> Stats:
        state = self.engine.machine.state
        workers = list(state.workers.values())
        running = sum(worker.placed_count() for worker in workers)
        count = state.counters
        return Stats(
            workers_connected=len(workers),
            workers_idle=sum(not worker.placed_count() for worker in workers),
            workers_busy=sum(bool(worker.placed_count()) for worker in workers),
            workers_joined=count.workers_joined,
            workers_removed=count.workers_removed,
            workers_lost=count.workers_lost,
            tasks_waiting=len(state.tasks) - running,
            tasks_running=running,
            tasks_on_workers=running,
            tasks_with_results=len(self._done),
            tasks_submitted=count.submitted + count.rerun,
            tasks_dispatched=count.dispatched,
            tasks_done=count.done,
            tasks_failed=count.failed,
            tasks_cancelled=count.cancelled,
            tasks_recovery=count.rerun,
            time_workers_execute=count.execute_us,
            total_cores=sum(worker.hello.cores for worker in workers),
            total_memory=sum(worker.hello.memory_mb for worker in workers),
            total_disk=sum(worker.hello.disk_mb for worker in workers),
            total_gpus=sum(worker.hello.gpus for worker in workers),
        )

    def tune(self, name: str, value: float) -> int:
        """Set a tunable by its documented name: 0 when it exists, -1 (with a line on standard error) when not.

        Raises:
            UsageError: the value is no number, or out of the range of this tunable (docs/operations.md).
        """
        if not isinstance(name, str):
            raise UsageError(f"the name of a tunable is a str such as 'max-losses', not {name!r}")
        self.engine.check_process()
        if self.engine.tunables.set(name, value):
            return 0
        near = near_tunable(name)
        self.engine.loop.say(f"tune: there is no tunable {name!r}{f'; did you mean {near!r}?' if near else ''}")
        return -1

    def workers_shutdown(self, count: int = 0) -> int:
        """Tell up to ``count`` workers without tasks to end (0: all of those); returns how many were told.

        Raises:
            UsageError: the count is no whole number >= 0.
        """
        count = checked_whole(count, "the number of workers to end", 0, wanted="a whole number >= 0")

        def tell() -> int:
            state = self.engine.machine.state
            idle = [worker_id for worker_id, worker in state.workers.items() if not worker.placed_count()]
            chosen = idle[:count] if count > 0 else idle
            for worker_id in chosen:
                self.engine.post(WorkerDrained(0.0, worker_id))
            return len(chosen)

        return int(self.engine.call_in_loop(tell))

    def set_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> int:
        """Give the workers of a host no new task and end them when they are empty; returns how many were touched.

        Raises:
            UsageError: no name of a host.
        """
        _checked_host(hostname)
        touched = self.engine.call_in_loop(lambda: self._count_on(hostname))
        self.engine.post(HostsChanged(0.0, drain=hostname, drain_on=drain_mode))
        return int(touched)

    def _count_on(self, hostname: str) -> int:
        return sum(worker.hello.hostname == hostname for worker in self.engine.machine.state.workers.values())

    def block_host(self, hostname: str) -> None:
        """Give no work to the workers of a host.

        Raises:
            UsageError: no name of a host.
        """
        self.block_host_with_timeout(hostname, 0)

    def block_host_with_timeout(self, hostname: str, seconds: float) -> None:
        """The same for some seconds; below 1: for ever.

        Raises:
            UsageError: no name of a host, or no number of seconds.
        """
        _checked_host(hostname)
        wanted = "a number of seconds, or 0 for ever"
        seconds = checked_number(seconds, "the time for which a host is blocked", -math.inf, SECONDS_LIMIT, wanted)
        until = time.monotonic() + seconds if seconds >= 1 else math.inf
        self.engine.post(HostsChanged(0.0, block=hostname, until=until))

    def unblock_host(self, hostname: str | None = None) -> None:
        """Take a host from the list of blocked ones; None: all of them.

        Raises:
            UsageError: no name of a host.
        """
        if hostname is not None:
            _checked_host(hostname)
        self.engine.post(HostsChanged(0.0, unblock=hostname, unblock_all=hostname is None))

    @property
    def name(self) -> str | None:
        """The project's name; None until ``set_name``."""
        return self.engine.name or None

    def set_name(self, name: str) -> None:
        """Give the project a name: lines that the manager prints begin with it, so that those of several can be told apart.

        Raises:
            UsageError: no text, or an empty one.
        """
        if not checked_text(name, "the name of a project").strip():
            raise UsageError("the name of a project is not empty")
        self.engine.name = name

    @property
    def properties(self) -> dict[str, str]:
        """What ``set_property`` was told; a copy."""
        return dict(self.engine.properties)

    def set_property(self, name: str, value: str) -> None:
        """Say something about this manager under a name, for programs that look at ``properties``; a second time replaces it.

        Raises:
            UsageError: one of them is no text, or the name is empty.
        """
        if not checked_text(name, "the name of a property"):
            raise UsageError("the name of a property is not empty")
        self.engine.properties[name] = checked_text(value, f"the property {name!r}")

    def set_keepalive_interval(self, seconds: float) -> None:
        """Seconds without a word of a worker until it is asked; 0: never. At most half of the timeout is used.

        Raises:
            UsageError: no number in the range of the tunable keepalive-interval.
        """
        self.tune("keepalive-interval", seconds)

    def set_keepalive_timeout(self, seconds: float) -> None:
        """Seconds without a word of a worker, which was asked meanwhile, until it counts as lost; at least 1.

        Raises:
            UsageError: no number in the range of the tunable keepalive-timeout.
        """
        self.tune("keepalive-timeout", seconds)

    def set_password(self, password: str) -> None:
        """Workers that connect from now on must know this password.

        Raises:
            UsageError: it is empty, or an embedded worker runs with the secret of the start: give ``password_file`` there.
        """
        self.engine.change_secret(secret_of_password(password))

    def set_password_file(self, path: str) -> bool:
        """The same with a file; False, and a line on standard error, when it cannot be read."""
        try:
            secret = secret_of_file(path)
        except (AuthenticationError, UsageError) as error:
            self.engine.loop.say(f"set_password_file: {error}")
            return False
        self.engine.change_secret(secret)
        return True

    def set_min_task_id(self, minimum: int) -> int:
        """Ids of later tasks begin here, unless they are higher already; returns where they begin.

        Raises:
            UsageError: it is no whole number, negative, or too large to be sent.
        """
        return self.engine.raise_task_ids(checked_whole(minimum, "the least task id", 0))

    def explain(self, task_id: int) -> str:
        """Why a task is where it is, for people.

        Raises:
            UsageError: no whole number.
        """
        task_id = checked_whole(task_id, "a task id", -WHOLE_LIMIT)

        def look() -> str:
            return "\n".join(self.engine.machine.story(task_id))

        return str(self.engine.call_in_loop(look))


def _checked_host(hostname: Any) -> None:
    if not checked_text(hostname, "the name of a host").strip():
        raise UsageError("the name of a host is not empty")


class Manager(TaskMethods, FileMethods, LibraryMethods, WorkerMethods):
    """Runs tasks on workers. Thread-safe; use it as a context manager, or call ``close``.

    Parameters:
        port: TCP port for workers; None: any free one on loopback when only ``local_cores`` is given, else 9123 on all
            interfaces; 0: any
            free one; (low, high): the first free one. ``$VINE_PORT``, if set, beats it.
        local_cores: start an embedded worker with this many cores; True: all of them.
        auth: "secret" (default): workers prove that they know the secret; None switches that off, for anybody who can reach the
            port.
        password_file: file with the secret or a password; default ``$VINE_PASSWORD_FILE``, else the user's own secret file.
        ssl: encrypt every link: (key file, certificate file) in PEM, or True for a self-signed certificate (extra tls).
            Workers then need ``--ssl``.

    Raises:
        UsageError: a parameter is wrong, or the port is in use. AuthenticationError: the secret file cannot be used.
    """

    def __init__(
        self,
        port: int | tuple[int, int] | list[int] | None = None,
        local_cores: int | bool | None = None,
        *,
        auth: str | None = "secret",
        password_file: str | None = None,
        ssl: bool | tuple[str, str] | None = None,
    ) -> None:
        self._done: OrderedDict[int, SubmittableTask] = OrderedDict()
        self._tasks: dict[int, SubmittableTask] = {}
        self._arrived = threading.Condition()
        self._large: set[weakref.ref[SubmittableTask]] = set()
        self._libraries: dict[str, InstalledLibrary] = {}
        self._library_lock = threading.Lock()
        self.engine = Engine(port, local_cores, auth, password_file, ssl=ssl)

    def close(self) -> None:
        """Release workers, end the embedded one, stop. Safe to call twice.

        Large values of finished tasks that you still hold, also of those that ``wait`` has not returned, are brought into this
        process first.
        """
        try:
            self._bring_home()
        finally:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Others that are no Exception (the end of a generator, sys.exit, a cancelled coroutine) leave values that are wanted.
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.engine.close()  # nothing is waited for
        self.close()

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__name__}{name} port {self.port}{' closed' if self.engine.closed else ''}>"

"""``FuturesExecutor``: a real ``concurrent.futures.Executor`` whose calls run on the engine.

Futures are ``concurrent.futures.Future`` objects, finished when the remote work is done; the value is decoded once, in the thread
that asks. They may be arguments of further calls, at any depth: values then move between workers, not through this process.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from typing import Any

from vinecore.api.code import Release
from vinecore.api.engine import Engine, before_exit
from vinecore.api.numbers import CORES_LIMIT, checked_whole, number_of
from vinecore.api.outcome import blame_result, failure_of, rebuilt
from vinecore.errors import LoopDied, LostError, UsageError
from vinecore.runtime.payload import Dependency, decode

_UNSET: Any = object()
_CONTEXT = (
    ": processes are forked from one that has imported what functions need; what else they should find is the context of a "
    "library (Manager.create_library_from_functions with library_context_info, docs/functions.md)"
)
# Options of ProcessPoolExecutor that are not here, and what to use.
_INSTEAD = {
    "initializer": _CONTEXT,
    "initargs": _CONTEXT,
    "mp_context": ": workers are processes of their own, which fork their slots; leave it out",
}
_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
# The states in which a call has its outcome.
_DONE = (FINISHED, CANCELLED_AND_NOTIFIED, CANCELLED)


class _Meeting:
    """What a future needs when somebody waits for it, watches it or cancels it."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []


class VineFuture(Future, Dependency):  # type: ignore[type-arg]
    """The outcome of a call.

    It differs from its base only in what it costs: condition, waiters and callbacks are made when somebody needs them, and the
    value stays encoded (or on its worker) until it is asked for.
    """

    # Slots, because most futures need nothing else: their dict is never made.
    __slots__ = ("_decoded", "_owner", "_state", "entry")
    # Class attributes are the defaults of what few futures need.
    _meeting: _Meeting | None = None
    _failure: Any = _UNSET
    _release: Release | None = None
    # The bytes of a large value, or the reason why there are none, since the executor was shut down.
    _home: Any = None

    def __init__(self, owner: FuturesExecutor) -> None:
        self._owner = owner
        self._state = PENDING
        self._decoded = _UNSET
        self.entry: Any = None

    # ---------------------------------------------- what the base class and concurrent.futures.wait look at

    def _meet(self) -> _Meeting:
        # setdefault decides between threads: all of them get the same object.
        return self._meeting or self.__dict__.setdefault("_meeting", _Meeting())

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._meet().condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self._meet().waiters

    @property
    def engine(self) -> Engine:
        """The engine that makes the value."""
        return self._owner.engine

    @property
    def _exception(self) -> Any:  # type: ignore[override]
        return self._load_failure()

    # ---------------------------------------------- the loop's side

    def settled(self, entry: Any) -> None:
        """The outcome is there (loop's thread)."""
        entry.handle = None
        owner = self._owner
        if entry.output is not None:
            self._release = Release(owner.engine, entry.output)
            owner._large.add(weakref.ref(self, owner._large.discard))
        # Nothing between this look and the store lets another thread in: who makes a meeting later sees the state.
        if self._meeting is None and entry.error is None:
            self._state = FINISHED
        meeting = self._meeting
        if meeting is not None or entry.error is not None:
            self._tell(entry, meeting or self._meet())
        if owner._shut:
            owner._one_ended()

    def _tell(self, entry: Any, meeting: _Meeting) -> None:
        """Wake and call whoever waits."""
        with meeting.condition:
            if self._state != CANCELLED_AND_NOTIFIED:
                self._state = CANCELLED_AND_NOTIFIED if entry.error == "cancelled" else FINISHED
                for waiter in meeting.waiters:
                    if self._state == CANCELLED_AND_NOTIFIED:
                        waiter.add_cancelled(self)
                    elif entry.error is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                meeting.condition.notify_all()
            callbacks, meeting.callbacks = meeting.callbacks, []
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except BaseException:
            # Also what would end a thread: in the manager's thread it would end every other call.
            LOGGER.exception("exception calling callback for %r", self)

    # ---------------------------------------------- the user's side

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent to a worker; True when it will not run."""
        meeting = self._meet()
        with meeting.condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            entry = self.entry
            if self._state == FINISHED or entry is None or entry.state in ("placed", "finished"):
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in meeting.waiters:
                waiter.add_cancelled(self)
            meeting.condition.notify_all()
            callbacks, meeting.callbacks = meeting.callbacks, []
        self._owner._cancel([entry])
        for callback in callbacks:
            self._call(callback)
        return True

    def cancelled(self) -> bool:
        """True when it was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """True when it was sent to a worker and is not finished."""
        return self._state == RUNNING or (self._state == PENDING and self.entry is not None and self.entry.state == "placed")

    def done(self) -> bool:
        """True when it is finished or cancelled."""
        return self._state in _DONE

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(future)`` when it is done: in the manager's thread, or at once in this one. It must not block."""
        if self._state not in _DONE:
            meeting = self._meet()
            with meeting.condition:
                if self._state not in _DONE:
                    meeting.callbacks.append(fn)
                    return
        self._call(fn)

    def _wait(self, timeout: float | None) -> None:
        if self._state not in _DONE:
            self._owner.engine.refuse_in_loop("waiting for a future")
            condition = self._meet().condition
            with condition:
                if self._state not in _DONE:
                    condition.wait(timeout)
        if self._state == FINISHED:
            return
        if self._state in _DONE:
            raise CancelledError
        raise TimeoutError

    def _load_failure(self) -> BaseException | None:
        # Threads that come at once may both decode; the first one's exception is everybody's.
        if self._failure is _UNSET:
            self.__dict__.setdefault("_failure", failure_of(self.entry))
        return self._failure  # type: ignore[no-any-return]

    def result(self, timeout: float | None = None) -> Any:
        """The value, waiting at most ``timeout`` seconds.

        Raises:
            TimeoutError, CancelledError, or whatever the call raised. TypeError: the timeout is no number.
        """
        deadline = None
        if timeout is not None:
            timeout = _checked_timeout(timeout)
            deadline = time.monotonic() + timeout
        if self._state is not FINISHED:
            self._wait(timeout)
        value = self._decoded
        if value is not _UNSET:
            return value
        entry = self.entry
        if entry.error is not None:
            failure = self._load_failure()
            assert failure is not None
            try:
                raise failure
            finally:
                # Break the cycle of traceback, frame and future.
                del self, failure
        # No lock: decoding runs user code, and fetching waits for the manager's thread, which may want this future's condition.
        if entry.value is not None:
            try:
                value = decode(entry.value)
            except BaseException as error:
                blame_result(error, entry.kind.name)
                raise
        else:
            value = self._fetch(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._decoded is _UNSET:
            self._decoded = value
        return self._decoded

    def _unread(self) -> Any:
        return self.entry if self._decoded is _UNSET and self._home is None else None

    def _fetch(self, timeout: float | None) -> Any:
        """The value of a large result, from its worker, or from here after the end of the executor."""
        entry = self.entry
        if self._home is None:
            try:
                return self._owner.engine.read_value(entry.output, timeout, entry.kind.name)
            except LostError:
                # A shutdown in another thread may have brought it, and ended the manager since.
                if self._home is None and self._decoded is _UNSET:
                    raise
        home = self._home
        if isinstance(home, Exception):
            try:
                raise home
            finally:
                # As in result.
                del self, home
        if home is not None and self._decoded is _UNSET:
            self._decoded = rebuilt(home, entry.kind.name)
        # Not before: another thread finds one or the other. What the value does not use of the bytes is let go of.
        self._home = None
        return self._decoded

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None.

        Raises:
            TimeoutError, CancelledError.
        """
        self._wait(None if timeout is None else _checked_timeout(timeout))
        if self.entry.error is None:
            return None
        return self._load_failure()

    def set_running_or_notify_cancel(self) -> bool:
        """For executors only; the engine does this itself.

        Raises:
            UsageError: always.
        """
        raise UsageError("this future belongs to the engine: its outcome cannot be set from outside")

    def set_result(self, result: Any) -> None:
        """See ``set_running_or_notify_cancel``."""
        self.set_running_or_notify_cancel()

    def set_exception(self, exception: BaseException | None) -> None:
        """See ``set_running_or_notify_cancel``."""
        self.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        name = self.entry.kind.name if self.entry is not None else "?"
        state = "running" if self.running() else self._state.lower().replace("cancelled_and_notified", "cancelled")
        return f"<VineFuture {name} {state}>"


class FuturesExecutor(Executor):
    """Run calls in other processes, here or on other machines: a drop-in for ``ProcessPoolExecutor``.

    Parameters:
        max_workers: calls that run at the same time on this machine (an embedded worker with that many cores); default: all
            cores, or with ``port`` none.
        port: listen on this port for workers started with ``vine_worker HOST PORT``; with ``max_workers`` they are beside the one
            here.
        manager: a Manager or DaskVine to run on; it is not closed by ``shutdown``, and takes no other option here.
        auth, password_file, ssl: as for Manager.
        max_tasks_per_child: calls after which a process that runs them is replaced by a fresh one; default: never, unless its
            memory grows too much. Not together with ``manager``.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        port: Any = None,
        manager: Any = None,
        auth: str | None = "secret",
        password_file: str | None = None,
        ssl: bool | tuple[str, str] | None = None,
        max_tasks_per_child: int | None = None,
        **others: Any,
    ) -> None:
        for name in others:
            raise TypeError(f"FuturesExecutor has no option {name!r}{_INSTEAD.get(name, '')}")
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise UsageError(f"max_workers must be a whole number, not {max_workers!r}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers is not None:
            checked_whole(max_workers, "max_workers", 1, CORES_LIMIT)
        if manager is not None:
            given = {"max_workers": max_workers, "port": port, "password_file": password_file, "ssl": ssl or None}
            given["auth"] = None if auth == "secret" else True
            _check_manager(manager, [name for name, value in given.items() if value is not None])
        if max_tasks_per_child is not None:
            if isinstance(max_tasks_per_child, bool) or not isinstance(max_tasks_per_child, int):
                raise TypeError(f"max_tasks_per_child must be an integer, not {max_tasks_per_child!r}")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            checked_whole(max_tasks_per_child, "max_tasks_per_child", 1)
            if manager is not None:
                raise UsageError("max_tasks_per_child is for an executor with workers of its own, not for one on a manager")
        self.manager = manager
        if manager is not None:
            self.engine: Engine = manager.engine
        else:
            local = max_workers or (True if port is None else None)
            self.engine = Engine(port, local, auth, password_file, ssl=ssl, max_tasks_per_child=max_tasks_per_child or 0)
        self._shut = False
        # After shutdown, in the loop's thread: calls of this executor that have no outcome yet; -1: not counted.
        self._left = -1
        self._idle = threading.Event()
        self._close_when_idle = False
        # Futures whose values are on workers, held weakly. A plain set: what is done with it is one step for other threads.
        self._large: set[weakref.ref[Any]] = set() if manager is None else manager._large
        # Held while values are brought here and the manager is closed.
        self._ending = threading.Lock()
        self._is_hurried = False
        self._is_abandoned = False
        _executors.add(self)
        _ensure_finish_at_exit()

    @property
    def port(self) -> int:
        """Where workers connect."""
        return self.engine.port

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> VineFuture:
        """Run ``fn(*args, **kwargs)`` and return its future. Futures of this executor among the arguments become their values.

        Raises:
            RuntimeError: after shutdown. UnpicklableError: the function or an argument cannot be pickled.
        """
        if self._shut:
            raise RuntimeError(_AFTER_SHUTDOWN)
        future = VineFuture(self)
        try:
            future.entry = self.engine.submit_call(fn, args, kwargs, future)
        except LoopDied:
            if self._shut:
                raise RuntimeError(_AFTER_SHUTDOWN) from None
            raise
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Like ``Executor.map``: results in order, as an iterator.

        Parameters:
            timeout: seconds from now until which results must come.
            chunksize: calls that travel as one.
            buffersize: submit only so many calls (chunks) ahead of the results that were taken; default: all at once.

        Raises:
            TimeoutError, or whatever a call raised, when its result is reached.
            TypeError, ValueError: chunksize or buffersize is no whole number, or below 1.
        """
        size = _checked_count(chunksize, "chunksize")
        ahead = None if buffersize is None else _checked_count(buffersize, "buffersize")
        seconds = None if timeout is None else _checked_timeout(timeout)
        if size == 1:
            return self._map(fn, iterables, seconds, ahead)
        chunks = _chunks(zip(*iterables, strict=False), size)
        return _flatten(self._map(_run_chunk, (itertools.repeat(fn), chunks), seconds, ahead))

    def _map(
        self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], timeout: float | None, ahead: int | None
    ) -> Iterator[Any]:
        if ahead is None:
            return super().map(fn, *iterables, timeout=timeout)
        arguments = zip(*iterables, strict=False)
        end = None if timeout is None else time.monotonic() + timeout
        # Here, not in the generator: the first calls start before the first result is asked for.
        first = deque(self.submit(fn, *args) for args in itertools.islice(arguments, ahead))
        return _map_ahead(self, fn, arguments, first, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with ``wait`` return when all are done and every process is gone.

        Results that futures stand for are kept: what workers have of them is brought here before a manager of ours is closed.

        Raises:
            UsageError: it should wait, and this is the manager's own thread (a done-callback).
        """
        engine = self.engine
        if wait and not engine.closed:
            engine.refuse_in_loop("shutdown(wait=True)")
        self._shut = True
        if engine.pid != os.getpid():
            return
        if not wait and self.manager is None:
            self._close_when_idle = True
        try:
            engine.post(lambda: self._count(cancel_futures))
        except LoopDied:
            self._idle.set()
        if not wait:
            return
        thread = engine.loop.thread
        while not self._idle.wait(1.0):
            if thread is None or not thread.is_alive():
                break
        if self.manager is None:
            self._end()

    def _end(self) -> None:
        """Bring home what somebody may still ask for, then close the manager, whatever happens meanwhile."""
        with self._ending:
            try:
                if self._large and not self.engine.closed:
                    from vinecore.api.homecoming import bring_home

                    # Looked at again for each: the interpreter may end meanwhile.
                    wanted = itertools.takewhile(lambda _: not self._is_abandoned, list(self._large))
                    bring_home(self.engine, wanted, self._hurry)
            finally:
                self.engine.close()
                # Futures hold the engine: what they do not need of it goes now.
                self.engine.loop.objects.clear()

    def _hurry(self) -> str:
        return "an interrupt left no time to make it again" if self._is_hurried else ""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for pending calls; after Ctrl-C, in the block or in this wait, give them up, those that run included."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupt()
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._interrupt()
            self.shutdown(wait=True)
            raise

    def _interrupt(self) -> None:
        """Cancel everything of this executor, also what runs; nothing is made again."""
        self._is_hurried = True

        def give_up() -> None:
            entries = list(self.engine.machine.state.tasks.values())
            self._cancel([entry for entry in entries if isinstance(entry.handle, VineFuture) and entry.handle._owner is self])

        with contextlib.suppress(LoopDied):
            self.engine.post(give_up)

    def _count(self, cancel_futures: bool = False) -> None:
        """Count what has no outcome yet (loop's thread, so that everything submitted before is seen)."""
        entries = self.engine.machine.state.tasks.values()
        mine = [entry for entry in entries if isinstance(entry.handle, VineFuture) and entry.handle._owner is self]
        self._left = len(mine)
        if cancel_futures:
            self._cancel([entry for entry in mine if entry.state != "placed"])
        if not mine and not self._idle.is_set():
            self._idle.set()
            if self._close_when_idle and not self.engine.closed:
                _run_elsewhere(self._end)

    def _cancel(self, entries: list[Any]) -> None:
        with contextlib.suppress(LoopDied):
            self.engine.cancel(entries)

    def _one_ended(self) -> None:
        """One call has its outcome, after shutdown (loop's thread)."""
        self._left -= 1
        if self._left == 0:
            # Counted again: a submit that ran beside shutdown may have come later. Its neighbours are told before that.
            with contextlib.suppress(LoopDied):
                self.engine.post(self._count)

    def __del__(self) -> None:
        # Futures hold their executor, so nobody can ask for anything any more. No lock is taken here.
        engine: Engine | None = getattr(self, "engine", None)
        if engine is None or self.manager is not None or self._close_when_idle or engine.closed or engine.pid != os.getpid():
            return
        with contextlib.suppress(LoopDied):
            engine.post(lambda: _run_elsewhere(engine.close))


def _check_manager(manager: Any, others: list[str]) -> None:
    """Raise for one that an executor cannot run on, or that is contradicted by other options."""
    if not hasattr(manager, "engine"):
        raise UsageError(f"manager must be a Manager or DaskVine, not {manager!r}")
    if others:
        raise UsageError(
            f"{others[0]} is for an executor with a manager of its own: give it to the Manager, or leave manager= out"
        )
    if manager.engine.closed:
        raise LoopDied("the manager has been closed; make a new one")


def _run_elsewhere(end: Callable[[], None]) -> None:
    """End a manager from a thread: the loop's own thread cannot wait for its end."""
    threading.Thread(target=end, name="vine-close", daemon=True).start()


def _map_ahead(
    executor: FuturesExecutor,
    fn: Callable[..., Any],
    arguments: Iterator[tuple[Any, ...]],
    futures: deque[VineFuture],
    end: float | None,
) -> Iterator[Any]:
    """Results in order; for each that is taken one more call is submitted."""
    try:
        while futures:
            for args in itertools.islice(arguments, 1):
                futures.append(executor.submit(fn, *args))
            # Nothing here names the value while the caller has it: it may be large.
            yield _result_or_cancel(futures.popleft(), end)
    finally:
        for future in futures:
            future.cancel()


def _result_or_cancel(future: VineFuture, end: float | None) -> Any:
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        # As in result.
        del future


def _checked_count(value: Any, name: str) -> int:
    """Calls to a chunk, or calls ahead.

    Raises:
        TypeError: it is no whole number. ValueError: it is below 1, or more than a machine counts.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number >= 1, not {value!r}") from None
    if not 1 <= count <= sys.maxsize:
        raise ValueError(f"{name} must be >= 1 and at most {sys.maxsize}, not {count}")
    return count


def _checked_timeout(timeout: Any) -> float:
    """Seconds to wait, no more than threads can wait.

    Raises:
        TypeError: it is no number.
    """
    seconds = number_of(int(timeout) if isinstance(timeout, bool) else timeout)
    if seconds is None:
        raise TypeError(f"a timeout is a number of seconds or None, not {timeout!r}")
    return float(min(seconds, threading.TIMEOUT_MAX))


def _run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]


def _chunks(items: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _flatten(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


_executors: weakref.WeakSet[FuturesExecutor] = weakref.WeakSet()
_registered = False


def _ensure_finish_at_exit() -> None:
    global _registered
    if not _registered:
        _registered = True
        before_exit(_finish_all)


def _finish_all() -> None:
    """The interpreter ends: pending work is done first, unless Ctrl-C is what ended it."""
    interrupted = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for executor in list(_executors):
        if not executor.engine.closed:
            if interrupted:
                executor._interrupt()
            if interrupted or not _is_outlived():
                # Nobody is left who could read them: they need not come.
                executor._is_abandoned = True
            executor.shutdown(wait=True)


def _is_outlived() -> bool:
    """Whether threads of the user go on after the main one."""
    here = threading.current_thread()
    return any(thread is not here and not thread.daemon for thread in threading.enumerate())

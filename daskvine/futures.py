"""``FuturesExecutor``: a real ``concurrent.futures.Executor`` whose calls run on the engine.

Futures are ``concurrent.futures.Future`` objects, finished when the remote work is done; the value is decoded once, in the thread that asks. They may be
arguments of further calls, at any depth: values then move between workers, not through this process.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING, RUNNING
from typing import Any

from vinecore.api.engine import Engine, before_exit
from vinecore.errors import TaskFailed, UsageError
from vinecore.runtime.payload import Dependency, decode, decode_error

_UNSET: Any = object()


class VineFuture(Future, Dependency):  # type: ignore[type-arg]
    """The outcome of a call.

    It differs from its base only in what it costs: condition, waiters and callbacks are made when somebody needs them, and the value stays
    encoded (or on its worker) until it is asked for.
    """

    # Class attributes are the defaults of what most futures never need.
    _lazy_condition: Any = None
    _lazy_waiters: Any = None
    _callbacks: Any = None
    _decoded: Any = _UNSET
    _failure: Any = _UNSET

    def __init__(self, owner: FuturesExecutor) -> None:
        self._owner = owner
        self._state = PENDING
        self.entry: Any = None

    # ---------------------------------------------- what the base class and concurrent.futures.wait look at

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition = self._lazy_condition
        if condition is None:
            condition = self.__dict__.setdefault("_lazy_condition", threading.Condition())
        return condition  # type: ignore[no-any-return]

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self.__dict__.setdefault("_lazy_waiters", [])  # type: ignore[no-any-return]

    @property
    def _exception(self) -> Any:
        return self._load_failure()

    # ---------------------------------------------- the loop's side

    def settled(self, entry: Any) -> None:
        """The outcome is there (loop's thread)."""
        entry.handle = None
        # State first, then the look for a condition: whoever makes one looks at the state after making it.
        if entry.error == "cancelled":
            self._state = CANCELLED_AND_NOTIFIED
        elif self._state != CANCELLED_AND_NOTIFIED:
            self._state = FINISHED
        self._owner._ended()
        condition = self._lazy_condition
        if condition is not None:
            with condition:
                for waiter in self._lazy_waiters or ():
                    if self._state == CANCELLED_AND_NOTIFIED:
                        waiter.add_cancelled(self)
                    elif entry.error is not None:
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                condition.notify_all()
                callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks or ():
                self._call(callback)

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    # ---------------------------------------------- the user's side

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent to a worker; True when it will not run."""
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            entry = self.entry
            if self._state == FINISHED or entry is None or entry.state == "placed":
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._lazy_waiters or ():
                waiter.add_cancelled(self)
            self._condition.notify_all()
            callbacks, self._callbacks = self._callbacks, None
        self._owner._cancel([entry])
        for callback in callbacks or ():
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
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(future)`` when it is done: in the manager's thread, or at once in this one. It must not block."""
        with self._condition:
            if self._state not in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED):
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._call(fn)

    def _wait(self, timeout: float | None) -> None:
        if self._state == FINISHED:
            return
        if self._state != CANCELLED_AND_NOTIFIED:
            self._owner.engine.refuse_in_loop("waiting for a future")
            with self._condition:
                if self._state not in (FINISHED, CANCELLED_AND_NOTIFIED):
                    self._condition.wait(timeout)
        if self._state == CANCELLED_AND_NOTIFIED:
            raise CancelledError
        if self._state != FINISHED:
            raise TimeoutError

    def _load_failure(self) -> BaseException | None:
        failure = self._failure
        if failure is _UNSET:
            with self._condition:
                if self._failure is _UNSET:
                    self._failure = failure_of(self.entry)
                failure = self._failure
        return failure  # type: ignore[no-any-return]

    def result(self, timeout: float | None = None) -> Any:
        """The value, waiting at most ``timeout`` seconds.

        Raises:
            TimeoutError, CancelledError, or whatever the call raised.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
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
        with self._condition:
            if self._decoded is _UNSET:
                if entry.value is not None:
                    self._decoded = decode(entry.value)
                else:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    self._decoded = self._owner.engine.read_value(entry.output, left)
            return self._decoded

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None.

        Raises:
            TimeoutError, CancelledError.
        """
        self._wait(timeout)
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

    def __del__(self) -> None:
        # A value on a worker is dropped with its future. No lock is taken here.
        entry = self.entry
        if entry is not None and entry.output is not None:
            self._owner.engine.release([entry.output])


def failure_of(entry: Any) -> BaseException | None:
    """The exception of an entry that has its outcome; None when it succeeded."""
    error = entry.error
    if error is None:
        return None
    if error == "raised":
        return decode_error(entry.value)
    if error == "cancelled":
        return CancelledError()
    if isinstance(error, BaseException):
        return error
    return TaskFailed(str(error))


class FuturesExecutor(Executor):
    """Run calls in other processes, here or on other machines: a drop-in for ``ProcessPoolExecutor``.

    Parameters:
        max_workers: calls that run at the same time on this machine (an embedded worker with that many cores); default: all cores. Ignored
            with ``port`` or ``manager``.
        port: listen on this port for workers started with ``vine_worker HOST PORT``, and start none here (unless ``max_workers`` is given).
        manager: a Manager or DaskVine to run on; it is not closed by ``shutdown``.
        auth, password_file: as for Manager.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        port: Any = None,
        manager: Any = None,
        auth: str | None = "secret",
        password_file: str | None = None,
    ) -> None:
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise UsageError(f"max_workers must be a number, not {max_workers!r}")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self.manager = manager
        if manager is not None:
            self.engine: Engine = manager.engine
        else:
            local = max_workers or (True if port is None else None)
            self.engine = Engine(port, local, auth, password_file)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._shut = False
        self._submitted = 0
        self._finished = 0
        self._close_when_idle = False
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
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = VineFuture(self)
        self._submitted += 1
        try:
            future.entry = self.engine.submit_call(fn, args, kwargs, future)
        except BaseException:
            self._submitted -= 1
            raise
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1, **more: Any
    ) -> Iterator[Any]:
        """Like ``Executor.map``: results in order, as an iterator.

        Parameters:
            timeout: seconds from now until which results must come.
            chunksize: calls that travel as one.

        Raises:
            TimeoutError, or whatever a call raised, when its result is reached.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **more)
        chunks = super().map(_run_chunk, itertools.repeat(fn), _chunks(zip(*iterables, strict=False), chunksize), timeout=timeout)
        return _flatten(chunks)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with ``wait`` return when all are done and every process is gone."""
        with self._lock:
            self._shut = True
        if cancel_futures:
            self._cancel_pending()
        if self.manager is not None:
            if wait:
                self._wait_idle()
            return
        if wait:
            self.engine.refuse_in_loop("shutdown(wait=True)")
            self._wait_idle()
            self.engine.close()
        else:
            with self._lock:
                self._close_when_idle = True
            self._maybe_close()

    def _cancel_pending(self) -> None:
        def collect() -> None:
            from vinecore.manager.events import TasksCancelled

            waiting = [
                entry
                for entry in self.engine.machine.state.tasks.values()
                if entry.state != "placed" and isinstance(entry.handle, VineFuture) and entry.handle._owner is self
            ]
            self.engine.post(TasksCancelled(0.0, waiting))

        self.engine.post(collect)

    def _cancel(self, entries: list[Any]) -> None:
        from vinecore.manager.events import TasksCancelled

        self.engine.post(TasksCancelled(0.0, entries))

    def _ended(self) -> None:
        """One call has its outcome (loop's thread)."""
        self._finished += 1
        if self._shut and self._finished >= self._submitted:
            with self._lock:
                self._idle.notify_all()
            self._maybe_close()

    def _maybe_close(self) -> None:
        if self._close_when_idle and self._finished >= self._submitted and not self.engine.closed:
            # Elsewhere: the loop's thread cannot wait for its own end.
            threading.Thread(target=self.engine.close, name="vine-close").start()

    def _wait_idle(self) -> None:
        with self._lock:
            while self._finished < self._submitted:
                thread = self.engine.loop.thread
                if thread is None or not thread.is_alive():
                    return
                self._idle.wait(1.0)


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
    """The interpreter ends: pending work is done first."""
    for executor in list(_executors):
        if not executor.engine.closed:
            executor.shutdown(wait=True)

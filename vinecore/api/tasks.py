"""Tasks as users hold them, and the methods of a manager that submit, wait for and cancel them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from vinecore.api.files import check_owner
from vinecore.api.numbers import SECONDS_LIMIT, WHOLE_LIMIT, checked_priority, checked_whole, number_of, shown
from vinecore.api.outcome import failure_of, rebuilt, remote_text_of, text_of
from vinecore.errors import LibraryFailed, LoopDied, UsageError, VineError

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import CodeEntry, Kind, LibraryEntry, TaskEntry

_UNSET: Any = object()
# Characters of a command in the repr of its task.
REPR_LENGTH = 60


class SubmittableTask:
    """What all kinds of tasks share. Class attributes are the defaults of what most tasks never set."""

    id: int | None = None
    tag: str | None = None
    category: str = "default"
    _retries = 0
    _priority = 0.0
    _entry: TaskEntry | None = None
    _manager: TaskMethods | None = None
    _output: Any = _UNSET
    _temp_output = False
    # The temp that gets the value, when that stays in the cluster.
    _result_file: Any = None
    _finished = False
    _returned = False
    # It has files, limits, a request or the like: for most calls, which have none, these need not be looked at one by one.
    _asks = False
    # The bytes of a large value, or the reason why there are none, since the manager was closed.
    _home: Any = None
    # Asked to be cancelled, though its outcome may not be there yet: it is not counted a second time.
    _cancelled = False

    def set_tag(self, tag: str) -> None:
        """A free label, for ``wait_for_tag`` and ``cancel_by_task_tag``."""
        self.tag = str(tag)

    def set_category(self, category: str) -> None:
        """The group that this task belongs to."""
        self.category = str(category)

    def set_retries(self, count: int) -> None:
        """Times it is run again after its function raised; below 1: without limit, as in TaskVine.

        A command that fails is not run again: it comes back with its exit code.

        Raises:
            UsageError: no whole number.
        """
        count = checked_whole(count, "retries", -WHOLE_LIMIT, wanted="a whole number")
        self._retries = count if count >= 1 else 2**31

    def set_priority(self, priority: float) -> None:
        """Larger runs earlier; default 0."""
        self._priority = checked_priority(priority)

    def __repr__(self) -> str:
        command = str(self.command)
        what = repr(command if len(command) <= REPR_LENGTH else f"{command[: REPR_LENGTH - 3]}...")
        number = "" if self.id is None else f" {self.id}"
        return f"<{type(self).__name__}{number} {what} {self.state}>"

    # ------------------------------------------------ outcome

    @property
    def command(self) -> str:
        """What it runs, in words."""
        return ""

    @property
    def manager(self) -> Any:
        """The manager it was submitted to."""
        return self._manager

    @property
    def state(self) -> str:
        """INITIAL, READY, RUNNING, RETRIEVED or DONE."""
        entry = self._entry
        if entry is None:
            return "INITIAL"
        if self._returned:
            return "DONE"
        if self._finished:
            return "RETRIEVED"
        return "RUNNING" if entry.state == "placed" else "READY"

    @property
    def result(self) -> str:
        """How it ended: success, cancelled, missing library, forsaken; unknown until then."""
        entry = self._entry
        if entry is None or not self._finished:
            return "unknown"
        error = entry.error
        if error is None or error == "raised":
            return "success"
        if error == "cancelled":
            return "cancelled"
        return "missing library" if isinstance(error, LibraryFailed) else "forsaken"

    @property
    def exit_code(self) -> int:
        """0 when the function returned, 1 when it raised, -1 when it never ran to an end."""
        entry = self._entry
        if entry is None or not self._finished:
            return -1
        return 0 if entry.error is None else 1 if entry.error == "raised" else -1

    def completed(self) -> bool:
        """Whether it ran to an end, well or not."""
        return self.result == "success"

    def successful(self) -> bool:
        """Whether it ran and did not raise."""
        entry = self._entry
        return entry is not None and self._finished and entry.error is None

    @property
    def std_output(self) -> str | None:
        """The remote traceback of a function that raised, else an empty text; None when it never ran."""
        entry = self._entry
        if entry is None or not self._finished:
            return None
        if entry.error == "raised":
            return remote_text_of(self._failure())
        return "" if entry.error is None else None

    @property
    def output(self) -> Any:
        """The value, decoded once; the exception object when there is no value.

        Raises:
            UnpicklableError: the value came, but cannot be rebuilt here.
        """
        if not self._finished or self._entry is None:
            return None
        value = self._output
        if value is _UNSET:
            entry = self._entry
            if entry.error is not None:
                value = self._failure()
            elif entry.value is not None:
                value = rebuilt(entry.value, entry.kind.name)
            else:
                value = self._fetch(entry)
            self._output = value
            self._home = None
        return value

    def _fetch(self, entry: TaskEntry) -> Any:
        """A large value: from its worker, or from here after the end of the manager."""
        home = self._brought(entry)
        if home is not None:
            return rebuilt(home, entry.kind.name)
        assert self._manager is not None and entry.output is not None
        return self._manager.engine.read_value(entry.output, None, entry.kind.name)

    def _brought(self, entry: TaskEntry) -> Any:
        """The bytes of a large value that came here at the end of the manager; None while that lives.

        Raises:
            FileLost: it could not come. LoopDied: it was not asked for, after Ctrl-C for example.
        """
        home, manager = self._home, self._manager
        if isinstance(home, Exception):
            raise home
        if home is None and manager is not None and manager.engine.closed:
            name = entry.kind.name
            raise LoopDied(f"the manager has been closed, and the result of {name} stayed on its worker: read it before that")
        return home

    def _unread(self) -> TaskEntry | None:
        entry = self._entry
        is_read = self._output is not _UNSET or self._home is not None
        return None if is_read or entry is None or entry.value is not None or entry.error is not None else entry

    @property
    def reason(self) -> str:
        """Why it did not succeed, for people; empty when it did, or is not done."""
        entry = self._entry
        if entry is None or not self._finished or entry.error is None:
            return ""
        if isinstance(entry.error, LibraryFailed):
            return str(entry.error)
        failure = failure_of(entry)
        if entry.error == "raised":
            text = text_of(failure)
            return f"it raised {type(failure).__name__}{': ' if text else ''}{text}"
        return text_of(failure) or str(entry.error)

    def _failure(self) -> BaseException:
        entry = self._entry
        assert entry is not None
        if self._output is not _UNSET:
            return self._output  # type: ignore[no-any-return]
        self._output = failure_of(entry)
        return self._output  # type: ignore[no-any-return]

    def settled(self, entry: TaskEntry) -> TaskMethods | None:
        """The outcome is there (loop's thread)."""
        entry.handle = None
        self._finished = True
        manager = self._manager
        if manager is not None:
            manager._done[entry.task_id] = self
        return manager

    def __del__(self) -> None:
        # A large value is dropped with the task that holds it. No lock is taken here.
        entry, manager = self._entry, self._manager
        if entry is not None and manager is not None and entry.output is not None and not self._keeps_output():
            manager.engine.release([entry.output])

    def _check_files(self, engine: Engine) -> None:
        """Refuse, before anything is changed, files that cannot be used there.

        Raises:
            UsageError: one belongs to another manager, or is a temp that another task makes.
        """
        file = self._result_file
        if file is None or not self._temp_output:
            return
        producer = file.entry.producer
        if producer is None:
            check_owner(file, engine)
        elif producer is not self._entry:
            raise UsageError(f"another task makes the temp of this one, {file!r}: declare one for each")

    def _dress(self, engine: Engine, entry: TaskEntry) -> None:
        """Add to a new entry what only this kind of task has."""

    def _keeps_output(self) -> bool:
        return self._result_file is not None

    def _prepare(self, engine: Engine, libraries: dict[str, InstalledLibrary]) -> tuple[CodeEntry, Kind]:
        raise UsageError(f"{type(self).__name__} cannot be submitted: use FunctionCall")


class TempOutput(SubmittableTask):
    """A task whose value may stay in the cluster."""

    def enable_temp_output(self) -> None:
        """Leave the value in the cluster, as the temp ``output_file``."""
        self._temp_output = True

    def disable_temp_output(self) -> None:
        """Bring the value back (the default)."""
        self._temp_output = False

    @property
    def output_file(self) -> Any:
        """The temp with the value; None before submit, or when the value is brought back."""
        return self._result_file


class InstalledLibrary:
    """A library of a running manager: its entry, and code by function name."""

    __slots__ = ("codes", "entry", "task")

    def __init__(self, entry: LibraryEntry, codes: dict[str, tuple[CodeEntry, Kind]], task: Any) -> None:
        self.entry = entry
        self.codes = codes
        self.task = task


class TaskMethods:
    """The part of a manager that deals with tasks."""

    engine: Engine
    _libraries: dict[str, InstalledLibrary]
    # Finished and not returned, by id, in order of completion. Who takes one out is who hands it out: that is one step, so that
    # no two threads do, and the loop's thread may add others meanwhile.
    _done: OrderedDict[int, SubmittableTask]
    # Submitted and not returned, by id.
    _tasks: dict[int, SubmittableTask]
    _arrived: threading.Condition
    # Tasks that were handed out and whose values are on workers, held weakly.
    _large: set[weakref.ref[SubmittableTask]]

    def submit(self, task: Any) -> int:
        """Hand a task over and return its id.

        Raises:
            TypeError: no task. UsageError (a ValueError): it is under way already, its library is not installed, one of its
                files belongs to another manager, or is a temp that another task makes.
        """
        if not isinstance(task, SubmittableTask):
            raise TypeError(f"submit takes a task such as FunctionCall, not {type(task).__name__}")
        if task._entry is not None and not task._returned:
            raise UsageError(f"task {task.id} is under way already: make another one, or wait for it first")
        if self.engine.closed:
            raise LoopDied("the manager has been closed; make a new one")
        if task._asks or task._temp_output:
            task._check_files(self.engine)
        code, kind = task._prepare(self.engine, self._libraries)
        last, last_manager, kept = task._entry, task._manager, task._keeps_output()
        entry = self._build(task, code, kind)
        # Only now: what was refused above keeps the outcome it had.
        if last is not None and last_manager is not None:
            last_manager._forget_last(task, last, kept)
        task._finished = task._returned = task._cancelled = False
        task._output, task._manager, task.id = _UNSET, self, entry.task_id
        task._home = None
        self._tasks[entry.task_id] = task
        try:
            if entry.error is not None:
                # It cannot run (an input is missing): it comes back through wait like any other.
                self.engine.post(lambda: self._refused(task, entry))
            else:
                self.engine.post(entry)
        except VineError:
            del self._tasks[entry.task_id]
            task._entry = None
            raise
        return entry.task_id

    def _build(self, task: Any, code: CodeEntry, kind: Kind) -> TaskEntry:
        engine = self.engine
        entry = engine.build_entry(code, kind, task.args, task.kwargs, task, task._retries, task._priority)
        # First what may be refused: a temp has its maker for good.
        task._dress(engine, entry)
        if task._temp_output:
            if task._result_file is None or task._result_file.entry.producer is not None:
                task._result_file = self.declare_temp()  # type: ignore[attr-defined]
            output = task._result_file.entry
            output.producer = entry
            entry.output = output
        task._entry = entry
        return entry

    def _forget_last(self, task: SubmittableTask, last: TaskEntry, kept: bool) -> None:
        """A task of ours is submitted again, perhaps to another manager: its last end and value go."""
        if last.output is not None and not kept:
            self.engine.release([last.output])
            # At our end we would look for the value of the next run, which may be another's.
            self._large.discard(weakref.ref(task))

    def _refused(self, task: SubmittableTask, entry: TaskEntry) -> None:
        task.settled(entry)
        self.flush()

    def flush(self) -> None:
        """After a batch of outcomes: wake who waits (loop's thread)."""
        with self._arrived:
            self._arrived.notify_all()

    def wait(self, timeout: float | str | None = "wait_forever") -> Any:
        """The next finished task, or None after ``timeout`` seconds.

        Parameters:
            timeout: seconds (int or float); 0 looks without waiting; None, -1 or "wait_forever" is without limit.

        Without limit and with nothing under way it returns None instead of waiting for ever.

        Raises:
            UsageError: the timeout is none of these. LoopDied: the manager ended.
        """
        task = self._first_done()
        return self._wait_for(self._first_done, timeout) if task is None else self._hand_out(task)

    def _first_done(self) -> SubmittableTask | None:
        done = self._done
        try:
            return done.popitem(last=False)[1] if done else None
        except KeyError:
            return None  # another thread took it

    def _first_with(self, tag: str) -> SubmittableTask | None:
        done = self._done
        copied = False
        while True:
            try:
                entries = list(done.items()) if copied else done.items()
                found = next((task_id for task_id, task in entries if task.tag == tag), None)
            except RuntimeError:
                # Another one came in between; with many in front of the right one, one always would.
                copied = True
                continue
            taken = None if found is None else done.pop(found, None)
            if taken is not None or found is None:
                return taken

    def wait_for_tag(self, tag: str | None, timeout: float | str | None = "wait_forever") -> Any:
        """The next finished task with this tag (None: any), or None."""
        if tag is None:
            return self.wait(timeout)
        return self._wait_for(
            lambda: self._first_with(tag), timeout, lambda: any(t.tag == tag for t in list(self._tasks.values()))
        )

    def wait_for_task_id(self, task_id: int, timeout: float | str | None = "wait_forever") -> Any:
        """The task with this id when it has finished (-1: any), or None: at once when there is none of that id under way."""
        if task_id == -1:
            return self.wait(timeout)
        if task_id not in self._tasks:
            return None
        return self._wait_for(lambda: self._done.pop(task_id, None), timeout, lambda: task_id in self._tasks, True)

    def _wait_for(self, find: Any, timeout: float | str | None, possible: Any = None, only_one: bool = False) -> Any:
        """Wait until there is one. ``only_one``: once it is not possible any more no other can come, whatever the timeout."""
        limit = _seconds(timeout)
        task = find()
        if task is None and limit != 0:
            self.engine.refuse_in_loop("wait")
            self.engine.check_process()
            deadline = None if limit is None else time.monotonic() + limit
            thread = self.engine.loop.thread
            with self._arrived:
                while (task := find()) is None:
                    left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
                    may_end = deadline is None or only_one
                    if left <= 0 or (may_end and not (possible() if possible is not None else self._tasks)):
                        break
                    if thread is None or not thread.is_alive():
                        died = self.engine.loop.died
                        raise LoopDied("the manager has been closed" if died is None else f"the manager has ended: {died!r}")
                    self._arrived.wait(left)
        return None if task is None else self._hand_out(task)

    def _hand_out(self, task: SubmittableTask) -> SubmittableTask:
        task._returned = True
        self._tasks.pop(task.id or 0, None)
        entry = task._entry
        if entry is not None and entry.output is not None and not task._keeps_output():
            self._large.add(weakref.ref(task, self._large.discard))
        return task

    def _bring_home(self) -> None:
        """Values of finished tasks that the user holds and has not read come into this process, if they are anywhere."""
        engine = self.engine
        if engine.closed or os.getpid() != engine.pid or threading.current_thread() is engine.loop.thread:
            return
        self._look_who_is_held()
        if self._large:
            from vinecore.api.homecoming import bring_home

            bring_home(engine, list(self._large), lambda: "a manager that is closed makes nothing again")

    def _look_who_is_held(self) -> None:
        """Find those of the finished tasks with large values that the user holds, though they were not handed out.

        The others go: a program that fails must not wait for gigabytes of which it holds nothing.
        """
        done, large = self._done, self._large
        finished: list[SubmittableTask] = []
        candidates: list[weakref.ref[SubmittableTask]] = []
        # Not more than are there now: the loop's thread appends others.
        for _ in range(len(done)):
            task = self._first_done()
            if task is None:
                break
            if task._keeps_output() or task._unread() is None:
                finished.append(task)
            else:
                del self._tasks[task.id or 0]
                candidates.append(weakref.ref(task))
            del task
        for reference in candidates:
            held = reference()
            if held is not None:
                finished.append(held)
                self._tasks[held.id or 0] = held
                large.add(weakref.ref(held, large.discard))
        for task in reversed(finished):
            done[task.id or 0] = task
            done.move_to_end(task.id or 0, last=False)

    def empty(self) -> bool:
        """True when every submitted task has been returned."""
        return not self._tasks

    def hungry(self) -> int:
        """How many more tasks could usefully be submitted now; 0 when sated."""
        tunables = self.engine.tunables
        waiting, running, cores, workers = self.engine.call_in_loop(self._load)
        factor = max(1.0, tunables.hungry_minimum_factor)
        least = max(tunables.hungry_minimum, workers * factor, 1)
        room = int(max(factor * cores - running, least))
        return room if waiting == 0 else max(0, room - waiting)

    def _load(self) -> tuple[int, int, int, int]:
        state = self.engine.machine.state
        running = sum(worker.placed_count() for worker in state.workers.values())
        cores = sum(worker.hello.cores for worker in state.workers.values())
        return len(state.tasks) - running, running, cores, len(state.workers)

    # ------------------------------------------------ cancelling: tasks come back through wait, with the result "cancelled"

    def cancel_by_task_id(self, task_id: int) -> int:
        """1 when there was such a task that had not finished, else 0.

        Raises:
            UsageError: no whole number.
        """
        task = self._tasks.get(checked_whole(task_id, "a task id", -WHOLE_LIMIT))
        return self._cancel([] if task is None else [task])

    def cancel_by_task_tag(self, tag: str) -> int:
        """Cancel one task with this tag: 1, or 0 when there is none."""
        return self._cancel([t for t in list(self._tasks.values()) if t.tag == tag and not t._finished and not t._cancelled][:1])

    def cancel_all_by_tag(self, tag: str) -> int:
        """Cancel every task with this tag; returns how many."""
        return self._cancel([t for t in list(self._tasks.values()) if t.tag == tag])

    def cancel_by_category(self, category: str) -> int:
        """Cancel every task of a category; returns how many."""
        return self._cancel([t for t in list(self._tasks.values()) if t.category == category])

    def cancel_all(self) -> int:
        """Cancel everything; returns how many."""
        return self._cancel(list(self._tasks.values()))

    def _cancel(self, tasks: list[SubmittableTask]) -> int:
        self.engine.check_process()
        open_tasks = [task for task in tasks if not task._finished and not task._cancelled]
        if open_tasks:
            for task in open_tasks:
                task._cancelled = True
            self.engine.cancel([task._entry for task in open_tasks if task._entry is not None])
        return len(open_tasks)


def _seconds(timeout: float | str | None) -> float | None:
    """Seconds to wait; None: no limit.

    Raises:
        UsageError: it is no timeout.
    """
    if timeout is None or (isinstance(timeout, str) and timeout == "wait_forever"):
        return None
    seconds = None if isinstance(timeout, str) else number_of(timeout)
    if seconds is None:
        raise UsageError(f'a timeout is a number of seconds, None or "wait_forever", not {shown(timeout)}')
    if seconds == -1 or seconds > SECONDS_LIMIT:
        return None
    # Other negative numbers have always meant a short wait.
    return float(seconds) if seconds >= 0 else 5.0

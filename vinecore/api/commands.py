"""Tasks that run in a process and a private directory of their own: shell commands and Python functions."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from vinecore.api.files import BUFFER, FILE, TEMP, File, check_owner, checked_name
from vinecore.api.numbers import SECONDS_LIMIT, WHOLE_LIMIT, checked_number
from vinecore.api.tasks import InstalledLibrary, SubmittableTask, TempOutput
from vinecore.api.texts import checked_text, checked_variable_name
from vinecore.errors import FileLost, InputMissing, LibraryFailed, LoopDied, TaskFailed, UsageError
from vinecore.model.resources import Resources, checked_amount
from vinecore.wire import messages

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import CodeEntry, FileEntry, Kind, TaskEntry

# What describes a task travels in one message with others, whose size is limited. Linux takes less of a command anyway.
DESCRIPTION_LIMIT_BYTES = 8 << 20
# TaskEntry.error of a task whose function raised, and of one that was given up.
RAISED = "raised"
CANCELLED = "cancelled"
_SETTERS = ("tag", "category", "retries", "cores", "memory", "disk", "gpus", "priority", "time_max", "time_end")


class SandboxedTask(SubmittableTask):
    """What tasks with a private directory share: resources, files, environment, limits. A call without one is as any other."""

    command_line = ""
    # It fails if its library cannot be started; others need none of the user's.
    _calls_library = False
    # Result strings that come from here and not from the worker, and why.
    _local_result = ""
    _local_reason = ""
    # Never changed in place: most function calls have none of this, and there are many of them.
    _amounts: Mapping[str, float] = MappingProxyType({})
    _inputs: tuple[tuple[File, str, int], ...] = ()
    _outputs: tuple[tuple[File, str, int], ...] = ()
    _variables: Mapping[str, str | None] = MappingProxyType({})
    # What its outputs stood for before, held until it has ended.
    _replaced: tuple[FileEntry, ...] = ()
    # Outputs that belong here, held until they have come: their files may be undeclared before, or stand for something else.
    _homeward: tuple[tuple[File, FileEntry], ...] = ()
    _time_max_s = 0.0
    _time_end_s = 0.0

    # ------------------------------------------------ resources and limits

    def set_cores(self, count: float) -> None:
        """Cores that it gets, exactly; negative: unspecified."""
        self._set_amount("cores", count)

    def set_memory(self, megabytes: float) -> None:
        """Memory in MB that it gets; negative: unspecified."""
        self._set_amount("memory", megabytes)

    def set_disk(self, megabytes: float) -> None:
        """Disk in MB that it gets; a task that writes more is ended with "sandbox exhaustion". Negative: unspecified."""
        self._set_amount("disk", megabytes)

    def set_gpus(self, count: float) -> None:
        """Gpus that it gets; negative: unspecified."""
        self._set_amount("gpus", count)

    def _set_amount(self, name: str, amount: float) -> None:
        amount = checked_amount(name, amount, -math.inf)
        amounts = {**self._amounts, name: amount}
        if amount < 0:
            del amounts[name]
        self._amounts, self._asks = amounts, True

    def set_time_max(self, seconds: float) -> None:
        """Longest run, parts of a second count; a longer one is ended with "max wall time". 0 and below: no limit.

        Raises:
            UsageError: it is no number of seconds.
        """
        wanted = "a number of seconds, or 0 for no limit"
        self._asks = True
        self._time_max_s = max(0.0, float(checked_number(seconds, "time_max", -math.inf, SECONDS_LIMIT, wanted)))

    def set_time_end(self, microseconds: float) -> None:
        """Absolute end, microseconds since the epoch; later it is ended with "max end time". Below 1: no limit.

        Raises:
            UsageError: it is no number of microseconds.
        """
        wanted = "a number of microseconds since the epoch, or 0 for no limit"
        end = checked_number(microseconds, "time_end", -math.inf, WHOLE_LIMIT, wanted)
        self._asks = True
        self._time_end_s = end / 1e6 if end >= 1 else 0.0

    # ------------------------------------------------ files and environment

    def add_input(self, file: File, remote_name: str, strict_input: bool = False, mount_symlink: bool = False) -> None:
        """Put a file under a relative name into the task's directory. Of two files under one name the last counts.

        Parameters:
            mount_symlink: one symbolic link instead of a copy or hard link; the task must not write into it.

        Raises:
            TypeError, ValueError: no file, or a name that is no relative name.
        """
        if strict_input:
            raise UsageError("strict_input is not supported in this version: inputs are brought to where the task runs")
        flags = messages.SYMLINK if mount_symlink else 0
        self._asks = True
        self._inputs = (*self._inputs, (checked_file(file), checked_name(remote_name), flags))

    def add_output(
        self,
        file: File,
        remote_name: str,
        watch: bool = False,
        failure_only: bool | None = None,
        success_only: bool | None = None,
    ) -> None:
        """Take a file out of the task's directory when it ends.

        Raises:
            TypeError, ValueError: no file that can be an output, a temp that is an output of this task, or a name that is no
                relative name. A temp that another task makes is refused by ``submit``.
        """
        if watch:
            raise UsageError("watch is not supported in this version: outputs come when the task ends")
        flags = (messages.ON_FAILURE if failure_only else 0) | (messages.ON_SUCCESS if success_only else 0)
        if checked_file(file).type() != TEMP:
            flags |= messages.HOME
        elif any(have is file for have, _, _ in self._outputs):
            raise UsageError(f"{file!r} is an output of this task already: declare a temp for each")
        self._asks = True
        self._outputs = (*self._outputs, (file, checked_name(remote_name), flags))

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """Set a variable of the task's environment; None unsets it."""
        text = None if value is None else checked_text(str(value), f"the environment variable {name}")
        self._asks = True
        self._variables = {**self._variables, checked_variable_name(name): text}

    def _configure(self, options: Mapping[str, Any]) -> None:
        """Keywords of the constructor.

        Raises:
            UsageError: an unknown one, or a value that means nothing. TypeError: inputs, outputs or env that are no dicts.
        """
        for name, value in options.items():
            if name in _SETTERS:
                getattr(self, f"set_{name}")(value)
            elif name in ("inputs", "outputs"):
                add = self.add_input if name == "inputs" else self.add_output
                if not isinstance(value, Mapping):
                    raise TypeError(f"{name} is a dict of File to name, not {type(value).__name__}")
                for file, where in value.items():
                    if isinstance(where, Mapping):
                        add(file, **where)
                    else:
                        add(file, where)
            elif name == "env":
                if not isinstance(value, Mapping):
                    raise TypeError(f"env is a dict of name to value, not {type(value).__name__}")
                for variable, text in value.items():
                    self.set_env_var(variable, text)
            else:
                raise UsageError(
                    f"{type(self).__name__} has no option {name!r}; it takes {', '.join((*_SETTERS, 'inputs', 'outputs', 'env'))}"
                )

    # ------------------------------------------------ submission

    def _check_files(self, engine: Engine) -> None:
        super()._check_files(engine)
        for file, _, _ in (*self._inputs, *self._outputs):
            check_owner(file, engine)
        for file, path, _ in self._outputs:
            if file.type() == TEMP and _is_made_elsewhere(file.entry.producer, self._entry):
                raise UsageError(f"another task makes the temp for {path!r}, {file!r}: declare one for each task")
            if file.type() == TEMP and file.entry.producer is None and any(read is file for read, _, _ in self._inputs):
                raise UsageError(f"the temp for {path!r} is an input of the task that is to make it, too: declare one for each")

    def _request(self) -> Resources:
        return Resources(**self._amounts)

    def _sandbox(self) -> messages.Sandbox:
        """What the slot must know; sources and names are filled in when the task is placed."""
        programs = messages.EXECUTABLE
        box = messages.Sandbox(
            mounts=[
                messages.Mount("", name, flags | (programs if file.is_program() else 0)) for file, name, flags in self._inputs
            ],
            products=[messages.Product(name, "", flags) for _, name, flags in self._outputs],
            environment=list(self._variables.items()),
            command=self.command_line,
            wall_time_s=self._time_max_s,
            end_at_s=self._time_end_s,
            disk_mb=int(self._amounts.get("disk", 0)),
        )
        if (size := messages.sandbox_bytes(box)) > DESCRIPTION_LIMIT_BYTES:
            raise UsageError(
                f"the command, variables and file names of this task take {size:,} bytes, more than {DESCRIPTION_LIMIT_BYTES:,}: "
                "put what is long into a file and add that as an input"
            )
        return box

    def _dress(self, engine: Engine, entry: TaskEntry) -> None:
        """Give the entry its sandbox, what is mounted in it, and the files that come out."""
        self._local_result = ""
        entry.sandbox = self._sandbox()
        try:
            entry.inputs += tuple(file.mount_entry() for file, _, _ in self._inputs)
        except InputMissing as error:
            entry.error = error
        products, homeward = [], []
        for file, _, flags in self._outputs:
            product = file.entry if file.type() == TEMP and file.entry.producer is None else engine.new_temp()
            product.producer = entry
            product.holds = 1
            # Of a task that cannot run too: whoever reads it gets its error. What was there before may be an input of this task.
            self._replaced = (*self._replaced, *file.made_by(product))
            products.append(product)
            if flags & messages.HOME:
                product.holds += 1
                homeward.append((file, product))
        entry.products, self._homeward = tuple(products), tuple(homeward)

    # ------------------------------------------------ outcome

    def settled(self, entry: TaskEntry) -> Any:
        """The outcome is there; outputs that belong here are brought first (loop's thread)."""
        if entry.sandbox is None:
            return super().settled(entry)
        assert self._manager is not None
        engine = self._manager.engine
        homeward, self._homeward = self._homeward, ()
        wanted = [(file, product) for file, product in homeward if product.is_available() and file.expects(product)]
        unneeded = [*self._replaced, *(product for _, product in homeward)]
        self._replaced = ()
        if wanted:
            entry.handle = None
            _Homecoming(engine, self, entry, wanted, unneeded).start()
            return None
        if unneeded:
            engine.release(unneeded)
        return super().settled(entry)

    def _arrived(self, entry: TaskEntry, error: str) -> None:
        """Everything is here, or could not be stored (loop's thread)."""
        if error:
            self._local_result, self._local_reason = "output transfer error", f"an output could not be stored: {error}"
        manager = super().settled(entry)
        if manager is not None:
            manager.flush()

    @property
    def result(self) -> str:
        """How it ended: one of the result strings of the reference."""
        entry = self._entry
        if entry is None or entry.sandbox is None or not self._finished:
            return super().result
        if isinstance(entry.error, InputMissing):
            return "input missing"
        if self._local_result:
            return self._local_result
        report = entry.report
        is_of_input = isinstance(entry.error, LibraryFailed) and not self._calls_library
        if report is None and (is_of_input or entry.error == RAISED or isinstance(entry.error, FileLost)):
            return "input missing"  # the task that was to make an input failed
        if entry.error not in (None, RAISED) or report is None:
            return super().result
        if report.outcome:
            return report.outcome
        return "output missing" if report.missing else "success"

    @property
    def exit_code(self) -> int:
        """Of the command or process (a signal's number if one killed it); -1 when it never ran to an end."""
        entry = self._entry
        if entry is None or entry.sandbox is None:
            return super().exit_code
        if not self._finished or entry.report is None:
            return -1
        return entry.report.exit_code if entry.error in (None, RAISED) else -1

    def successful(self) -> bool:
        """Whether the result is "success" and the exit code 0."""
        if self._entry is None or self._entry.sandbox is None:
            return super().successful()
        return self.result == "success" and self.exit_code == 0

    @property
    def std_output(self) -> str | None:
        """Standard output and standard error, merged, with the traceback of a function that raised; None when it never ran."""
        entry = self._entry
        if entry is None or entry.sandbox is None:
            return super().std_output
        if not self._finished or entry.report is None or entry.error == CANCELLED:
            return None
        text = entry.report.stdout.decode("utf-8", "surrogateescape")
        if entry.report.stdout_cut:
            text += "\n[the rest of the output is cut]\n"
        return text + (super().std_output or "")

    @property
    def reason(self) -> str:
        """Why it did not succeed, for people: which file, which limit, which error; empty when it did, or is not done."""
        entry = self._entry
        if entry is None or not self._finished or entry.error is not None or entry.report is None:
            return super().reason
        report = entry.report
        if self._local_reason:
            return self._local_reason
        if report.reason:
            return report.reason
        if report.outcome:
            limits = {
                "max wall time": f" of {self._time_max_s:g} s",
                "max end time": f": {_when(self._time_end_s)} (set_time_end takes microseconds since the epoch)",
                "sandbox exhaustion": f": it wrote {report.disk_mb} MB",
            }
            return f"it was ended by its limit {report.outcome!r}{limits.get(report.outcome, '')}"
        if report.missing:
            return f"it did not make its output{'s' if len(report.missing) > 1 else ''} {', '.join(report.missing)}"
        return f"it ended with exit code {report.exit_code}" if report.exit_code else ""

    @property
    def resources_requested(self) -> SimpleNamespace:
        """What was asked for; -1 where nothing was."""
        return SimpleNamespace(**{name: self._amounts.get(name, -1) for name in ("cores", "memory", "disk", "gpus")})

    @property
    def resources_measured(self) -> SimpleNamespace:
        """wall_time in seconds, start and end since the epoch, disk in MB; -1 where nothing was measured."""
        report = self._entry.report if self._entry is not None and self._finished else None
        if report is None:
            return SimpleNamespace(wall_time=-1, start=-1, end=-1, disk=-1)
        took = report.ended_s - report.started_s
        return SimpleNamespace(wall_time=took, start=report.started_s, end=report.ended_s, disk=report.disk_mb)


class _Homecoming:
    """Outputs of one task on their way to where they belong: local paths, or buffers in memory."""

    def __init__(
        self,
        engine: Engine,
        task: SandboxedTask,
        entry: TaskEntry,
        wanted: list[tuple[File, FileEntry]],
        unneeded: list[FileEntry],
    ) -> None:
        self.engine = engine
        self.task = task
        self.entry = entry
        self.wanted = wanted
        # Let go of when all is here.
        self.unneeded = unneeded
        self.error = ""

    def start(self) -> None:
        """Bring them in a thread of its own: files may be large, and the loop must not wait (loop's thread)."""
        threading.Thread(target=self._bring, name="vine-outputs", daemon=True).start()

    def _bring(self) -> None:
        engine = self.engine
        for file, product in self.wanted:
            try:
                data = product.data
                file.take_content(engine.read_raw(product) if data is None else data)
            except Exception as error:
                # Whatever it is: the task must come back.
                self.error = f"{type(error).__name__}: {error}"
        engine.release(self.unneeded)
        try:
            engine.post(lambda: self.task._arrived(self.entry, self.error))
        except LoopDied:
            pass  # everything that waits has been told


def _is_made_elsewhere(producer: TaskEntry | None, own: TaskEntry | None) -> bool:
    """Whether a temp has a maker that did not fail, other than the last run of the task that is to make it."""
    if producer is None or producer is own or producer.error is not None:
        return False
    report = producer.report
    return report is None or not (report.outcome or report.missing or report.exit_code)


class Task(SandboxedTask):
    """A shell command line, run by ``/bin/sh -c`` in a private directory.

    Parameters:
        command: the command line.
        options: tag, category, retries, cores, memory, disk, gpus, priority, time_max, time_end, inputs, outputs, env.

    A command that fails comes back with its exit code: ``retries`` is for functions that raise, and does nothing here, as in
    TaskVine.
    """

    def __init__(self, command: str, **options: Any) -> None:
        if not isinstance(command, str):
            raise TypeError(
                f"a command is a str, not {type(command).__name__} (options go as keywords: Task(command, **options))"
            )
        self.command_line = _checked_command(command)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._configure(options)

    def set_command(self, command: str) -> None:
        """Replace the command line.

        Raises:
            UsageError: no text, or none in it.
        """
        self.command_line = _checked_command(command)

    @property
    def command(self) -> str:
        """The command line."""
        return self.command_line

    @property
    def output(self) -> Any:
        """Standard output and standard error, merged; None before the task is done."""
        return self.std_output

    def _prepare(self, engine: Engine, libraries: dict[str, InstalledLibrary]) -> tuple[CodeEntry, Kind]:
        return engine.process_code(None, self._request())


class PythonTask(SandboxedTask, TempOutput):
    """A Python function, run in a process and a private directory of its own.

    Parameters:
        function: what to run; it and its arguments travel pickled.
        args, kwargs: its arguments; buffers stand for their content, values of calls (temps) and other tasks' ``output_file`` for
            their value.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(function):
            raise TypeError(f"PythonTask takes a function, not {function!r}")
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self._raw_result = False

    def disable_output_serialization(self) -> None:
        """The function returns bytes, which are the output as they are."""
        self._raw_result = True

    def set_output_cache(self, cache: bool | str = False) -> None:
        """Accepted for compatibility: results stay where they are as long as somebody holds the task."""

    @property
    def output(self) -> Any:
        """The value; the exception object when there is none.

        Raises:
            UsageError: the value was left in the cluster.
        """
        if self._temp_output and self.successful():
            raise UsageError(
                "the value was left in the cluster: use fetch_file(task.output_file), or add it as an input of another task"
            )
        if self._finished and self._entry is not None and self._entry.error is None:
            if self.result != "success":
                return TaskFailed(f"the task ended with the result {self.result!r}")
            if self._raw_result:
                return self._raw_output(self._entry)
        return super().output

    def _raw_output(self, entry: TaskEntry) -> bytes:
        if entry.value is not None:
            return entry.value
        home = self._brought(entry)
        if home is not None:
            return bytes(home)
        assert entry.output is not None and self._manager is not None
        return self._manager.engine.read_raw(entry.output)

    @property
    def command(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", repr(self.function))

    def _sandbox(self) -> messages.Sandbox:
        spec = super()._sandbox()
        spec.raw_result = self._raw_result
        spec.plain_pickle = True
        return spec

    def _prepare(self, engine: Engine, libraries: dict[str, InstalledLibrary]) -> tuple[CodeEntry, Kind]:
        return engine.process_code(self.function, self._request())


def _checked_command(command: Any) -> str:
    if not checked_text(command, "a command").strip():
        raise UsageError(f"a command is not empty, unlike {command!r}: give the text that /bin/sh is to run")
    return str(command)


def checked_file(file: Any) -> File:
    """A File.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(file, File):
        raise TypeError(f"this takes a File made by a declare_ method, not {type(file).__name__}")
    return file


__all__ = ["BUFFER", "FILE", "PythonTask", "SandboxedTask", "Task"]


def _when(epoch_s: float) -> str:
    """A moment in the calendar, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch_s))

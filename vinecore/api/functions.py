"""Function calls as users hold them: a function of an installed library, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vinecore.api.commands import SandboxedTask
from vinecore.api.files import TEMP, File
from vinecore.api.libraries import LibraryTask, code_of_program
from vinecore.api.numbers import shown
from vinecore.api.tasks import InstalledLibrary, TempOutput
from vinecore.errors import TaskFailed, UsageError
from vinecore.runtime.functions import name_of

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import CodeEntry, Kind, TaskEntry


class FunctionCall(SandboxedTask, TempOutput):
    """Call a function of a library by name.

    A call with files, limits of time or disk, or variables of its own gets a private directory; the library must be one in fork
    mode. Cores, memory and gpus that it asks for are kept free for it, whatever the mode; without a request it takes a slot only.

    Parameters:
        library: name of the library, or the LibraryTask.
        fn: name of the function in it.
        args, kwargs: its arguments. Files stand for their content, other calls' ``output_file`` for their value.

    Raises:
        UsageError: no library, or no name of a function.
    """

    _calls_library = True
    _exec_method = ""

    def __init__(self, library: str | LibraryTask, fn: str, *args: Any, **kwargs: Any) -> None:
        if callable(library):
            name = name_of(library)
            raise UsageError(
                f"FunctionCall takes the name of a library first, then that of a function in it, not the function {name}: "
                f"write FunctionCall(library, {name!r}, ...), or PythonTask({name}, ...) without a library"
            )
        if not isinstance(library, str | LibraryTask):
            raise UsageError(f"FunctionCall takes the name of a library, or a LibraryTask, not {shown(library)}")
        if not isinstance(fn, str):
            wanted = repr(getattr(fn, "__name__", name_of(fn))) if callable(fn) else "a str"
            raise UsageError(f"FunctionCall takes the name of a function in the library: {wanted}, not {shown(fn)}")
        self.library = library if isinstance(library, str) else library.name
        self.function = fn
        self.args = args
        self.kwargs = kwargs

    def set_fn_args(self, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> None:
        """Replace the arguments, before submit.

        Raises:
            UsageError: they are no sequence, or the named ones no dict.
        """
        if isinstance(args, str | bytes | bytearray) or not isinstance(args, Iterable):
            raise UsageError(f"set_fn_args takes a list of arguments, not {shown(args)}: write [{shown(args)}] for a single one")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise UsageError(f"set_fn_args takes the named arguments as a dict, not {shown(kwargs)}")
        self.args, self.kwargs = tuple(args), dict(kwargs or {})

    def set_exec_method(self, mode: str) -> None:
        """Say how this call has to run, "fork" or "direct": submit refuses it when its library runs calls otherwise.

        Raises:
            UsageError: another word.
        """
        if mode not in ("fork", "direct"):
            raise UsageError(f"an exec method is 'fork' or 'direct', not {mode!r}")
        self._exec_method, self._asks = mode, True

    def set_output(self, file: File) -> None:
        """Put the value into this temp.

        Raises:
            UsageError: it is no temp, or another call makes it.
        """
        if not isinstance(file, File) or file.type() != TEMP:
            raise UsageError("set_output takes a temp, made by declare_temp")
        if file.entry.producer is not None:
            raise UsageError("another call makes this temp: declare one for each")
        self._result_file, self._temp_output = file, True

    @property
    def output(self) -> Any:
        """The value; the exception object if the function raised; None before the call is done.

        Raises:
            UsageError: the value is a temp: fetch it through ``output_file``.
        """
        if self._temp_output and self.successful():
            raise UsageError("the value was left in the cluster: use fetch_file(call.output_file) or pass it to another call")
        entry = self._entry
        if (
            entry is not None
            and entry.sandbox is not None
            and self._finished
            and entry.error is None
            and self.result != "success"
        ):
            return TaskFailed(f"the call ended with the result {self.result!r}: {self.reason}")
        return super().output

    @property
    def command(self) -> str:
        """The function's name."""
        return self.function

    def _prepare(self, engine: Engine, libraries: dict[str, InstalledLibrary]) -> tuple[CodeEntry, Kind]:
        library = libraries.get(self.library)
        if library is None:
            have = ", ".join(sorted(libraries)) or "none is installed"
            raise UsageError(f"invalid library name {self.library!r} (installed: {have})")
        if self._asks:
            self._check_mode(library.task)
        found = library.codes.get(self.function)
        if found is None and library.task.program:
            found = code_of_program(engine, library, self.function)
        if found is None:
            raise UsageError(f"library {self.library!r} has no function {self.function!r}; it has: {', '.join(library.codes)}")
        return self._asking(engine, library, found) if self._asks else found

    def _wants_directory(self) -> bool:
        return bool(
            self._inputs or self._outputs or self._variables or self._time_max_s or self._time_end_s or "disk" in self._amounts
        )

    def _check_mode(self, task: LibraryTask) -> None:
        """Refuse what this library cannot do.

        Raises:
            UsageError: it runs calls otherwise, or a private directory needs a process of its own.
        """
        name, mode = task.name, task.exec_mode
        if self._exec_method not in ("", mode):
            raise UsageError(
                f"this call has to run in {self._exec_method!r} mode, and library {name!r} runs calls in {mode!r} mode"
            )
        if not self._wants_directory():
            return
        what = "a call with files, variables, or limits of time or disk needs a process of its own"
        if task.program:
            raise UsageError(f"{what}, and library {task.name!r} is a program: pass what it needs as arguments")
        if task.exec_mode != "fork":
            raise UsageError(
                f"{what}, and library {task.name!r} runs calls in its slots: create it with exec_mode='fork', or use a PythonTask"
            )

    def _asking(self, engine: Engine, library: InstalledLibrary, found: tuple[CodeEntry, Kind]) -> tuple[CodeEntry, Kind]:
        """The same function, with the request of this call."""
        if not self._amounts:
            return found
        return found[0], engine.kind_for(self.function, engine.shape_for(library.entry, self._request()))

    def _dress(self, engine: Engine, entry: TaskEntry) -> None:
        if self._asks and self._wants_directory():
            super()._dress(engine, entry)

"""Function calls as users hold them: a function of an installed library, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vinecore.api.files import TEMP, File
from vinecore.api.libraries import LibraryTask, code_of_program
from vinecore.api.tasks import InstalledLibrary, TempOutput
from vinecore.errors import UsageError

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.state import CodeEntry, Kind


class FunctionCall(TempOutput):
    """Call a function of a library by name.

    Parameters:
        library: name of the library, or the LibraryTask.
        fn: name of the function in it.
        args, kwargs: its arguments. Files stand for their content, other calls' ``output_file`` for their value.
    """

    def __init__(self, library: str | LibraryTask, fn: str, *args: Any, **kwargs: Any) -> None:
        self.library = library if isinstance(library, str) else library.name
        self.function = fn
        self.args = args
        self.kwargs = kwargs

    def set_fn_args(self, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> None:
        """Replace the arguments, before submit."""
        self.args, self.kwargs = tuple(args), dict(kwargs or {})

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
        return super().output

    @property
    def command(self) -> str:
        """The function's name."""
        return self.function

    def _prepare(self, engine: Engine, libraries: dict[str, InstalledLibrary]) -> tuple[CodeEntry, Kind]:
        library = libraries.get(self.library)
        if library is not None and library.task.program:
            return code_of_program(engine, library, self.function)
        if library is None:
            have = ", ".join(sorted(libraries)) or "none is installed"
            raise UsageError(f"invalid library name {self.library!r} (installed: {have})")
        found = library.codes.get(self.function)
        if found is None:
            raise UsageError(f"library {self.library!r} has no function {self.function!r}; it has: {', '.join(library.codes)}")
        return found

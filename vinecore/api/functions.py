"""Libraries and function calls as users hold them, and the methods of a manager that install libraries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vinecore.api.files import TEMP, File
from vinecore.api.tasks import InstalledLibrary, TempOutput
from vinecore.errors import UnpicklableError, UsageError
from vinecore.runtime import payload as payloads
from vinecore.runtime.functions import modules_of, name_of

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.state import CodeEntry, Kind

EXEC_MODES = ("fork", "direct")


class LibraryTask:
    """A library that was described and not yet installed; made by ``create_library_from_functions``."""

    def __init__(self, name: str, functions: dict[str, Callable[..., Any]], exec_mode: str) -> None:
        self.name = name
        self.functions = functions
        self.exec_mode = exec_mode
        self.modules: tuple[str, ...] = ()
        # Those that the user named: a library whose worker lacks one does not start.
        self.required: tuple[str, ...] = ()
        self.context: Sequence[Any] | None = None
        self.slots = 0
        self.cores = 0
        self.installed = False

    def set_function_slots(self, count: int) -> None:
        """Calls that run at the same time in one instance.

        Raises:
            UsageError: below 1, or the library is installed.
        """
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: set its slots before")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"function slots must be a whole number >= 1, not {count!r}")
        self.slots = count

    def set_cores(self, count: int) -> None:
        """Cores of one instance; in fork mode also its slots, unless ``set_function_slots`` says more."""
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: set its cores before")
        self.cores = int(count)

    def set_function_exec_mode_from_string(self, mode: str) -> None:
        """ "direct" or "fork".

        Raises:
            UsageError: another mode.
        """
        self.exec_mode = checked_mode(mode)

    def slot_count(self) -> int:
        """Slots of an instance; 0 stands for the cores of its worker."""
        if self.slots:
            return self.slots
        # In direct mode state is kept between calls, which means what it says with one slot only.
        return 1 if self.exec_mode == "direct" else self.cores


def checked_mode(mode: str) -> str:
    """An execution mode.

    Raises:
        UsageError: it is none.
    """
    if mode not in EXEC_MODES:
        raise UsageError(f"exec_mode must be 'fork' or 'direct', not {mode!r}")
    return mode


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
        if library is None:
            have = ", ".join(sorted(libraries)) or "none is installed"
            raise UsageError(f"invalid library name {self.library!r} (installed: {have})")
        found = library.codes.get(self.function)
        if found is None:
            raise UsageError(f"library {self.library!r} has no function {self.function!r}; it has: {', '.join(library.codes)}")
        return found


class LibraryMethods:
    """The part of a manager that deals with libraries."""

    engine: Engine
    _libraries: dict[str, InstalledLibrary]
    _library_lock: threading.Lock

    def create_library_from_functions(
        self,
        library_name: str,
        *function_list: Callable[..., Any],
        exec_mode: str = "fork",
        hoisting_modules: Sequence[Any] | None = None,
        library_context_info: Sequence[Any] | None = None,
        **options: Any,
    ) -> LibraryTask:
        """Describe a library: functions, and what is prepared once per worker before its calls.

        Parameters:
            exec_mode: "fork" (a child for each call; state changes are lost) or "direct" (in the library's own processes).
            hoisting_modules: modules (or their names), functions and classes whose modules are imported before any call.
            library_context_info: [function, list of arguments, dict of keyword arguments]; called once, it returns a dict whose
                items
                ``load_variable_from_library(name)`` reads.
            options: poncho_env, add_env, init_command: only the values that ask for nothing are taken in this version.

        Raises:
            UsageError: no function, two of one name, a bad mode, list or option.
        """
        if not isinstance(library_name, str) or not library_name:
            raise UsageError(f"a library needs a name, not {library_name!r}")
        if not function_list:
            raise UsageError(f"library {library_name!r} needs at least one function")
        functions: dict[str, Callable[..., Any]] = {}
        for function in function_list:
            if not callable(function):
                raise UsageError(f"library {library_name!r} takes functions, not {function!r}")
            name = getattr(function, "__name__", name_of(function))
            if name in functions:
                raise UsageError(f"library {library_name!r} has two functions named {name!r}")
            functions[name] = function
        for name, value in options.items():
            if name not in ("poncho_env", "add_env", "init_command"):
                raise UsageError(f"create_library_from_functions has no option {name!r}")
            if name != "add_env" and value:
                raise UsageError(f"{name}={value!r} is not supported in this version: calls use the worker's own Python")
        task = LibraryTask(library_name, functions, checked_mode(exec_mode))
        task.modules = task.required = _hoisted(hoisting_modules)
        task.context = _checked_context(library_context_info)
        return task

    def install_library(self, task: LibraryTask) -> None:
        """Make a library's functions callable; instances start on workers when calls come.

        Raises:
            TypeError: not a LibraryTask. UsageError: one of that name is installed. UnpicklableError: a function cannot be sent.
        """
        if not isinstance(task, LibraryTask):
            raise TypeError(
                f"install_library takes a LibraryTask (from create_library_from_functions), not {type(task).__name__}"
            )
        engine = self.engine
        with self._library_lock:
            if task.name in self._libraries:
                raise UsageError(f"a library named {task.name!r} is installed: remove it first, or choose another name")
            entry = engine.new_library(task.name, slots=task.slot_count(), exec_mode=task.exec_mode)
            shape = engine.shape_for(entry, NO_REQUEST)
            codes = {}
            for name in task.functions:
                code = engine.new_code(entry, b"")
                codes[name] = (code, engine.kind_for(name, shape))
            modules = dict.fromkeys(task.modules)
            for function in task.functions.values():
                modules.update(dict.fromkeys(modules_of(function)))
            entry.modules = tuple(modules)
            body = _library_payload(task, {name: code.code_id for name, (code, _) in codes.items()})
            if len(body) > INLINE_LIMIT_BYTES:
                entry.file = engine.new_file([body], len(body))
                entry.file.holds = 1
            else:
                entry.payload = body
            task.installed = True
            self._libraries[task.name] = InstalledLibrary(entry, codes, task)
        engine.install(entry)

    def remove_library(self, name: str) -> None:
        """End a library's instances; its waiting calls come back with the result "missing library".

        Raises:
            KeyError: there is none of that name.
        """
        with self._library_lock:
            if name not in self._libraries:
                raise KeyError(f"no library named {name!r} is installed")
            library = self._libraries.pop(name)
            library.task.installed = False
        from vinecore.manager.events import LibraryRemoved

        self.engine.post(LibraryRemoved(0.0, library.entry))

    def check_library_exists(self, name: str) -> bool:
        """Whether a library of that name is installed.

        Raises:
            TypeError: the name is no str.
        """
        if not isinstance(name, str):
            raise TypeError(f"a library's name is a str, not {type(name).__name__}")
        return name in self._libraries


def _hoisted(hoisting: Sequence[Any] | None) -> tuple[str, ...]:
    if hoisting is None:
        return ()
    if not isinstance(hoisting, list | tuple):
        raise UsageError(f"hoisting_modules must be a list, not {hoisting!r}")
    names: dict[str, None] = {}
    for item in hoisting:
        if isinstance(item, str):
            names[item] = None
        elif isinstance(item, ModuleType):
            names[item.__name__] = None
        elif callable(item):
            names.update(dict.fromkeys(modules_of(item)))
        else:
            raise UsageError(f"hoisting_modules takes modules, their names, functions and classes, not {item!r}")
    names.pop("__main__", None)
    return tuple(names)


def _checked_context(info: Sequence[Any] | None) -> Sequence[Any] | None:
    if info is None:
        return None
    what = "library_context_info is [context_function, list of arguments, dict of keyword arguments]"
    if not isinstance(info, list | tuple) or not 1 <= len(info) <= 3 or not callable(info[0]):
        raise UsageError(f"{what}, not {info!r}")
    args = info[1] if len(info) > 1 and info[1] is not None else []
    kwargs = info[2] if len(info) > 2 and info[2] is not None else {}
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise UsageError(f"{what}: the arguments are {args!r} and {kwargs!r}")
    return [info[0], list(args), dict(kwargs)]


def _library_payload(task: LibraryTask, code_ids: dict[str, int]) -> bytes:
    """What the library's parent unpickles: functions by code id, and how to make the context."""
    payloads.register_local_modules()
    functions = {code_ids[name]: function for name, function in task.functions.items()}
    context, args, kwargs = task.context or (None, [], {})
    try:
        return payloads.dump((task.required, payloads.dump((functions, context, args, kwargs))))
    except Exception as error:
        for name, function in task.functions.items():
            if payloads.failure_of(function) is not None:
                where, text = payloads.find_culprit(function, error)
                raise UnpicklableError(f"function {name} of library {task.name!r} cannot be pickled{where}: {text}") from error
        where, text = payloads.find_culprit((context, args, kwargs), error)
        raise UnpicklableError(f"the context of library {task.name!r} cannot be pickled{where}: {text}") from error


from vinecore.manager.state import NO_REQUEST  # noqa: E402
from vinecore.wire.messages import INLINE_LIMIT_BYTES  # noqa: E402

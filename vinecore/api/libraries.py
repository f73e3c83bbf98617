"""Libraries as users describe them, and the methods of a manager that make, install and remove them."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vinecore.api.commands import DESCRIPTION_LIMIT_BYTES
from vinecore.api.files import FILE, TEMP, File, check_owner, checked_name
from vinecore.api.numbers import CORES_LIMIT, WHOLE_LIMIT, checked_number, checked_whole, shown
from vinecore.api.tasks import InstalledLibrary
from vinecore.api.texts import checked_text
from vinecore.errors import UnpicklableError, UsageError
from vinecore.manager.entries import NO_REQUEST, LibrarySetup
from vinecore.runtime import captures
from vinecore.runtime import payload as payloads
from vinecore.runtime.functions import name_of
from vinecore.runtime.module_search import NAME_LIMIT_CHARACTERS, modules_of
from vinecore.wire.messages import EXECUTABLE, INLINE_LIMIT_BYTES, SANDBOX_NAME_BYTES, text_bytes

if TYPE_CHECKING:
    from vinecore.api.engine import Engine
    from vinecore.manager.entries import CodeEntry, FileEntry, Kind

EXEC_MODES = ("fork", "direct")
# What runs a Python program on a worker, for its shell.
INTERPRETER = '"$VINE_PYTHON" '
# Of a program's function. Its name goes to the program in one line with two paths, for which many have a buffer of 4096 bytes.
_NAME_BYTES = 1000
# Of create_library_from_functions; the last two take only what asks for nothing.
LIBRARY_OPTIONS = ("exec_mode", "hoisting_modules", "library_context_info", "init_command", "poncho_env", "add_env")


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
        # Run before the interpreter of an instance; how a program that answers the calls is started, instead of functions.
        self.init_command = ""
        self.program = ""
        self.program_path = ""
        self.max_calls = 0
        self._inputs: list[tuple[File, str]] = []

    def set_function_slots(self, count: int) -> None:
        """Calls that run at the same time in one instance.

        Raises:
            UsageError: below 1, or the library is installed.
        """
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: set its slots before")
        self.slots = checked_whole(count, "function slots", 1, CORES_LIMIT, "a whole number >= 1")

    def set_cores(self, count: int) -> None:
        """Cores of one instance; in fork mode also its slots, unless ``set_function_slots`` says more."""
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: set its cores before")
        self.cores = max(0, int(checked_number(count, f"the cores of library {self.name!r}", -CORES_LIMIT, CORES_LIMIT)))

    def set_function_exec_mode_from_string(self, mode: str) -> None:
        """ "direct" or "fork".

        Raises:
            UsageError: another mode.
        """
        self.exec_mode = checked_mode(mode)

    def set_max_calls_per_slot(self, count: int) -> None:
        """Replace a slot's process by a fresh one after so many calls; state that calls keep in it ends with it. For direct mode.

        Raises:
            UsageError: below 1, or the library is installed.
        """
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: set this before")
        self.max_calls = checked_whole(count, "calls per slot", 1, WHOLE_LIMIT, "a whole number >= 1")

    def add_input(self, file: File, remote_name: str) -> None:
        """Put a local file or a buffer under a relative name into the directory where instances of this library run.

        Its context function, its calls and its init command find it there, and calls with a private directory a link to it in
        that. It must not be written to.

        Raises:
            TypeError, ValueError: no file, a temp, or a name that is no relative name. UsageError: the library is installed, or
                its program has that name.
        """
        if self.installed:
            raise UsageError(f"library {self.name!r} is installed: add its inputs before")
        if not isinstance(file, File):
            raise TypeError(f"an input is a File made by a declare_ method, not {type(file).__name__}")
        if file.type() == TEMP:
            raise UsageError("a temp cannot be an input of a library: pass it to the calls")
        name = checked_name(remote_name)
        if self.program and os.path.normpath(name) == os.path.basename(self.program_path):
            raise UsageError(f"{name!r} is the name of the program of library {self.name!r}: give this input another one")
        self._inputs.append((file, name))

    def mounts(self, engine: Engine) -> tuple[tuple[FileEntry, str, int], ...]:
        """Its files as the core of this engine knows them.

        Raises:
            UsageError: one does not exist, is a directory, or belongs to another manager.
        """
        for file, _ in self._inputs:
            check_owner(file, engine)
        return tuple((file.mount_entry(), path, EXECUTABLE if file.is_program() else 0) for file, path in self._inputs)

    def slot_count(self) -> int:
        """Slots of an instance; 0 stands for the cores of its worker."""
        if self.slots:
            return self.slots
        # In direct mode state is kept between calls, which means what it says with one slot only.
        return 1 if self.exec_mode == "direct" else self.cores


def _check_executable(path: str) -> None:
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} is not executable: run  chmod +x {path}")


def checked_mode(mode: str) -> str:
    """An execution mode.

    Raises:
        UsageError: it is none.
    """
    if mode not in EXEC_MODES:
        raise UsageError(f"exec_mode must be 'fork' or 'direct', not {mode!r}")
    return mode


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
        init_command: str | None = None,
        **options: Any,
    ) -> LibraryTask:
        """Describe a library: functions, and what is prepared once per worker before its calls.

        Parameters:
            exec_mode: "fork" (a child for each call; state changes are lost) or "direct" (in the library's own processes).
            hoisting_modules: modules (or their names), functions and classes whose modules are imported before any call.
            library_context_info: [function, list of arguments, dict of keyword arguments]; called once, it returns a dict whose
                items
                ``load_variable_from_library(name)`` reads.
            init_command: shell text put in front of the interpreter's command line, so it usually ends with ``&&`` or names a
                wrapper. The interpreter is then the first ``python3`` in PATH (the worker's own unless the text changes that),
                and this package must be importable there.
            options: poncho_env, add_env: only the values that ask for nothing are taken in this version.

        Raises:
            UsageError: no function, two of one name, a bad mode, list or option.
        """
        _check_name(library_name)
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
            if name not in ("poncho_env", "add_env"):
                import difflib  # late: rarely needed, and slow to import

                close = difflib.get_close_matches(name, LIBRARY_OPTIONS, 1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise UsageError(
                    f"create_library_from_functions has no option {name!r}{hint} It takes: {', '.join(LIBRARY_OPTIONS)}"
                )
            if name != "add_env" and value:
                raise UsageError(f"{name}={value!r} is not supported in this version: calls use the worker's own Python")
        if init_command is not None:
            checked_text(init_command, "init_command")
        task = LibraryTask(library_name, functions, checked_mode(exec_mode))
        task.init_command = init_command or ""
        task.modules = task.required = _hoisted(hoisting_modules)
        task.context = _checked_context(library_context_info)
        return task

    def create_library_from_command(
        self, executable_path: str | os.PathLike[str], name: str, env: File | None = None
    ) -> LibraryTask:
        """Describe a library whose calls are answered by a program that speaks the protocol of libraries (docs/functions.md).

        Parameters:
            executable_path: an executable file; it is sent to the workers.
            name: of the library; the program must say the same. It must also say the execution mode, "fork" unless
                ``set_function_exec_mode_from_string`` changes that.
            env: only None in this version.

        Raises:
            UsageError: no such file, it may not be run, or a bad name or env.
        """
        path = self._program_path(executable_path, name, env)
        _check_executable(path)
        return self._program_library(name, path, "")

    def create_library_from_serverized_files(
        self, library_name: str, library_path: str | os.PathLike[str], env: File | None = None
    ) -> LibraryTask:
        """The same for a Python program, which the worker's interpreter runs.

        Parameters:
            library_name: of the library. library_path: the program. env: only None in this version.

        Raises:
            UsageError: no such file, or a bad name or env.
        """
        path = self._program_path(library_path, library_name, env)
        return self._program_library(library_name, path, INTERPRETER)

    def _program_library(self, name: str, path: str, interpreter: str) -> LibraryTask:
        task = LibraryTask(name, {}, "fork")
        task.add_input(File(self.engine, None, FILE, path=path), os.path.basename(path))
        task.program = interpreter + shlex.quote(f"./{os.path.basename(path)}")
        task.program_path = path
        return task

    def _program_path(self, path: str | os.PathLike[str], name: str, env: File | None) -> str:
        _check_name(name)
        if env is not None:
            raise UsageError("env is not supported in this version: programs run in the worker's environment")
        absolute = os.path.abspath(os.fspath(path))
        if not os.path.isfile(absolute):
            raise UsageError(f"the program {absolute} of library {name!r} is no file")
        checked_text(os.path.basename(absolute), "the program's file name")
        return absolute

    def install_library(self, task: LibraryTask) -> None:
        """Make a library's functions callable; instances start on workers when calls come.

        Raises:
            TypeError: not a LibraryTask. UsageError: one of that name is installed, an input belongs to another manager, what
                describes it is too long to be sent, or its program is not executable any more.
            UnpicklableError: a function cannot be sent.
        """
        if not isinstance(task, LibraryTask):
            raise TypeError(
                f"install_library takes a LibraryTask (from create_library_from_functions), not {type(task).__name__}"
            )
        engine = self.engine
        _check_name(task.name)
        with self._library_lock:
            if task.name in self._libraries:
                raise UsageError(f"a library named {task.name!r} is installed: remove it first, or choose another name")
            modules = dict.fromkeys(task.modules)
            for function in task.functions.values():
                modules.update(dict.fromkeys(modules_of(function)))
            mounts = task.mounts(engine)
            if task.program and not task.program.startswith(INTERPRETER):
                _check_executable(task.program_path)
            setup = LibrarySetup(mounts, task.init_command, task.program, task.max_calls)
            _check_size(task.name, setup, tuple(modules))
            entry = engine.new_library(task.name, slots=task.slot_count(), exec_mode=task.exec_mode, setup=setup)
            shape = engine.shape_for(entry, NO_REQUEST)
            codes = {}
            for name in task.functions:
                code = engine.new_code(entry, b"")
                codes[name] = (code, engine.kind_for(name, shape))
            entry.modules = tuple(modules)
            ids = {name: code.code_id for name, (code, _) in codes.items()}
            body = b"" if task.program else _library_payload(task, ids)
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


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"a library needs a name, not {shown(name)}")
    if len(name) > NAME_LIMIT_CHARACTERS:
        raise UsageError(f"the name of a library has at most {NAME_LIMIT_CHARACTERS} characters, unlike {shown(name)}")
    checked_text(name, "the name of a library")


def _check_size(name: str, setup: LibrarySetup, modules: tuple[str, ...]) -> None:
    """Refuse a library whose description no message takes: one such would end every worker."""
    for module in modules:
        checked_text(module, f"the name of a module that library {name!r} imports")
        if len(module) > NAME_LIMIT_CHARACTERS:
            limit = f"at most {NAME_LIMIT_CHARACTERS} characters, unlike {shown(module)}"
            raise UsageError(f"the name of a module that library {name!r} imports has {limit}")
    size = sum(map(text_bytes, (setup.init_command, setup.program, *modules)))
    size += sum(text_bytes(path) + SANDBOX_NAME_BYTES for _, path, _ in setup.mounts)
    if size > DESCRIPTION_LIMIT_BYTES:
        raise UsageError(
            f"the init_command, file names and modules of library {name!r} take {size:,} bytes, more than "
            f"{DESCRIPTION_LIMIT_BYTES:,}: put what is long into a file and give it to the library with add_input"
        )


def code_of_program(engine: Engine, library: InstalledLibrary, function: str) -> tuple[CodeEntry, Kind]:
    """Which functions a program has, only the program knows: the name itself is the code."""
    found = library.codes.get(function)
    if found is None:
        checked_text(function, "a function's name")
        if not function or function.split() != [function]:
            raise UsageError(f"a function's name has no blanks, unlike {shown(function)}")
        if len(function.encode()) > _NAME_BYTES:
            raise UsageError(f"a function's name has at most {_NAME_BYTES} bytes, unlike {shown(function)}")
        code = engine.new_code(library.entry, function.encode())
        kind = engine.kind_for(function, engine.shape_for(library.entry, NO_REQUEST))
        found = library.codes.setdefault(function, (code, kind))
    return found


def _hoisted(hoisting: Sequence[Any] | None) -> tuple[str, ...]:
    if hoisting is None:
        return ()
    if not isinstance(hoisting, list | tuple):
        raise UsageError(f"hoisting_modules must be a list, not {hoisting!r}")
    names: dict[str, None] = {}
    for item in hoisting:
        if isinstance(item, str):
            names[checked_text(item, "a module of hoisting_modules")] = None
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
    captures.register_local_modules()
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

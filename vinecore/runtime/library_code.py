"""What a library's processes load before their first call, and whether they may be forked afterwards.

A process with threads must not fork: what a thread holds locked stays locked in the child, for ever. Threads that a context or an
imported module starts are therefore counted after loading; the pools that are known to survive a fork are not.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType

from vinecore.runtime import context, error_texts
from vinecore.wire.messages import CONTEXT, FOUND, NAMED, UNPICKLE, Begin

# jemalloc starts one with pyarrow; it handles forks by itself.
_SAFE_NAMES = frozenset({"jemalloc_bg_thd"})
# Names in the text that says why; more say nothing more.
_NAMES_SHOWN = 5
_NAME_CHARACTERS = 100
# Where slots look for the directory of the library's files; its code may have gone to another one.
FILES_VARIABLE = "VINE_LIBRARY_FILES"
# Pauses between looks for threads that are ending; longer: libraries with threads that Python does not know start later.
_PAUSES_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)


def import_quietly(names: Iterable[str]) -> list[str]:
    """Import modules and return those that are there now; what fails here is left to fail in the call, where the user sees it."""
    done = []
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:
            continue
        done.append(name)
    return done


def import_named(name: str, option: str) -> None:
    """Import a module that the user named in an option. Whatever the import raises comes out.

    Raises:
        ModuleNotFoundError: this machine does not have it.
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name and f"{name}.".startswith(f"{error.name}.")):
            raise  # It is there, and imports one that is not.
        raise ModuleNotFoundError(
            f"{option} names the module {name!r}, which a worker on {os.uname().nodename} does not have: install it where "
            f"workers run, or leave it out of {option}",
            name=error.name,
        ) from error


def load_functions(begin: Begin, tell: Callable[[int, str], None] | None = None) -> dict[int, Callable[..., object]]:
    """Unpickle a library's functions by code id, and fill its context. Whatever user code raises comes out.

    Parameters:
        tell: of the library's parent, which is in the directory of its files. It is called with each step (``Loading.step``, and
            the name of what it concerns) before it begins.
    """
    if begin.mounts and tell is not None:
        os.environ[FILES_VARIABLE] = os.getcwd()
    data: bytes = begin.payload
    if begin.payload_path:
        with open(begin.payload_path, "rb") as file:
            data = file.read()
    # (modules that must be there, pickled: code id -> function, context function or None, its args, its kwargs)
    required, body = pickle.loads(data) if data else ((), b"")
    steps = [(NAMED, name) for name in required] + [(FOUND, name) for name in begin.modules if name not in required]
    for step, name in steps:
        if name in sys.modules:
            continue
        if tell is not None:
            tell(step, name)
        if step == NAMED:
            import_named(name, "hoisting_modules")
        else:
            import_quietly([name])
    if not data:
        return {}
    if tell is not None:
        tell(UNPICKLE, "")
    functions, make_context, args, kwargs = pickle.loads(body)
    _bind(required, [*functions.values(), make_context])
    if make_context is not None:
        if tell is not None:
            tell(CONTEXT, error_texts.sendable(_name_of(make_context)))
        context.fill(make_context(*args, **kwargs), begin.name)
    return dict(functions)


def _bind(names: Iterable[str], functions: Iterable[object]) -> None:
    """Functions see the modules that the user named as those of a script do that begins with these import statements."""
    scopes = {id(function.__globals__): function.__globals__ for function in functions if isinstance(function, FunctionType)}
    for name in names:
        top = name.partition(".")[0]
        for scope in scopes.values():
            scope.setdefault(top, sys.modules.get(top))


def _name_of(make_context: object) -> str:
    try:
        return str(getattr(make_context, "__name__", None) or error_texts.type_name_of(type(make_context)))
    except BaseException:
        # It is an object of the user's: the name must not be what the start of its library fails of.
        return error_texts.type_name_of(type(make_context))


def threads_beside() -> list[str]:
    """Names of the threads that forbid a fork: all but the main one and pools known to survive it (arrow, OpenBLAS).

    One look, as children of calls ask too: a thread that was joined just now may still be among them.
    """
    known, others = _look_for_threads()
    return sorted(known + others)


def _look_for_threads() -> tuple[list[str], list[str]]:
    """Names of those of Python's ``threading``, and of those that it does not know (any more)."""
    main = os.getpid()
    tasks = os.listdir("/proc/self/task")
    if len(tasks) == 1:
        return [], []
    # Not at the top: see fork_hooks.
    import threading

    python = {t.native_id: t.name for t in threading.enumerate() if t is not threading.main_thread()}
    known, others = [], []
    for entry in tasks:
        thread_id = int(entry)
        if thread_id == main:
            continue
        if thread_id in python:
            known.append(python[thread_id])
            continue
        name = _comm_of(thread_id)
        # Threads of those pools carry the name of the process.
        if name and name not in _SAFE_NAMES and not (name == _comm_of(main) and _has_known_pools()):
            others.append(name)
    return known, others


def why_unsafe() -> str:
    """Why this process must not fork; empty when it may.

    A thread that Python does not know is one of native code, or was joined just now: the kernel lists it a moment longer. Which
    of these it is shows when it stays.
    """
    known, others = _look_for_threads()
    for pause_s in _PAUSES_S:
        if not others:
            break
        time.sleep(pause_s)
        known, others = _look_for_threads()
    names = sorted(known + others)
    if not names:
        return ""
    # User code names them: a message takes neither 20 MB nor what is no UTF-8.
    shown = ", ".join(_shown(name) for name in names[:_NAMES_SHOWN]) + (" ..." if len(names) > _NAMES_SHOWN else "")
    return f"its context or a module that it imports started {len(names)} thread{'s' if len(names) > 1 else ''} ({shown})"


def _shown(name: str) -> str:
    text = name if len(name) <= _NAME_CHARACTERS else f"{name[:_NAME_CHARACTERS]}..."
    return error_texts.sendable(text)


def _comm_of(thread_id: int) -> str:
    try:
        return Path(f"/proc/self/task/{thread_id}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""  # it has just ended


def _has_known_pools() -> bool:
    if "pyarrow" in sys.modules:
        return True
    # With one thread, as workers set it, OpenBLAS has no pool at all.
    return os.environ.get("OPENBLAS_NUM_THREADS") != "1" and "openblas" in Path("/proc/self/maps").read_text()

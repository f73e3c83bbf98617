"""The engine: manager, workers, files, libraries and function calls. Public names only; importing this is light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vinecore.api.commands import PythonTask, Task
    from vinecore.api.files import File
    from vinecore.api.functions import FunctionCall
    from vinecore.api.libraries import LibraryTask
    from vinecore.api.manager import Manager
    from vinecore.model.resources import Resources
    from vinecore.runtime.context import load_variable_from_library

__all__ = [
    "File",
    "FunctionCall",
    "LibraryTask",
    "Manager",
    "PythonTask",
    "Resources",
    "Task",
    "load_variable_from_library",
]

_HOMES = {
    "File": "vinecore.api.files",
    "FunctionCall": "vinecore.api.functions",
    "LibraryTask": "vinecore.api.libraries",
    "Manager": "vinecore.api.manager",
    "PythonTask": "vinecore.api.commands",
    "Task": "vinecore.api.commands",
    "Resources": "vinecore.model.resources",
    "load_variable_from_library": "vinecore.runtime.context",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vinecore' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

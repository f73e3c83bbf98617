"""The engine: manager, workers, files, libraries and function calls. Public names only; importing this is light."""

from __future__ import annotations

from typing import Any

__all__ = ["File", "FunctionCall", "LibraryTask", "Manager", "load_variable_from_library"]

_HOMES = {
    "File": "vinecore.api.files",
    "FunctionCall": "vinecore.api.functions",
    "LibraryTask": "vinecore.api.functions",
    "Manager": "vinecore.api.manager",
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

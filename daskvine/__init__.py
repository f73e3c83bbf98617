"""Dask graphs and ``concurrent.futures`` calls on the vinecore engine. Importing this imports neither dask nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskvine.futures import FuturesExecutor, VineFuture
    from daskvine.scheduler import DaskVine

__all__ = ["DaskVine", "FuturesExecutor", "VineFuture"]

_HOMES = {
    "DaskVine": "daskvine.scheduler",
    "FuturesExecutor": "daskvine.futures",
    "VineFuture": "daskvine.futures",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'daskvine' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

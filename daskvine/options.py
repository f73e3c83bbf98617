"""The options of ``DaskVine.get``: one frozen object, nothing of it is kept on the manager between calls."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

from vinecore import Resources
from vinecore.errors import UsageError

# Other spellings that TaskVine's users know.
_ALIASES = {"lazy_transfers": "worker_transfers", "hoisting_modules": "lib_modules", "import_modules": "lib_modules"}


@dataclass(frozen=True, slots=True)
class GetOptions:
    """What one ``get`` was asked.

    task_mode: "function-calls", the only mode of this version: vertices run in warm processes of one library.
    worker_transfers (old: lazy_transfers): keep intermediate values on workers; False brings large ones to the manager as they
        are made.
    retries: times a vertex whose function raised is run again; ``dask.annotate(retries=)`` beats it for its keys.
    resources: dict of cores, memory, disk (MB), gpus that every vertex asks for; ``dask.annotate(resources=)`` beats it.
    priority: larger runs earlier.
    reuse: answer from the values of an identical graph computed before by this manager.
    lib_modules (old: hoisting_modules, import_modules): names of modules to import before slots are forked, besides those found.
    progress_disable, progress_label: the progress bar (package rich, only on a terminal).
    """

    task_mode: str = "function-calls"
    worker_transfers: bool = True
    retries: int = 0
    resources: Resources = field(default_factory=Resources)
    priority: float = 0.0
    reuse: bool = True
    lib_modules: tuple[str, ...] = ()
    progress_disable: bool = False
    progress_label: str = "tasks"

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> GetOptions:
        """Check and convert keyword arguments.

        Raises:
            UsageError: an option that does not exist, or a value that it cannot take.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            real = _ALIASES.get(name, name)
            if real not in known:
                raise UsageError(_unknown(name, known))
            _refuse_bad(name, real, value)
            if real == "worker_transfers" and values.get(real) is False:
                continue  # either spelling False means False
            values[real] = value
        return cls(**_checked(values))


def _unknown(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, [*known, *_ALIASES], 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"get has no option {name!r}{hint} It takes: {', '.join(sorted(known))}"


def _refuse_bad(name: str, real: str, value: Any) -> None:
    """Raise a UsageError, with the name as it was spelled, for a value of the wrong kind."""
    if real in ("worker_transfers", "reuse", "progress_disable"):
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, not {value!r}")
    elif real == "priority":
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise UsageError(f"priority must be a number, larger runs earlier, not {value!r}")
    elif real == "progress_label":
        if not isinstance(value, str):
            raise UsageError(f"progress_label must be a str, the words beside the progress bar, not {value!r}")
    elif real == "lib_modules" and value is not None:
        if isinstance(value, str):
            raise UsageError(f"{name} must be a list of modules or of their names: write [{value!r}], not {value!r}")
        if not isinstance(value, list | tuple | set | frozenset):
            raise UsageError(f"{name} must be a list of modules or of their names, such as ['numpy'], not {value!r}")
        for module in value:
            if not isinstance(module, str | ModuleType):
                raise UsageError(f"{name} must be a list of modules or of their names, and {module!r} in it is neither")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    mode = values.get("task_mode", "function-calls")
    if mode != "function-calls":
        raise UsageError(f"task_mode must be 'function-calls' in this version, not {mode!r}")
    retries = values.get("retries", 0)
    values["retries"] = checked_retries(retries)
    resources = values.get("resources")
    if not isinstance(resources, Resources):
        values["resources"] = request_of(resources)
    values["lib_modules"] = tuple(
        module if isinstance(module, str) else module.__name__ for module in values.get("lib_modules") or ()
    )
    return values


def checked_retries(retries: Any) -> int:
    """A number of retries.

    Raises:
        UsageError: it is no whole number >= 0.
    """
    if retries is None:
        return 0
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise UsageError(f"retries must be a whole number >= 0, not {retries!r}")
    return retries


def request_of(resources: Any) -> Resources:
    """Resources that a vertex asks for.

    Raises:
        UsageError: it is no dict of resources.
    """
    if resources is not None and not isinstance(resources, Mapping):
        raise UsageError(f"resources must be a dict such as {{'cores': 1, 'memory': 1000}}, not {resources!r}")
    return Resources.from_mapping({str(name).lower(): amount for name, amount in (resources or {}).items()})

"""The options of ``DaskVine.get``: one frozen object, nothing of it is kept on the manager between calls."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any

from vinecore import Resources
from vinecore.api.files import File
from vinecore.api.numbers import checked_priority, checked_wall_time
from vinecore.api.texts import checked_text, checked_variable_name
from vinecore.errors import UsageError

FUNCTION_CALLS = "function-calls"
TASKS = "tasks"

# Other spellings that TaskVine's users know.
_ALIASES = {"lazy_transfers": "worker_transfers", "hoisting_modules": "lib_modules", "import_modules": "lib_modules"}
# What Dask's own schedulers take and this one does not: what to do instead.
_ELSEWHERE = {
    "num_workers": ": how many tasks run at once is said where workers start, DaskVine(local_cores=N) or vine_worker --cores N",
}
# Options of TaskVine's get that this version does not have: values that ask for nothing, and what to do instead.
_LATER: dict[str, tuple[tuple[Any, ...], str]] = {
    "environment": ((None,), "install what tasks need where the workers run"),
    "env_per_task": ((None, False), "install what tasks need where the workers run"),
    "checkpoint_fn": ((None,), "worker_transfers=False brings every value to the manager"),
    "submit_per_cycle": ((None,), "graphs are handed over whole, and workers get little more than they can run"),
    "max_pending": ((None,), "graphs are handed over whole, and workers get little more than they can run"),
    "verbose": ((None, False), "progress_label names the progress bar"),
    "task_priority_mode": ((None,), "graphs run depth first; priority= and dask.annotate(priority=) beat that"),
    "scheduling_mode": ((None, "files"), "tasks run where their largest inputs are"),
    "lib_extra_functions": ((None,), "functions of the graph bring along what they call"),
    "lib_resources": ((None,), "resources= is for every vertex, and there are as many slots as cores"),
    "lib_command": ((None,), "lib_modules imports modules before the first task"),
    "reconstruct": ((None, False), "write the reduction as a tree, as Dask's collections do"),
    "merge_size": ((None, 2), "write the reduction as a tree, as Dask's collections do"),
    "wrapper": ((None,), "call the wrapper inside the functions of the graph"),
    "wrapper_proc": ((None, print), "call the wrapper inside the functions of the graph"),
    "prune_depth": ((None, 0, 1), "a value is dropped when its last consumer is done"),
}


@dataclass(frozen=True, slots=True)
class VertexInfo:
    """What a function among the values of ``env_vars`` is told of a vertex: its key, and the group of alike ones it is in."""

    key: Hashable
    category: str


EnvironmentValue = str | Callable[[Any, VertexInfo], str] | None


@dataclass(frozen=True, slots=True)
class GetOptions:
    """What one ``get`` was asked.

    task_mode: "function-calls": vertices run in warm processes of one library. "tasks": each in a process and a private directory
        of its own.
    worker_transfers (old: lazy_transfers): keep intermediate values on workers; False brings large ones to the manager as they
        are made.
    retries: times a vertex whose function raised is run again; ``dask.annotate(retries=)`` beats it for its keys.
    resources: dict of cores, memory, disk (MB), gpus that every vertex asks for; ``dask.annotate(resources=)`` beats it. With
        "tasks" also wall_time (seconds), after which a vertex is ended, and a vertex that asks for nothing gets one core.
    resources_mode: "fixed" or None: requests are taken as they are.
    env_vars: with "tasks": variables of the environment; a value of None unsets one, a function is called with the manager and a
        VertexInfo for each vertex.
    extra_files: with "tasks": File to its name in the directory of every vertex.
    priority: larger runs earlier.
    reuse: answer from the values of an identical graph computed before by this manager.
    lib_modules (old: hoisting_modules, import_modules): names of modules to import before slots are forked, besides those found.
    progress_disable, progress_label: the progress bar (package rich, only on a terminal).
    """

    task_mode: str = FUNCTION_CALLS
    worker_transfers: bool = True
    retries: int = 0
    resources: Resources = field(default_factory=Resources)
    wall_time_s: float = 0.0
    env_vars: Mapping[str, EnvironmentValue] = field(default_factory=dict)
    extra_files: Mapping[File, str] = field(default_factory=dict)
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
        known = {f.name for f in fields(cls)} - {"wall_time_s"} | {"resources_mode"}
        values: dict[str, Any] = {}
        for name, value in given.items():
            real = _ALIASES.get(name, name)
            if real in _LATER:
                _refuse_later(name, value)
                continue
            if real not in known:
                raise UsageError(_unknown(name, known))
            _refuse_bad(name, real, value)
            if real == "worker_transfers" and values.get(real) is False:
                continue  # either spelling False means False
            values[real] = value
        return cls(**_checked(values))


def spelled(option: str, given: Mapping[str, Any]) -> str:
    """The name under which an option was given."""
    return next((name for name in given if _ALIASES.get(name) == option), option)


def _unknown(name: str, known: set[str]) -> str:
    names = sorted({*known, *_ALIASES})
    if name in _ELSEWHERE:
        hint = _ELSEWHERE[name] + "."
    else:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"get has no option {name!r}{hint} It takes: {', '.join(names)}"


def _refuse_later(name: str, value: Any) -> None:
    """Raise a UsageError for an option of later versions, unless its value asks for nothing."""
    idle, instead = _LATER[name]
    if not any(value is one or (isinstance(value, str | int) and value == one) for one in idle):
        raise UsageError(f"get cannot take {name}={value!r} in this version: {instead}")


def _refuse_bad(name: str, real: str, value: Any) -> None:
    """Raise a UsageError, with the name as it was spelled, for a value of the wrong kind."""
    if real in ("worker_transfers", "reuse", "progress_disable"):
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, not {value!r}")
    elif real == "priority":
        checked_priority(value)
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
    mode = values.get("task_mode", FUNCTION_CALLS)
    if mode not in (FUNCTION_CALLS, TASKS):
        raise UsageError(f"task_mode must be 'function-calls' or 'tasks', not {mode!r}")
    sizes = values.pop("resources_mode", None)
    if sizes not in (None, "fixed"):
        raise UsageError(
            f"resources_mode must be 'fixed' or None in this version, not {sizes!r}: sizes are not found out; ask with resources="
        )
    values["env_vars"] = _checked_variables(values.get("env_vars"))
    values["extra_files"] = _checked_files(values.get("extra_files"))
    for name in ("env_vars", "extra_files"):
        if values[name] and mode != TASKS:
            raise UsageError(f"{name} needs task_mode='tasks': function calls of one worker share processes and directories")
    retries = values.get("retries", 0)
    values["retries"] = checked_retries(retries)
    resources = values.get("resources")
    if mode == TASKS:
        values["resources"], values["wall_time_s"] = request_apart(resources)
    else:
        values["resources"] = request_together(resources)
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
    if isinstance(resources, Resources):
        return resources.checked()
    if resources is not None and not isinstance(resources, Mapping):
        raise UsageError(f"resources must be a dict such as {{'cores': 1, 'memory': 1000}}, not {resources!r}")
    return Resources.from_mapping({str(name).lower(): amount for name, amount in (resources or {}).items()})


def request_together(resources: Any) -> Resources:
    """What a vertex in a process that others use too asks for.

    Raises:
        UsageError: it is no dict of resources, or it has a wall time.
    """
    if isinstance(resources, Mapping) and "wall_time" in resources:
        if resources["wall_time"] is not None:
            raise UsageError(
                "resource wall_time needs task_mode='tasks': a function call is not ended alone, others share its process"
            )
        resources = {name: amount for name, amount in resources.items() if name != "wall_time"}
    return request_of(resources)


def request_apart(resources: Any) -> tuple[Resources, float]:
    """What a vertex with a process of its own asks for, and its wall time in seconds (0: no limit).

    One that asks for nothing gets one core, and memory and disk in proportion: graphs are many small tasks.

    Raises:
        UsageError: it is no dict of resources.
    """
    wall_time_s = 0.0
    if isinstance(resources, Mapping) and "wall_time" in resources:
        given = resources["wall_time"]
        resources = {name: amount for name, amount in resources.items() if name != "wall_time"}
        if given is not None:
            wall_time_s = checked_wall_time(given, "resource wall_time")
    request = request_of(resources)
    return (Resources(cores=1) if request.is_unset() else request), wall_time_s


def _checked_variables(given: Any) -> dict[str, EnvironmentValue]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"env_vars must be a dict of names to values, not {given!r}")
    for name, value in given.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise UsageError(f"a name in env_vars must be a str without '=', not {name!r}")
        checked_variable_name(name)
        if value is not None and not callable(value):
            checked_variable(name, value)
    return dict(given)


def checked_variable(name: str, value: Any) -> str:
    """A value of an environment variable.

    Raises:
        UsageError: it is no text that an environment can hold.
    """
    if not isinstance(value, str):
        raise UsageError(f"env_vars[{name!r}] must be a str, None, or a function that returns a str, not {value!r}")
    return checked_text(value, f"env_vars[{name!r}]")


def _checked_files(given: Any) -> dict[File, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(file, File) for file in given):
        raise UsageError(
            f"extra_files must be a dict of File to name, such as {{m.declare_file('a.txt'): 'a.txt'}}, not {given!r}"
        )
    return dict(given)

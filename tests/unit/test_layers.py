"""Who may import whom: every file of both packages is parsed, and an edge that points up or round in a circle fails.

Imports inside functions and under TYPE_CHECKING count like any other, and so do ``importlib.import_module("...")`` and
``__import__("...")`` with a literal name. The second half plants violations in a small tree to see the checker fail.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vinecore", "daskvine")

VALUES = ("vinecore.model", "vinecore.errors")
MACHINE_FLOOR = ("vinecore.wire.messages", *VALUES)
WIRE_FLOOR = ("vinecore.wire", *VALUES)
SIDE_ROOMS = ("vinecore.observe", "vinecore.catalog", "vinecore.factory")

# A room may import itself and what stands here; a name covers the modules below it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "vinecore.errors": (),
    "vinecore.model": ("vinecore.errors",),
    "vinecore.wire": VALUES,
    "vinecore.manager": MACHINE_FLOOR,
    "vinecore.worker": MACHINE_FLOOR,
    "vinecore.runtime": WIRE_FLOOR,
    # The runtime is started, not imported, but for what removes directories: it imports nothing of ours.
    "vinecore.shell": ("vinecore.manager", "vinecore.worker", "vinecore.runtime.places", *WIRE_FLOOR),
    "vinecore.observe": WIRE_FLOOR,
    "vinecore.catalog": WIRE_FLOOR,
    "vinecore.factory": WIRE_FLOOR,
    "vinecore.api": (
        "vinecore.shell",
        "vinecore.runtime",
        "vinecore.manager.events",
        "vinecore.manager.entries",
        "vinecore.manager.state",
        *SIDE_ROOMS,
        *WIRE_FLOOR,
    ),
    "vinecore.cli": ("vinecore.api", "vinecore.shell.worker_loop", *SIDE_ROOMS, *VALUES),
    # The public names, and nothing else.
    "vinecore": ("vinecore.api", "vinecore.runtime", *VALUES),
    # Public names, and the engine's extension surface for a graph's vertices.
    "daskvine": (
        "vinecore.api",
        "vinecore.errors",
        "vinecore.runtime.captures",
        "vinecore.runtime.error_texts",
        "vinecore.runtime.library_code",
        "vinecore.runtime.payload",
        "vinecore.runtime.functions",
        "vinecore.runtime.raised",
        "vinecore.runtime.vertex",
    ),
}

# Inside a machine: a module may import those of its own row and of rows above it here, never below.
ORDER_INSIDE: dict[str, tuple[tuple[str, ...], ...]] = {
    "vinecore.manager": (
        ("transitions",),
        ("lists", "ready", "worker_sets"),
        ("entries",),
        ("state",),
        ("events", "orders", "invariants"),
        ("near",),
        ("replicas", "transfers", "splices", "lineage"),
        ("bundles", "policy", "replication", "reserving"),
        ("placement",),
        ("evening",),
        ("on_*",),
        ("machine",),
    ),
    "vinecore.worker": (
        ("events", "orders"),
        ("state",),
        ("on_*",),
        ("machine",),
    ),
}

# Pure rooms: time comes inside events, chance from a generator handed in, text goes out as notes.
PURE = (
    "vinecore.errors",
    "vinecore.model",
    "vinecore.wire",
    "vinecore.manager",
    "vinecore.worker",
    "vinecore.factory.plan",
    "daskvine.graph",
)
WORLD = frozenset(
    {"asyncio", "socket", "ssl", "os", "shutil", "subprocess", "threading", "time", "random", "logging"}
    # The same things under other names.
    | {"secrets", "select", "selectors", "signal", "multiprocessing", "tempfile"}
)
# The floors below the shells use the standard library and, where ONLY_IN says so, one package more.
NO_THIRD_PARTY = tuple(room for room in PURE if room.startswith("vinecore."))
ONLY_IN: dict[str, tuple[str, ...]] = {
    "msgspec": ("vinecore.wire.messages", "vinecore.wire.hello"),
    "cloudpickle": ("vinecore.runtime.captures", "vinecore.runtime.payload", "vinecore.runtime.functions"),
    "dask": ("daskvine",),
}


class Import(NamedTuple):
    """One import statement: who, whom, and where it stands."""

    importer: str
    target: str
    place: str


def module_paths(root: Path) -> dict[str, Path]:
    """Every module of the packages under ``root`` by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_within(module: str, names: tuple[str, ...]) -> bool:
    """Whether the module is one of these or lies below one of them."""
    return any(module == name or module.startswith(name + ".") for name in names)


def literal_import(node: ast.AST) -> str | None:
    """The name in ``import_module("name")`` or ``__import__("name")``."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    name = node.args[0].value
    return name if function in ("import_module", "__import__") and isinstance(name, str) else None


def imported_names(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Each imported module with its line, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        literal = literal_import(node)
        if literal is not None:
            yield literal, node.lineno  # type: ignore[attr-defined]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level > 0 else []
            source = ".".join([*base, *([node.module] if node.module is not None else [])])
            for alias in node.names:
                # ``from package import module`` is an edge to the module, not to the package.
                whole = f"{source}.{alias.name}"
                yield (whole if whole in modules else source), node.lineno


def all_imports(root: Path) -> list[Import]:
    modules = module_paths(root)
    return [
        Import(module, target, f"{path.relative_to(root)}:{line}")
        for module, path in modules.items()
        for target, line in imported_names(module, path, modules)
    ]


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "vinecore" else parts[0]


def row_of(module: str) -> int | None:
    """The module's row in ORDER_INSIDE; None for a room without order or its ``__init__``.

    Raises
    ------
    KeyError
        The room is ordered and no row names the module.
    """
    room = room_of(module)
    if room not in ORDER_INSIDE or module == room:
        return None
    name = module.split(".")[2]
    for row, names in enumerate(ORDER_INSIDE[room]):
        if name in names or any(n.endswith("*") and name.startswith(n[:-1]) for n in names):
            return row
    raise KeyError(module)


def wrong_edges(imports: list[Import]) -> Iterator[str]:
    """Edges between rooms that MAY_IMPORT doesn't have."""
    for edge in imports:
        if edge.target.split(".")[0] not in PACKAGES:
            continue
        importer, target = room_of(edge.importer), room_of(edge.target)
        # Public names come from the package itself, which is above all rooms but this one.
        if importer == "daskvine" and edge.target == "vinecore":
            continue
        if importer not in MAY_IMPORT:
            yield f"{edge.place}: the room {importer} has no rule in MAY_IMPORT"
        elif importer != target and not is_within(edge.target, MAY_IMPORT[importer]):
            yield f"{edge.place}: {importer} may not import {edge.target}"


def wrong_order(imports: list[Import], modules: dict[str, Path]) -> Iterator[str]:
    """Edges inside a machine that point to a later row, and modules that no row names."""
    unplaced = set()
    for module in modules:
        try:
            row_of(module)
        except KeyError:
            unplaced.add(module)
            yield f"{module}: has no row in ORDER_INSIDE; say there where it stands"
    for edge in imports:
        if room_of(edge.importer) != room_of(edge.target) or {edge.importer, edge.target} & unplaced:
            continue
        if edge.target not in modules:
            continue
        importer_row, target_row = row_of(edge.importer), row_of(edge.target)
        if importer_row is not None and target_row is not None and target_row > importer_row:
            yield f"{edge.place}: {edge.importer} stands before {edge.target} and may not import it"


def graph_of(imports: list[Import], modules: dict[str, Path]) -> dict[str, list[str]]:
    graph: dict[str, list[str]] = {module: [] for module in modules}
    for edge in imports:
        if edge.target in graph:
            graph[edge.importer].append(edge.target)
    return graph


def reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    """Every module that an import chain of at least one step leads to."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


def circles(graph: dict[str, list[str]]) -> Iterator[str]:
    reach = {module: reachable(graph, module) for module in graph}
    reported: set[str] = set()
    for module in sorted(graph):
        if module in reach[module] and module not in reported:
            members = sorted(other for other in reach[module] if module in reach[other])
            reported.update(members)
            yield f"import circle: {', '.join(members)}"


def machines_mixed(graph: dict[str, list[str]]) -> Iterator[str]:
    """Shell modules from which both machines can be reached: each loop sees its own only."""
    for module in sorted(graph):
        if room_of(module) == "vinecore.shell":
            rooms = {room_of(other) for other in reachable(graph, module)}
            if {"vinecore.manager", "vinecore.worker"} <= rooms:
                yield f"{module}: reaches both machines; a shell serves one"


def wrong_outsiders(imports: list[Import]) -> Iterator[str]:
    """Standard library and third-party modules where they may not be."""
    for edge in imports:
        top = edge.target.split(".")[0]
        if top in PACKAGES:
            continue
        if top in WORLD and is_within(edge.importer, PURE):
            yield f"{edge.place}: {edge.importer} is pure and may not import {top}"
        elif top in ONLY_IN:
            if not is_within(edge.importer, ONLY_IN[top]):
                yield f"{edge.place}: only {', '.join(ONLY_IN[top])} may import {top}"
        elif top not in sys.stdlib_module_names and is_within(edge.importer, NO_THIRD_PARTY):
            yield f"{edge.place}: {edge.importer} may not import the third-party package {top}"


def violations(root: Path) -> list[str]:
    """Every broken rule of the tree under ``root``, one line each."""
    modules, imports = module_paths(root), all_imports(root)
    graph = graph_of(imports, modules)
    return [
        *wrong_edges(imports),
        *wrong_order(imports, modules),
        *circles(graph),
        *machines_mixed(graph),
        *wrong_outsiders(imports),
    ]


def test_every_import_of_the_project_goes_down() -> None:
    found = violations(ROOT)
    assert found == [], "\n".join(found)


def test_the_checker_sees_the_project() -> None:
    modules = module_paths(ROOT)
    assert {"vinecore", "vinecore.errors", "vinecore.wire.messages", "daskvine"} <= set(modules)
    assert ("vinecore.wire.messages", "vinecore.errors") in {(i.importer, i.target) for i in all_imports(ROOT)}


# ---- the checker itself --------------------------------------------------------------------------------------------

LEGAL_TREE = {
    "vinecore/__init__.py": "from vinecore.api.manager import Manager\nfrom vinecore.errors import VineError\n",
    "vinecore/errors.py": "from typing import NoReturn\n",
    "vinecore/model/__init__.py": "",
    "vinecore/model/ids.py": "from vinecore.errors import VineError\n",
    "vinecore/wire/messages.py": "import msgspec\nfrom vinecore.model import ids\n",
    "vinecore/wire/framing.py": "import hashlib\nfrom vinecore.wire.messages import Call\n",
    "vinecore/manager/events.py": "from vinecore.wire.messages import Call\n",
    "vinecore/manager/state.py": "from . import transitions\n",
    "vinecore/manager/replicas.py": "from .state import State\n",
    "vinecore/manager/policy.py": "from vinecore.manager.replicas import Replicas\n",
    "vinecore/manager/on_tasks.py": "from vinecore.manager import policy\n",
    "vinecore/manager/machine.py": "from vinecore.manager.on_tasks import submitted\n",
    "vinecore/worker/state.py": "from vinecore.model.ids import TaskId\n",
    "vinecore/worker/machine.py": "from vinecore.worker.state import State\n",
    "vinecore/runtime/payload.py": "import cloudpickle\nfrom vinecore.wire.framing import frames\n",
    "vinecore/shell/manager_loop.py": "import asyncio\nfrom vinecore.manager.machine import ManagerMachine\n",
    "vinecore/shell/worker_loop.py": "import asyncio\nfrom vinecore.worker.machine import WorkerMachine\n",
    "vinecore/api/manager.py": "from vinecore.shell.manager_loop import Loop\nfrom vinecore.runtime import payload\n",
    "vinecore/cli/worker.py": "from vinecore.shell.worker_loop import serve\n",
    "daskvine/__init__.py": "from daskvine.scheduler import DaskVine\n",
    "daskvine/graph.py": "import dask\n",
    "daskvine/scheduler.py": "import threading\nfrom vinecore import Manager\nfrom daskvine import graph\n",
}


def plant(root: Path, **changes: str) -> None:
    """The legal tree, with lines added to files (named with ``__`` for the slash and no suffix)."""
    added = {name.replace("__", "/") + ".py": text for name, text in changes.items()}
    for name in {**LEGAL_TREE, **added}:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LEGAL_TREE.get(name, "") + added.get(name, ""))


def test_a_legal_tree_passes(tmp_path: Path) -> None:
    plant(tmp_path)
    assert violations(tmp_path) == []


HIDDEN = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vinecore.wire import messages\n"
PLANTED = [
    ("vinecore__model__ids", "import vinecore.wire.messages\n", "vinecore.model may not import vinecore.wire.messages"),
    ("vinecore__model__ids", HIDDEN, "vinecore.model may not import vinecore.wire.messages"),
    (
        "vinecore__model__ids",
        "def f():\n    from ..wire import messages\n",
        "vinecore.model may not import vinecore.wire.messages",
    ),
    ("vinecore__model__ids", "import importlib\nimportlib.import_module('vinecore.api')\n", "may not import vinecore.api"),
    ("vinecore__model__ids", "__import__('vinecore.api')\n", "vinecore.model may not import vinecore.api"),
    ("vinecore__model__ids", "from vinecore import Manager\n", "vinecore.model may not import vinecore"),
    ("vinecore__errors", "from vinecore.model import ids\n", "vinecore.errors may not import vinecore.model.ids"),
    ("vinecore__manager__policy", "from vinecore.worker import state\n", "vinecore.manager may not import vinecore.worker.state"),
    ("vinecore__manager__policy", "from vinecore.wire import framing\n", "vinecore.manager may not import vinecore.wire.framing"),
    ("vinecore__worker__state", "from vinecore.runtime import payload\n", "may not import vinecore.runtime.payload"),
    ("vinecore__runtime__payload", "from vinecore.shell import manager_loop\n", "may not import vinecore.shell.manager_loop"),
    ("vinecore__shell__manager_loop", "from vinecore.runtime import payload\n", "may not import vinecore.runtime.payload"),
    (
        "vinecore__shell__manager_loop",
        "from vinecore.worker import state\n",
        "vinecore.shell.manager_loop: reaches both machines",
    ),
    ("vinecore__shell__worker_loop", "from . import manager_loop\n", "vinecore.shell.worker_loop: reaches both machines"),
    ("vinecore__observe__hub", "from vinecore.manager import state\n", "vinecore.observe may not import vinecore.manager.state"),
    ("vinecore__api__manager", "from vinecore.manager import machine\n", "vinecore.api may not import vinecore.manager.machine"),
    ("vinecore__api__manager", "from daskvine import DaskVine\n", "vinecore.api may not import daskvine"),
    ("vinecore__cli__worker", "from vinecore.shell import manager_loop\n", "may not import vinecore.shell.manager_loop"),
    ("vinecore__attic__old", "from vinecore.model import ids\n", "the room vinecore.attic has no rule"),
    ("daskvine__scheduler", "from vinecore.shell import manager_loop\n", "daskvine may not import vinecore.shell.manager_loop"),
    ("daskvine__scheduler", "from vinecore.wire.messages import Call\n", "daskvine may not import vinecore.wire.messages"),
    ("daskvine__graph", "from daskvine.scheduler import DaskVine\n", "import circle: daskvine.graph, daskvine.scheduler"),
    ("vinecore__manager__state", "from . import replicas\n", "vinecore.manager.state stands before vinecore.manager.replicas"),
    ("vinecore__manager__policy", "from . import on_tasks\n", "vinecore.manager.policy stands before vinecore.manager.on_tasks"),
    ("vinecore__worker__state", "from . import machine\n", "vinecore.worker.state stands before vinecore.worker.machine"),
    ("vinecore__manager__extras", "", "vinecore.manager.extras: has no row in ORDER_INSIDE"),
    ("vinecore__manager__lineage", "from . import transfers\n", ""),
    ("vinecore__model__ids", "import time\n", "vinecore.model.ids is pure and may not import time"),
    ("vinecore__model__ids", "import os.path\n", "vinecore.model.ids is pure and may not import os"),
    ("vinecore__wire__framing", "from asyncio import Queue\n", "vinecore.wire.framing is pure and may not import asyncio"),
    ("vinecore__manager__machine", "def f():\n    import logging\n", "is pure and may not import logging"),
    ("daskvine__graph", "import threading\n", "daskvine.graph is pure and may not import threading"),
    ("vinecore__wire__framing", "import msgspec\n", "only vinecore.wire.messages, vinecore.wire.hello may import msgspec"),
    ("vinecore__shell__manager_loop", "import cloudpickle\n", "may import cloudpickle"),
    ("vinecore__api__manager", "import dask.base\n", "only daskvine may import dask"),
    ("vinecore__model__ids", "import numpy as np\n", "vinecore.model.ids may not import the third-party package numpy"),
]


@pytest.mark.parametrize(("file", "lines", "expected"), PLANTED)
def test_a_planted_violation_is_found(file: str, lines: str, expected: str, tmp_path: Path) -> None:
    plant(tmp_path, **{file: lines})
    found = violations(tmp_path)
    if expected:
        assert any(expected in line for line in found), found
    else:
        assert found == []


def test_a_violation_names_file_and_line(tmp_path: Path) -> None:
    plant(tmp_path, vinecore__model__ids="\n\nimport time\n")
    assert violations(tmp_path) == ["vinecore/model/ids.py:4: vinecore.model.ids is pure and may not import time"]

"""``DaskVine``: a manager whose ``get`` is a Dask scheduler.

    get(dsk, keys) -> Plan (graph.py) -> pieces of PIECE_COUNT vertices: one pickle each -> the engine's core, streamed
    requested values <- decoded in this thread <- the core, which alone follows the graph's progress

Nothing is kept on the manager between two gets but code, measured durations and a bounded memory of results (``reuse.py``),
so several threads may call ``get`` at once.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Hashable, Iterator
from typing import Any

from dask.utils import key_split

from daskvine.functional import Manager
from daskvine.graph import Plan, annotations_of
from daskvine.options import (
    TASKS,
    GetOptions,
    VertexInfo,
    checked_retries,
    checked_variable,
    request_apart,
    request_together,
    spelled,
)
from daskvine.progress import Progress
from daskvine.reuse import Results
from vinecore.api.engine import Engine
from vinecore.api.graphs import Apart, GraphSubmission, Piece, VertexPlan
from vinecore.api.numbers import checked_priority
from vinecore.errors import UnpicklableError, UsageError
from vinecore.runtime import captures, error_texts, raised
from vinecore.runtime import payload as payloads
from vinecore.runtime.library_code import import_named
from vinecore.runtime.vertex import Program, is_plain, pack_vertex

MANAGER_OPTIONS = tuple(inspect.signature(Manager).parameters)
# Vertices packed by one pickle and named by one code id. Higher: less per vertex; but a slot that gets a few of them gets all.
PIECE_COUNT = 256
# The first piece is smaller, so that slots start early.
FIRST_PIECE_COUNT = 48
# Graphs up to this size are handed over whole: the core then knows every consumer when it puts the first bundle together. Larger
# ones are streamed, so that slots start while the rest is converted.
AT_ONCE_COUNT = 2000
# Pieces converted before the core is waited for. Higher: more of the graph comes at its end, all at once; lower: both threads of
# one interpreter take turns more often.
LEAD_PIECES = 4
# Groups of like keys in one get; beyond, keys are alike if they end in the same function. Higher: as many vertices more go one by
# one where each key is a name of its own, since nothing is known of such a one before it has run.
GROUPS_LIMIT_COUNT = 256
# Keys of a chain that failed that are named besides its last one; more say nothing more.
KEYS_SHOWN = 5


class DaskVine(Manager):
    """A Manager for Dask: ``x.compute(scheduler=m.get)``, ``dask.config.set(scheduler=m.get)``.

    Parameters: those of Manager, and ``reuse``: whether a second get of one graph is answered from remembered results, unless
    the get says otherwise. ``DaskVine(local_cores=4)`` needs nothing else, ``DaskVine(port=9123)`` waits for
    ``vine_worker HOST 9123``.
    """

    def __init__(self, *args: Any, reuse: bool = True, **kwargs: Any) -> None:
        if not isinstance(reuse, bool):
            raise UsageError(f"reuse must be True or False, not {reuse!r}")
        for name in kwargs:
            if name not in MANAGER_OPTIONS:
                raise TypeError(f"DaskVine has no option {name!r}; it takes: {', '.join((*MANAGER_OPTIONS, 'reuse'))}")
        super().__init__(*args, **kwargs)
        self._reuse = reuse
        self._modules: set[str] = set()
        self._results = Results(self.engine)

    def get(self, dsk: Any, keys: Any, **options: Any) -> Any:
        """Compute keys of a graph on the workers; intermediate values stay there.

        Parameters:
            dsk: a mapping of keys to tasks, a HighLevelGraph, or what Dask hands to schedulers.
            keys: one key or nested lists of keys.
            options: see GetOptions.

        Returns:
            The values, nested like ``keys``.

        Raises:
            MissingKeyError, UsageError: a key that is not there, a cycle, an unknown option.
            Exception: what a vertex raised, as itself, with the remote traceback as its cause.
        """
        chosen = GetOptions.parse({"reuse": self._reuse, **options})
        self.engine.refuse_in_loop("get")
        self._check_modules(chosen.lib_modules, spelled("lib_modules", options))
        plan = Plan(dsk, keys)
        planner = _Planner(self, plan, chosen, annotations_of(dsk))
        pieces = pack(self.engine, plan, chosen, planner.library)
        is_reusable = chosen.reuse and planner.setting is not None
        if is_reusable:
            pieces, signature = self._results.looked_up(plan, pieces, planner.setting or b"")
            found = self._results.values(signature) if signature is not None else None
            if found is not None:
                return plan.pack(found)
        graph = GraphSubmission(
            self.engine, len(plan), plan.requested, planner.library, not chosen.worker_transfers, planner.apart
        )
        try:
            with Progress(graph, len(plan), chosen):
                values = _run(graph, plan, pieces, planner)
        except BaseException:
            # Ctrl-C too: nothing of this graph goes on running.
            graph.cancel()
            raise
        keep = is_reusable and self._results.keep(plan, graph, values)
        graph.end(keep)
        return plan.pack(values)

    def _check_modules(self, names: tuple[str, ...], option: str) -> None:
        """Modules that the user named must exist where vertices run; each is asked for once. ``option``: as the user spelled it.

        Raises:
            ModuleNotFoundError: one does not.
        """
        new = [name for name in names if name not in self._modules]
        if new:
            self._executor.submit(_import_all, new, option).result()
            self._modules.update(new)

    __call__ = get


def _import_all(names: list[str], option: str) -> None:
    for name in names:
        try:
            import_named(name, option)
        except Exception as error:
            raised.add_note(error, f"raised by importing {name!r}, which {option} names")
            raise


def _run(graph: GraphSubmission, plan: Plan, pieces: Iterator[Piece], planner: _Planner) -> dict[int, Any]:
    """Submit, wait, bring the requested values here.

    Raises:
        Exception: what a vertex raised.
    """
    gathered: list[Any] = []
    lead = 0
    at_once = len(plan) <= AT_ONCE_COUNT
    for piece in pieces:
        if graph.has_failed:
            break
        gathered.append((piece, planner.plans(piece.numbers)))
        if not at_once:
            graph.add_pieces(gathered)
            gathered = []
            lead += 1
            if lead == LEAD_PIECES:
                graph.let_core_catch_up()
                lead = 0
    if gathered:
        graph.add_pieces(gathered)
    graph.wait()
    failed = graph.failure()
    if failed is not None:
        error, number = failed
        with_it = ", ".join([repr(key) for key in plan.keys_before(number)[-KEYS_SHOWN:]])
        more = f", or one of its chain before it: {with_it}" if with_it else ""
        raised.add_note(error, f"while computing the key {plan.order[number]!r} of the graph{more}")
        raise error
    return {number: graph.value(number) for number in plan.requested}


class _Planner:
    """What the core must know of each vertex: options of the get, and annotations of single keys."""

    def __init__(self, manager: DaskVine, plan: Plan, options: GetOptions, notes: dict[str, dict[Hashable, Any]]) -> None:
        engine = manager.engine
        self._manager = manager
        self._engine = engine
        self._plan = plan
        self._options = options
        self._notes = notes
        self._kinds: dict[Hashable, Any] = {}
        self._groups: set[str] = set()
        is_apart = options.task_mode == TASKS
        self.library = engine.process_library() if is_apart else engine.python
        self.apart = Apart(engine, options.extra_files) if is_apart else None
        self._box = self._box_for(None, options.wall_time_s) if is_apart and not self._asks else None
        # What values may depend on beside the graph; None: nobody knows, so that they are not remembered.
        self.setting: bytes | None = b""
        if self.apart is not None:
            sees = (sorted(options.env_vars.items()), self.apart.signature(), options.resources)
            self.setting = None if self._asks else repr(sees).encode()

    @property
    def _asks(self) -> bool:
        """Whether some variable is asked for with each vertex."""
        return any(callable(value) for value in self._options.env_vars.values())

    def plans(self, numbers: range) -> list[VertexPlan]:
        """One VertexPlan for each number."""
        inputs, consumers = self._plan.inputs, self._plan.consumers
        retries, priority, box = self._options.retries, self._options.priority, self._box
        plans = [VertexPlan(inputs[i], self._kind(i), len(consumers[i]), retries, priority, box) for i in numbers]
        if self.apart is not None and box is None:
            for number, plan in zip(numbers, plans, strict=True):
                plan.box = self._box_for(number, self._options.wall_time_s)
        if self._notes:
            self._annotate(numbers, plans)
        return plans

    def _kind(self, number: int) -> Any:
        """Vertices whose keys begin alike are alike; tokens and numbers at the end of names do not count."""
        key = self._plan.order[number]
        name = _name_in(key)
        kind = self._kinds.get(name)
        if kind is None:
            shape = self._engine.shape_for(self.library, self._options.resources, self.apart is not None)
            kind = self._kinds[name] = self._engine.kind_for(f"dask:{self._group_of(name, number)}", shape)
        return kind

    def _group_of(self, name: Hashable, number: int) -> str:
        """What the name of a key begins with, as Dask takes it; where it ends in a number, or is one, the function counts too.

        Only the function counts where a get has very many groups.
        """
        group, stem = _beginning(name), ""
        if isinstance(name, str | bytes):
            # Each of them would be a group of its own, of which nothing is known before it has run: all would go one by one.
            stem = group.rstrip("0123456789") if group[-1:].isdigit() else group
        if stem != group:
            group = f"{stem}# {self._plan.function_name(number)}".rstrip()
        if group not in self._groups:
            if len(self._groups) >= GROUPS_LIMIT_COUNT:
                return f"# {self._plan.function_name(number)}".rstrip()
            self._groups.add(group)
        return group

    def _box_for(self, number: int | None, wall_time_s: float) -> Any:
        """The box of one vertex, or of all of them (None)."""
        assert self.apart is not None
        variables = dict(self._options.env_vars)
        if number is not None:
            info = VertexInfo(self._plan.order[number], _category(self._plan.order[number]))
            for name, value in variables.items():
                if callable(value):
                    variables[name] = self._asked(name, value, info)
        return self.apart.box({name: value for name, value in variables.items() if not callable(value)}, wall_time_s)

    def _asked(self, name: str, value: Any, info: VertexInfo) -> str:
        """A variable of one vertex, from the user's function.

        Raises:
            UsageError: the function raised, or returned no text.
        """
        try:
            text = value(self._manager, info)
        except Exception as error:
            what = error_texts.line_of(error)
            said = f"the function env_vars[{name!r}] raised {what}, when it was asked for the key {info.key!r}"
            raise UsageError(said) from error
        return checked_variable(name, text)

    def _annotate(self, numbers: range, plans: list[VertexPlan]) -> None:
        """``dask.annotate(retries=, priority=, resources=)``."""
        retries, priority, resources = (self._notes.get(name, {}) for name in ("retries", "priority", "resources"))
        for number, plan in zip(numbers, plans, strict=True):
            key = self._plan.order[number]
            if key in retries:
                plan.retries = checked_retries(retries[key])
            if key in priority:
                plan.priority = checked_priority(priority[key])
            if key in resources:
                self._annotate_resources(number, plan, resources[key])

    def _annotate_resources(self, number: int, plan: VertexPlan, resources: Any) -> None:
        engine = self._engine
        if self.apart is None:
            shape = engine.shape_for(self.library, request_together(resources))
        else:
            request, wall_time_s = request_apart(resources)
            shape = engine.shape_for(self.library, request, True)
            if wall_time_s:
                plan.box = self._box_for(number, wall_time_s)
        plan.kind = engine.kind_for(plan.kind.name, shape)


def _category(key: Hashable) -> str:
    """What VertexInfo says that a key's vertex is."""
    return _beginning(_name_in(key))


def _name_in(key: Hashable) -> Hashable:
    return key[0] if type(key) is tuple and key else key


def _beginning(name: Hashable) -> str:
    """What the name of a key begins with, as Dask takes it."""
    try:
        return str(key_split(name))
    except (IndexError, UnicodeError):
        return "Other"  # an empty tuple, bytes that are no text: what Dask says of all names that it cannot split


def pack(engine: Engine, plan: Plan, options: GetOptions, library: Any) -> Iterator[Piece]:
    """Convert a plan piece by piece; functions are interned, literals of a piece travel in one pickle."""
    known: dict[int, tuple[Any, Any]] = {}
    start = 0
    count = FIRST_PIECE_COUNT
    total = len(plan)
    while start < total:
        numbers = range(start, min(total, start + count))
        yield pack_piece(engine, plan, numbers, options, known, library)
        start = numbers.stop
        count = PIECE_COUNT


def pack_piece(
    engine: Engine, plan: Plan, numbers: range, options: GetOptions, known: dict[int, tuple[Any, Any]], library: Any
) -> Piece:
    """One piece of a plan. ``known``: functions met in this get, by id, with their code for the library.

    Raises:
        UnpicklableError: a function or a literal cannot be pickled.
    """
    functions: dict[int, Any] = {}
    packed: list[Any] = []
    plain = True
    for number in numbers:
        vertex = plan.vertex(number)
        code_ids = []
        for function in (vertex.function, *(step[0] for step in vertex.steps or ())):
            if function is None:
                code_ids.append(0)
                continue
            found = known.get(id(function))
            code = found[1] if found is not None else _code_of(engine, plan, number, function, known, library)
            functions[code.code_id] = code
            code_ids.append(code.code_id)
        one = pack_vertex(vertex, code_ids[0], code_ids[1:])
        plain = plain and is_plain(one)
        packed.append(one)
    payload = pickle.dumps(packed, 5) if plain else _pickle_any(plan, numbers, packed)
    modules = dict.fromkeys(options.lib_modules)
    for code in functions.values():
        modules.update(dict.fromkeys(code.modules))
    return Piece(numbers, payload, tuple(functions.values()), tuple(modules))


def _code_of(engine: Engine, plan: Plan, number: int, function: Any, known: dict[int, tuple[Any, Any]], library: Any) -> Any:
    """Intern a function of a vertex.

    Raises:
        UnpicklableError: it cannot be pickled; the text names the key.
    """
    try:
        code = engine.code_for(library, function)
        if isinstance(function, Program):
            # Modules are found by looking at functions, and a program hides those that it calls.
            called = [module for inner in function.functions() for module in engine.functions.get(inner).modules]
            code.modules = tuple(dict.fromkeys((*code.modules, *called)))
    except UnpicklableError as error:
        raise UnpicklableError(f"the graph's key {plan.order[number]!r} cannot be sent: {error}") from error
    # The function too: an id names an object only as long as that lives.
    known[id(function)] = function, code
    return code


def _pickle_any(plan: Plan, numbers: range, packed: list[Any]) -> bytes:
    """Literals that plain pickle may not know; on trouble the vertex at fault is named."""
    try:
        captures.register_local_modules()
        return payloads.dump(packed)
    except Exception as error:
        for number, one in zip(numbers, packed, strict=True):
            if payloads.failure_of(one) is not None:
                where, text = payloads.find_culprit(one, error)
                raise UnpicklableError(f"the graph's key {plan.order[number]!r} cannot be sent{where}: {text}") from error
        raise

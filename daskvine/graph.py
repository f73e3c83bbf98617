"""Any Dask graph -> our vertices: which of them are needed, in which order, and how results go back into the caller's shape.

This file owns lowering (mappings, HighLevelGraphs, expressions, collections), culling, numbering, fusion of linear chains and
packing. What a single node means is the business of ``daskvine.templates``. Nothing here runs user code or waits for anything.

A graph enters through ``Plan(dsk, keys)``, which only orders it; vertices leave one by one through ``Plan.vertex``, so that the
first pieces can run while the rest is still being converted. Every walk is a loop: the depth of a graph has no limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice

from dask.utils import ensure_dict

from daskvine.templates import Templates, steps_of
from vinecore.errors import MissingKeyError, UsageError
from vinecore.runtime.vertex import Vertex

# A fused chain is run, retried and reported as one; a longer one is cut, so that a loss never repeats more than this many calls.
FUSED_CALLS_LIMIT = 64
# Keys looked at for close matches, and keys shown of a cycle: messages must stay cheap and readable.
_MATCHED_KEYS_LIMIT = 10_000
_SHOWN_KEYS_LIMIT = 20


def lower(dsk: object) -> dict[Hashable, object]:
    """Return the plain dict of a mapping, a HighLevelGraph, an expression or a collection.

    Raises:
        UsageError: it is none of these.
    """
    if not isinstance(dsk, Mapping):
        materialise = getattr(dsk, "__dask_graph__", None)
        # On a class the attribute is an unbound function, which would fail with a text about self.
        graph = materialise() if callable(materialise) and not isinstance(dsk, type) else None
        if not isinstance(graph, Mapping):
            kind = type(dsk).__name__
            raise UsageError(f"not a Dask graph: a {kind}; give a mapping of keys to tasks, or something with __dask_graph__")
        dsk = graph
    plain: dict[Hashable, object] = ensure_dict(dsk)
    return plain


def annotations_of(dsk: object) -> dict[str, dict[Hashable, object]]:
    """What ``dask.annotate`` said of single keys: {annotation: {key: value}}; empty where the graph carries none."""
    found: dict[str, dict[Hashable, object]] = {}
    collect = getattr(dsk, "__dask_annotations__", None)
    if callable(collect) and not isinstance(dsk, type):
        for name, values in collect().items():
            found[name] = dict(values)
    for layer in getattr(dsk, "layers", {}).values():
        for name, value in (getattr(layer, "annotations", None) or {}).items():
            into = found.setdefault(name, {})
            for key in layer:
                into[key] = value(key) if callable(value) else value
    return found


def _flatten(keys: object) -> Iterator[object]:
    if not isinstance(keys, list):
        yield keys
        return
    for item in keys:
        yield from _flatten(item)


class Plan:
    """The needed part of a graph, ordered: vertex numbers are places in depth-first post-order.

    Args:
        dsk: mapping, HighLevelGraph, expression, or anything with ``__dask_graph__``. It must not change while the plan is used.
        keys: one key, or lists of keys nested to any depth (a tuple is a key).

    Raises:
        MissingKeyError: a requested key, or one that a task refers to, is not in the graph.
        UsageError: not a graph, not keys, or the graph has a cycle.

    Attributes:
        order: key of each vertex (of a fused chain: its last key).
        inputs: for each vertex the numbers of the vertices whose values it needs, each once, all smaller than its own.
        consumers: for each vertex the numbers of those that need its value, ascending.
        requested: numbers of the vertices that were asked for, each once, in the order of ``keys``.
    """

    __slots__ = (
        "_ends",
        "_inner_inputs",
        "_inner_order",
        "_keys",
        "_literal_keys",
        "_templates",
        "consumers",
        "digest",
        "inputs",
        "order",
        "requested",
    )

    def __init__(self, dsk: object, keys: object) -> None:
        graph = lower(dsk)
        self._keys = keys
        self._templates = Templates(graph)
        # Of everything that was packed; set by whoever packs all of it.
        self.digest: bytes | None = None
        self.order: list[Hashable] = []
        self.inputs: list[tuple[int, ...]] = []
        # Key of each literal in the atoms of the templates.
        self._literal_keys: list[Hashable] = []
        # Before fusion; the vertices of chain i end at _ends[i]. None: nothing was fused.
        self._inner_order = self.order
        self._inner_inputs = self.inputs
        self._ends: list[int] | None = None
        self.requested: list[int] = []
        wanted = _checked(graph, keys)
        self._number_all(graph, wanted)
        self.requested = self._resolve(wanted)
        self.consumers = _consumers(self.inputs)
        self._fuse()

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"<Plan: {len(self.order)} vertices ({len(self._inner_order)} before fusion), {len(self.requested)} requested>"

    # ---------------------------------------------------------------- ordering

    def _number_all(self, graph: dict[Hashable, object], wanted: list[Hashable]) -> None:
        """Number what the wanted keys need, inputs first."""
        references_of = self._templates.references
        numbers, atoms = self._templates.numbers, self._templates.atoms
        order, inputs = self.order, self.inputs
        # Keys whose references are on the stack above them, with these references.
        waiting: dict[Hashable, list[Hashable] | tuple[Hashable]] = {}
        stack = wanted[::-1]
        while stack:
            key = stack[-1]
            if key in numbers:
                stack.pop()
                continue
            references = waiting.pop(key, None)
            if references is None:
                try:
                    node = graph[key]
                except KeyError:
                    raise _dangling(graph, key, waiting) from None
                references = references_of(key, node)
                if references is None:
                    self._literal_keys.append(key)
                    numbers[key] = -len(atoms)
                    stack.pop()
                    continue
                pending = [name for name in references if name not in numbers]
                if pending:
                    waiting[key] = references
                    pending.reverse()
                    stack += pending
                    continue
            stack.pop()
            try:
                found = tuple([numbers[name] for name in references])
            except KeyError:
                waiting[key] = references
                raise _cycle(key, waiting) from None
            if type(references) is tuple:
                numbers[key] = found[0]
                continue
            if len(found) > 1 or atoms:
                # Small literals have negative numbers and are no inputs.
                found = tuple(dict.fromkeys([number for number in found if number >= 0]))
            numbers[key] = len(order)
            order.append(key)
            inputs.append(found)

    def _resolve(self, wanted: list[Hashable]) -> list[int]:
        """Return the vertex numbers of the wanted keys; small literals become vertices here, because somebody wants them."""
        numbers = self._templates.numbers
        literals: dict[int, int] = {}
        resolved: dict[int, None] = {}
        for key in wanted:
            number = numbers[key]
            if number < 0:
                if number not in literals:
                    literals[number] = len(self.order)
                    self.order.append(self._literal_keys[~number])
                    self.inputs.append(())
                number = literals[number]
            resolved[number] = None
        return list(resolved)

    # ---------------------------------------------------------------- fusion

    def _fuse(self) -> None:
        """Join each vertex to the one before it when that is its only input and has no other use."""
        consumers, requested = self.consumers, set(self.requested)
        joins = [
            number
            for number, found in enumerate(self.inputs)
            # In post-order the only consumer of an only input follows it at once.
            if len(found) == 1 and len(consumers[found[0]]) == 1 and found[0] == number - 1 and found[0] not in requested
        ]
        if not joins:
            return
        joined = set(joins)
        ends: list[int] = []
        starts: list[int] = []
        renumbered: list[int] = []
        for number in range(len(self.order)):
            if number in joined and number - starts[-1] < FUSED_CALLS_LIMIT:
                ends[-1] = number
            else:
                starts.append(number)
                ends.append(number)
            renumbered.append(len(ends) - 1)
        self._ends = ends
        self.order = [self._inner_order[end] for end in ends]
        self.inputs = [tuple([renumbered[number] for number in self._inner_inputs[start]]) for start in starts]
        self.requested = [renumbered[number] for number in self.requested]
        self.consumers = _consumers(self.inputs)

    # ---------------------------------------------------------------- what leaves

    @property
    def all_keys(self) -> list[Hashable]:
        """Keys of all vertices in order, those inside fused chains too."""
        return self._inner_order

    def keys_before(self, number: int) -> list[Hashable]:
        """Keys of a fused chain before its last one, which run as one with it."""
        if self._ends is None:
            return []
        return self._inner_order[self._ends[number - 1] + 1 if number else 0 : self._ends[number]]

    def function_name(self, number: int) -> str:
        """Name of the function that makes a vertex's value, for people; empty where none does."""
        return self._templates.function_name(self.order[number])

    def vertex(self, number: int) -> Vertex:
        """Convert one vertex, on demand; the plan does not keep it.

        Raises:
            IndexError: there is no vertex of that number.
        """
        if self._ends is None:
            return self._convert(number)
        end = self._ends[number]
        start = self._ends[number - 1] + 1 if number else 0
        vertex = self._convert(start)
        vertex.inputs = self.inputs[number]
        if end > start:
            vertex.key = self.order[number]
            steps = [*(vertex.steps or ())]
            for inner in range(start + 1, end + 1):
                steps += steps_of(self._convert(inner))
            vertex.steps = tuple(steps)
        return vertex

    def _convert(self, inner: int) -> Vertex:
        return self._templates.vertex(self._inner_order[inner], self._inner_inputs[inner])

    def pack(
        self, values: Mapping[int, object] | Callable[[int], object], sequence: Callable[[list[object]], object] = tuple
    ) -> object:
        """Arrange the values of requested vertices in the shape of the keys.

        Args:
            values: mapping from vertex number to value, or a function that does it; asked once for each requested vertex.
            sequence: what the lists of keys become. Dask's own schedulers return tuples.

        Returns:
            The bare value for a bare key, else sequences nested as the lists of keys were.

        Raises:
            KeyError: ``values`` is a mapping without one of the requested vertices.
        """
        value_of = values.__getitem__ if isinstance(values, Mapping) else values
        by_number = {number: value_of(number) for number in self.requested}
        place = iter(self._places())

        def build(keys: object) -> object:
            if isinstance(keys, list):
                return sequence([build(item) for item in keys])
            return by_number[next(place)]

        return build(self._keys)

    def _places(self) -> list[int]:
        """Return the vertex number of each requested key, with repeats, in the order of ``keys``."""
        numbers = self._templates.numbers
        inner = {numbers[key]: None for key in _flatten(self._keys)}
        by_inner = dict(zip(inner, self.requested, strict=True))
        return [by_inner[numbers[key]] for key in _flatten(self._keys)]


def _consumers(inputs: list[tuple[int, ...]]) -> list[list[int]]:
    consumers: list[list[int]] = [[] for _ in inputs]
    for number, found in enumerate(inputs):
        for other in found:
            consumers[other].append(number)
    return consumers


# ---------------------------------------------------------------- refusals


def _checked(graph: dict[Hashable, object], keys: object) -> list[Hashable]:
    """Return the requested keys in a flat list.

    Raises:
        MissingKeyError: one is not in the graph.
        UsageError: one cannot be a key.
    """
    wanted: list[Hashable] = []
    for key in _flatten(keys):
        if not isinstance(key, Hashable):
            raise UsageError(f"cannot be a key: {key!r} ({type(key).__name__}); give a key or lists of keys")
        try:
            known = key in graph
        except TypeError:  # a tuple with something unhashable in it
            raise UsageError(f"cannot be a key: {key!r} holds something unhashable; give a key or lists of keys") from None
        if not known:
            raise MissingKeyError(f"requested key {key!r} is not in the graph{_hint(graph, key)}")
        wanted.append(key)
    return wanted


def _hint(graph: dict[Hashable, object], key: Hashable) -> str:
    """Return what helps to find the right key."""
    candidates = [repr(other) for other in islice(graph, _MATCHED_KEYS_LIMIT)]
    close = get_close_matches(repr(key), candidates, n=3)
    text = f" of {len(graph)} keys"
    if close:
        text += f"; close matches: {', '.join(close)}"
    if type(key) is tuple and key and all(isinstance(part, Hashable) and part in graph for part in key):
        text += "; a tuple is one key, several keys go into a list"
    return text


def _dangling(
    graph: dict[Hashable, object], key: Hashable, waiting: Mapping[Hashable, list[Hashable] | tuple[Hashable]]
) -> MissingKeyError:
    consumer = next((name for name, references in waiting.items() if key in references), None)
    return MissingKeyError(f"task {consumer!r} refers to key {key!r}, which is not in the graph{_hint(graph, key)}")


def _cycle(start: Hashable, waiting: Mapping[Hashable, list[Hashable] | tuple[Hashable]]) -> UsageError:
    """Return the error that names the shortest cycle through ``start``; all keys on it are waiting."""
    origin: dict[Hashable, Hashable] = {}
    pending = deque([start])
    while start not in origin and pending:
        key = pending.popleft()
        for name in waiting[key]:
            if name in waiting and name not in origin:
                origin[name] = key
                pending.append(name)
    path = [start]
    while (previous := origin[path[-1]]) != start:
        path.append(previous)
    path.append(start)
    path.reverse()
    shown = " -> ".join(map(repr, path[:_SHOWN_KEYS_LIMIT]))
    if len(path) > _SHOWN_KEYS_LIMIT:
        shown += f" -> ... ({len(path) - 1} keys) -> {start!r}"
    return UsageError(f"the graph has a cycle, each key needs the next: {shown}; remove one of these references")

"""One node of a Dask graph at a time: which keys it refers to, and which vertex it becomes.

This file owns the meaning of nodes: legacy tuples ``(callable, argument, ...)``, the node classes of ``dask._task_spec``
and plain literals. The commonest legacy form is read directly; every rarer one goes through Dask's own converter, so that its
meaning is that of the installed version. Nodes that Dask fused become chains, or programs that all blocks of a layer share.
It knows nothing of order or culling and never walks from a node to another, except inside a fused one.

Keys enter through ``references`` (once for each node that is needed); vertices leave through ``vertex``, later and on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType

from dask import _task_spec
from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Set, Task, TaskRef, Tuple, convert_legacy_task
from dask.utils import funcname

from vinecore.runtime.vertex import (
    FLAT,
    GRAPH_NODE,
    IN_ORDER,
    NESTED,
    VALUE,
    Call,
    Keywords,
    Program,
    ProgramStep,
    Quote,
    Span,
    Step,
    Vertex,
    give,
    ref,
)

try:
    # Some versions give its inner graph access to outer keys, which only Dask's converter knows.
    from dask.optimization import SubgraphCallable
except ImportError:
    SubgraphCallable = None

# Values of these types can be keys that a legacy argument refers to.
_KEY_TYPES = frozenset({str, tuple, int, float, bool})
# Legacy arguments of these types are literals for every version of Dask.
_OPAQUE_TYPES = frozenset({NoneType, complex, slice, FunctionType, BuiltinFunctionType, MethodType, type, range, bytearray})
# Literals of these types are put into the consumer's template instead of becoming a vertex.
_ATOM_TYPES = frozenset({int, float, bool, complex, NoneType})
_TEXT_TYPES = frozenset({str, bytes})
# Longer texts stay one vertex: copies in every consumer would cost more than a vertex does.
_ATOM_LENGTH_LIMIT = 256

_WALKED_TYPES = frozenset({list, tuple, dict, set, frozenset})
_CAST_TYPES = _WALKED_TYPES - {dict}
_CONTAINERS: dict[type, type] = {List: list, Tuple: tuple, Set: set}
# Older versions keep a Dict's items as Tuple nodes, newer ones as a flat sequence of keys and values.
_DICT_IS_FLAT = len(Dict({1: 2}).args) == 2
_IDENTITY_CAST = _task_spec._identity_cast
# What Dask's own fusion makes: (_EXECUTE_SUBGRAPH, {key: node}, out key, in keys, a value for each of these).
_EXECUTE_SUBGRAPH = getattr(_task_spec, "_execute_subgraph", None)
# A program is kept like a function; one with a literal above this is not made.
_PROGRAM_LITERAL_BYTES = 16 * 1024
# A list of at least this many inputs in order is sent as one Span.
_SPAN_MINIMUM = 4

Locate = Callable[[int], int]


class _NoTemplateError(Exception):
    """A node class of somebody else with an evaluation of its own."""


def _target(alias: Alias | TaskRef) -> Hashable:
    """Return the key that an Alias or TaskRef stands for."""
    target = alias.target if isinstance(alias, Alias) else alias.key
    key: Hashable = target.key if isinstance(target, TaskRef) else target
    return key


def _scan_legacy(arguments: Iterable[object], graph: Mapping[Hashable, object], found: list[Hashable]) -> bool:
    """Collect the keys that legacy arguments refer to; False when only Dask's converter can tell."""
    for item in arguments:
        kind = type(item)
        if kind is tuple:
            # A nested task is a task even where a key equals it.
            if item and callable(item[0]):  # type: ignore[index]
                return False
            if item in graph:
                found.append(item)
            elif not _scan_legacy(item, graph, found):  # type: ignore[arg-type]
                return False
        elif kind in _KEY_TYPES:
            if item in graph:
                found.append(item)
        elif kind is list:
            if not _scan_legacy(item, graph, found):  # type: ignore[arg-type]
                return False
        elif kind is bytes:
            if item in graph:
                return False
        elif kind not in _OPAQUE_TYPES:
            return False
    return True


def _scan_node(node: object, found: list[Hashable]) -> None:
    """Collect the keys that a node refers to, in the order of its arguments, at any depth."""
    if isinstance(node, (Alias, TaskRef)):
        found.append(_target(node))
    elif isinstance(node, Task):
        for item in node.args:
            _scan_node(item, found)
        for item in node.kwargs.values():
            _scan_node(item, found)
    elif isinstance(node, GraphNode):
        found.extend(sorted(node.dependencies, key=repr))


def _task_references(node: Task) -> list[Hashable]:
    found: list[Hashable] = []
    for item in node.args:
        kind = type(item)
        if kind is TaskRef:
            found.append(item.key)
        elif kind is Alias:
            found.append(_target(item))
    known = node.dependencies
    if set(found) != known:
        found = []
        _scan_node(node, found)
        # Node classes may know of keys that are not among their arguments.
        if unseen := known.difference(found):
            found.extend(sorted(unseen, key=repr))
    return found


def _quoted(literal: object) -> object:
    return Quote(literal) if type(literal) in _WALKED_TYPES and literal else literal


def _as_list(items: list[object]) -> object:
    """Return a list template, as a Span where it is a run of inputs in order."""
    first = items[0] if len(items) >= _SPAN_MINIMUM else None
    start = getattr(first, "position", -1) if type(first) is type(ref(0)) else -1
    if start >= 0 and all(type(item) is type(first) and item.position == start + place for place, item in enumerate(items)):  # type: ignore[attr-defined]
        return Span(start, start + len(items))
    return items


def _is_fused(node: Task) -> bool:
    return node.func is _EXECUTE_SUBGRAPH and len(node.args) >= 3 and not node.kwargs and type(node.args[0]) is dict


def steps_of(vertex: Vertex) -> list[Step]:
    """A vertex with one input as steps of a chain."""
    return [(vertex.function, vertex.arguments, vertex.keywords, vertex.form), *(vertex.steps or ())]


class Templates:
    """Reads the nodes of one graph. Holds no progress of a run.

    ``numbers`` is filled by the caller while it numbers vertices: key -> number, or ``~i`` for the literal ``atoms[i]`` that is
    put into templates in place of a reference.
    """

    __slots__ = ("_converted", "_graph", "_programs", "_times_seen", "atoms", "numbers")

    def __init__(self, graph: Mapping[Hashable, object], outer: Templates | None = None) -> None:
        self._graph = graph
        # How many nodes run the same inner graph, by its id, and the programs made of those that several do.
        self._times_seen: dict[int, int] = outer._times_seen if outer else {}
        self._programs: dict[tuple[int, Hashable, tuple[Hashable, ...]], Program | None] = outer._programs if outer else {}
        # Nodes that went through Dask's converter, by key.
        self._converted: dict[Hashable, object] = {}
        self.numbers: dict[Hashable, int] = {}
        self.atoms: list[object] = []

    # ---------------------------------------------------------------- references

    def references(self, key: Hashable, node: object) -> list[Hashable] | tuple[Hashable] | None:
        """Return the keys that a node needs, with repeats, in the order of its arguments.

        A list: the node is a vertex. A tuple of one key: it is another name for that key. None: it is a small literal,
        which is now the last of ``atoms``.
        """
        kind = type(node)
        if kind is Task:
            if node.func is _EXECUTE_SUBGRAPH:  # type: ignore[attr-defined]
                self._see_fused(node)
            return _task_references(node)
        if kind is tuple and node and callable(node[0]) and type(node[0]) is not SubgraphCallable:  # type: ignore[index]
            found: list[Hashable] = []
            try:
                if _scan_legacy(node[1:], self._graph, found):  # type: ignore[index]
                    return found
            except TypeError:
                pass  # a tuple with something unhashable in it: Dask's converter knows
        if kind in _ATOM_TYPES and node not in self._graph:
            self.atoms.append(node)
            return None
        if not isinstance(node, GraphNode) and kind is not dict:
            node = convert_legacy_task(key, node, self._graph)
            if not isinstance(node, GraphNode):
                node = DataNode(key, node)
            self._converted[key] = node
        return self._node_references(node)

    def _node_references(self, node: object) -> list[Hashable] | tuple[Hashable] | None:
        if isinstance(node, Alias):
            return (_target(node),)
        if type(node) is DataNode:
            value = node.value  # type: ignore[attr-defined]
            kind = type(value)
            if kind in _ATOM_TYPES or (kind in _TEXT_TYPES and len(value) <= _ATOM_LENGTH_LIMIT):
                self.atoms.append(value)
                return None
            return []
        if isinstance(node, Task):
            return _task_references(node)
        found: list[Hashable] = []
        _scan_node(node, found)
        return found

    def _see_fused(self, node: Task) -> None:
        """Count who runs which inner graph: those of Dask's blockwise layers are shared by all blocks."""
        if _is_fused(node):
            seen = self._times_seen
            count = seen[id(node.args[0])] = seen.get(id(node.args[0]), 0) + 1
            if count == 1:
                for inner in node.args[0].values():
                    if type(inner) is Task and inner.func is _EXECUTE_SUBGRAPH:
                        self._see_fused(inner)

    # ---------------------------------------------------------------- fused nodes

    def _fused_vertex(self, key: Hashable, node: Task, inputs: tuple[int, ...]) -> Vertex | None:
        """Return a node of Dask's fusion without Dask's evaluation: a call of a shared program, or a chain.

        None where it is neither: Dask's own evaluation runs it.
        """
        inner, out, names, *given = node.args
        if not isinstance(names, tuple | list):
            return None  # Dask 2024.12 hands values over by name
        if self._times_seen.get(id(inner), 0) > 1:
            program = self._program(inner, out, tuple(names))
            if program is not None:
                called = Task(key, program, *given)
                return self._flat_vertex(key, called, inputs) or self._nested_vertex(key, called, inputs)
        if not all(isinstance(item, (Alias, TaskRef)) for item in given):
            return None
        within = Templates(inner, self)
        for name, item in zip(names, given, strict=True):
            number = self.numbers[_target(item)]
            if number < 0:
                within.atoms.append(self.atoms[~number])
                number = -len(within.atoms)
            within.numbers[name] = number
        # Numbers that no input has stand for the values along the chain.
        previous = max(0, *within.numbers.values()) + 1 if names else 0
        order = within._inner_order(out)
        if order is None:
            return None
        first, *rest = order
        within.numbers[first] = previous
        try:
            vertex = within.vertex(first, inputs)
            steps = [*(vertex.steps or ())]
            for name in rest:
                steps += steps_of(within.vertex(name, (previous,)))
                previous += 1
                within.numbers[name] = previous
        except (KeyError, ValueError):
            return None  # something needs more than the value before it
        vertex.key = key
        vertex.steps = tuple(steps) or None
        return vertex

    def _inner_order(self, out: Hashable) -> list[Hashable] | None:
        """Return the keys of an inner graph that are vertices, inputs first; None where ``out`` is not the last of them."""
        numbers, order = self.numbers, []
        found: dict[Hashable, list[Hashable] | tuple[Hashable]] = {}
        done: set[Hashable] = set(numbers)
        stack = [out]
        while stack:
            key = stack[-1]
            if key in done:
                stack.pop()
                continue
            if key not in found:
                references = self.references(key, self._graph[key])
                if references is None:
                    numbers[key] = -len(self.atoms)
                    done.add(key)
                    continue
                if type(references) is tuple:
                    return None  # another name: rare, and Dask knows
                found[key] = references
                stack += [name for name in references if name not in done]
                if stack[-1] is not key:
                    continue
            stack.pop()
            done.add(key)
            order.append(key)
        return order if order and order[-1] == out else None

    def _program(self, inner: dict[Hashable, object], out: Hashable, names: tuple[Hashable, ...]) -> Program | None:
        """Return the program of an inner graph, one object for all nodes that run it."""
        known = id(inner), out, names
        if known not in self._programs:
            within = Templates(inner, self)
            within.numbers = {name: place for place, name in enumerate(names)}
            try:
                order = within._inner_order(out)
                self._programs[known] = None if order is None else Program(within._program_steps(order, len(names)))
            except (KeyError, ValueError):
                self._programs[known] = None
        return self._programs[known]

    def _program_steps(self, order: list[Hashable], count: int) -> tuple[ProgramStep, ...]:
        """Raises ValueError when a literal is too large for a program."""
        vertices: list[Vertex] = []
        last_use: dict[int, int] = {}
        for number, key in enumerate(order):
            references = self.references(key, self._converted.get(key, self._graph[key])) or ()
            places = tuple(dict.fromkeys(place for name in references if (place := self.numbers[name]) >= 0))
            vertex = self.vertex(key, places)
            if any(getattr(item, "nbytes", 0) > _PROGRAM_LITERAL_BYTES for item in vertex.arguments):
                raise ValueError(key)
            vertices.append(vertex)
            last_use.update(dict.fromkeys(places, number))
            self.numbers[key] = count + number
        unneeded: list[list[int]] = [[] for _ in order]
        for place, number in last_use.items():
            unneeded[number].append(place)
        return tuple(
            (v.function, v.arguments, v.keywords, v.form, v.steps, v.inputs, tuple(dropped))
            for v, dropped in zip(vertices, unneeded, strict=True)
        )

    # ---------------------------------------------------------------- vertices

    def function_name(self, key: Hashable) -> str:
        """Name of the function of a node, for people; empty where it has none, or none that can be told."""
        node = self._graph[key]
        function = node[0] if type(node) is tuple and node else getattr(node, "func", None)
        try:
            return str(funcname(function)) if callable(function) else ""
        except Exception:
            return ""  # a callable that nobody can show

    def vertex(self, key: Hashable, inputs: tuple[int, ...]) -> Vertex:
        """Return the vertex of a key whose ``references`` were numbered; ``inputs`` are their numbers without repeats."""
        node = self._converted.get(key) if self._converted else None
        if node is None:
            node = self._graph[key]
        if type(node) is tuple:
            return self._legacy_vertex(key, node, inputs)
        if type(node) is DataNode:
            return Vertex(key, None, (node.value,), None, inputs, VALUE)  # type: ignore[attr-defined]
        if not isinstance(node, GraphNode):
            return Vertex(key, None, (node,), None, inputs, VALUE)
        if type(node) is Task and _is_fused(node):
            fused = self._fused_vertex(key, node, inputs)
            if fused is not None:
                return fused
        if type(node) is Task and node.func is not _IDENTITY_CAST and not node.kwargs:
            flat = self._flat_vertex(key, node, inputs)
            if flat is not None:
                return flat
        try:
            return self._nested_vertex(key, node, inputs)
        except (_NoTemplateError, TypeError):  # TypeError: an unhashable member of a set or key of a dict
            locate = _locator(inputs)
            values: Keywords = {name: self._place(self.numbers[name], locate) for name in node.dependencies}
            return Vertex(key, None, (node,), values, inputs, GRAPH_NODE)

    def _place(self, number: int, locate: Locate) -> object:
        return ref(locate(number)) if number >= 0 else self.atoms[~number]

    def _legacy_vertex(self, key: Hashable, node: tuple[object, ...], inputs: tuple[int, ...]) -> Vertex:
        function: Callable[..., object] = node[0]  # type: ignore[assignment]
        arguments = node[1:]
        numbers = self.numbers
        count = len(inputs)
        if count == len(arguments) and count < len(IN_ORDER):
            try:
                # As many inputs as arguments: if all are known names, all are references.
                if tuple(map(numbers.get, arguments)) == inputs:
                    return Vertex(key, function, IN_ORDER[count], None, inputs, FLAT)
            except TypeError:
                pass  # an unhashable argument
        elif count == 0 and not self.atoms:
            return Vertex(key, function, arguments, None, inputs, FLAT)
        items, changed = self._legacy_items(arguments, _locator(inputs))
        if not changed:
            return Vertex(key, function, tuple(items), None, inputs, FLAT)
        return Vertex(key, function, tuple(map(_guarded, items, arguments)), None, inputs, NESTED)

    def _legacy_items(self, items: Iterable[object], locate: Locate) -> tuple[list[object], bool]:
        """Return arguments with references replaced, and whether a container among them was changed."""
        out: list[object] = []
        changed = False
        for item in items:
            kind = type(item)
            if kind in _KEY_TYPES and (number := self.numbers.get(item)) is not None:
                out.append(self._place(number, locate))
            elif kind is list or kind is tuple:
                template = self._legacy_container(item, locate)  # type: ignore[arg-type]
                changed = changed or template is not item
                out.append(template)
            else:
                out.append(item)
        return out, changed

    def _legacy_container(self, container: list[object] | tuple[object, ...], locate: Locate) -> object:
        """Return the container itself when nothing in it is a reference, else its template."""
        items, changed = self._legacy_items(container, locate)
        if not changed and all(new is old for new, old in zip(items, container, strict=True)):
            return container
        guarded = list(map(_guarded, items, container))
        return _as_list(guarded) if type(container) is list else tuple(guarded)

    def _flat_vertex(self, key: Hashable, node: Task, inputs: tuple[int, ...]) -> Vertex | None:
        """Return the vertex of a Task whose arguments are literals and references only, else None."""
        numbers = self.numbers
        arguments: list[object] = []
        places: list[int] = []
        locate = _locator(inputs)
        for item in node.args:
            kind = type(item)
            if kind is TaskRef or kind is Alias:
                number = numbers[item.key if kind is TaskRef else _target(item)]
                places.append(number)
                arguments.append(self._place(number, locate))
            elif isinstance(item, (GraphNode, TaskRef)):
                return None
            else:
                arguments.append(item)
        template = tuple(arguments)
        if len(places) == len(template) < len(IN_ORDER) and tuple(places) == inputs:
            template = IN_ORDER[len(places)]
        return Vertex(key, node.func, template, None, inputs, FLAT)

    def _nested_vertex(self, key: Hashable, node: object, inputs: tuple[int, ...]) -> Vertex:
        template = self._template(node, _locator(inputs))
        if type(template) is Call:
            return Vertex(key, template.function, template.arguments, template.keywords, inputs, NESTED)
        return Vertex(key, give, (template,), None, inputs, NESTED)

    def _template(self, node: object, locate: Locate) -> object:
        """Return the template of a node inside a node.

        Raises:
            _NoTemplateError: the node's class has an evaluation of its own.
            TypeError: a member of a set or a key of a dict cannot be hashed.
        """
        kind = type(node)
        if isinstance(node, (Alias, TaskRef)):
            return self._place(self.numbers[_target(node)], locate)
        if not isinstance(node, GraphNode):
            return _quoted(node)
        if kind is DataNode:
            return _quoted(node.value)
        if kind is Dict:
            return self._dict_template(node, locate)
        if not isinstance(node, Task) or kind.__call__ is not Task.__call__:
            raise _NoTemplateError
        items = [self._template(item, locate) for item in node.args]
        container = _CONTAINERS.get(kind)
        if container is None and node.func is _IDENTITY_CAST:
            cast = node.kwargs["typ"]
            cast = cast.value if isinstance(cast, DataNode) else cast
            container = cast if cast in _CAST_TYPES else None
        if container is list:
            return _as_list(items)
        if container is not None:
            return container(items)
        keywords = {name: self._template(item, locate) for name, item in node.kwargs.items()}
        return Call(node.func, tuple(items), keywords or None)

    def _dict_template(self, node: Dict, locate: Locate) -> object:
        if _DICT_IS_FLAT:
            items = [self._template(item, locate) for item in node.args]
            return dict(zip(items[::2], items[1::2], strict=True))
        return {self._template(pair.args[0], locate): self._template(pair.args[1], locate) for pair in node.args}


def _guarded(template: object, original: object) -> object:
    """Protect what stayed a literal from being walked in a NESTED template."""
    return _quoted(template) if template is original else template


def _locator(inputs: tuple[int, ...]) -> Locate:
    if len(inputs) <= 8:
        return inputs.index
    return dict(zip(inputs, range(len(inputs)), strict=True)).__getitem__

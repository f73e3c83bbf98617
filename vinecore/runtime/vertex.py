"""What runs for one vertex of a graph, and the compact form in which pieces of a graph travel.

A vertex is a function with a *template* of its arguments, in which a ``Ref`` stands for an input. The form says how much work
filling the template is: ``FLAT`` (Refs at top level only), ``NESTED`` (anywhere), ``VALUE`` (no call at all), ``GRAPH_NODE`` (an
object that evaluates itself from a mapping of keys to values). A vertex may carry *steps*: further calls of a linear chain that
was fused into it; each step has exactly one input, the value before it, so its ``Ref(0)`` is that value.

Data enters as vertices in the user's process (``pack_vertex``) and leaves as values in a slot (``run_packed``). Functions are
never part of a packed vertex unless a template calls one deep inside: they are numbers into a table that travels apart.
This module must never import anything but the standard library: it is loaded in every slot.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn, TypeAlias

FLAT = 0  # arguments are literals or Refs, no keywords
NESTED = 1  # Refs anywhere inside exact lists, tuples, dicts, sets, Calls and keywords
VALUE = 2  # arguments == (value,), function is None
GRAPH_NODE = 3  # arguments == (node,), keywords maps the node's keys to Refs or values; the result is node({key: value})

Function: TypeAlias = Callable[..., object]
Keywords: TypeAlias = dict[Hashable, object]
Step: TypeAlias = tuple[Function | None, tuple[object, ...], Keywords | None, int]
# int: call that function with the inputs in order; list: a chain of packed steps; tuple: its length says what is in it,
# (value,), (number, arguments), (number, literals, pattern of Refs) or (number, arguments, keywords, form).
Packed: TypeAlias = int | tuple[Any, ...] | list[Any]

# A bound on the table of shared patterns; when it is passed the table starts anew and only sharing is lost.
_PATTERN_LIMIT = 4096


class Ref:
    """Stands in a template for the vertex's input number ``position``; immutable, compares by position."""

    __slots__ = ("position",)
    position: int

    def __init__(self, position: int) -> None:
        object.__setattr__(self, "position", position)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Ref is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Ref is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self.position == other.position if type(other) is Ref else NotImplemented

    def __hash__(self) -> int:
        return hash((Ref, self.position))

    def __reduce__(self) -> tuple[type[Ref], tuple[int]]:
        return Ref, (self.position,)

    def __repr__(self) -> str:
        return f"Ref({self.position})"


# One object for each low position: within one pickle the second mention of an object costs two bytes.
_SHARED_REFS = tuple(Ref(position) for position in range(64))
# Argument templates that are exactly the inputs in order; pack_vertex recognises them by identity.
IN_ORDER: tuple[tuple[object, ...], ...] = tuple(_SHARED_REFS[:count] for count in range(17))


def ref(position: int) -> Ref:
    """Return the Ref of a position, a shared one where there is one."""
    return _SHARED_REFS[position] if position < len(_SHARED_REFS) else Ref(position)


class Span:
    """Stands in a template for the list of inputs ``start`` to ``stop``: one object instead of a Ref for each."""

    __slots__ = ("start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop

    def __reduce__(self) -> tuple[type[Span], tuple[int, int]]:
        return Span, (self.start, self.stop)

    def __repr__(self) -> str:
        return f"Span({self.start}, {self.stop})"


class Quote:
    """A literal container inside a NESTED template: taken as it is, never walked or copied."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type[Quote], tuple[object]]:
        return Quote, (self.value,)

    def __repr__(self) -> str:
        return f"Quote({self.value!r})"


class Call:
    """A call inside a NESTED template: its own arguments are filled first, its result takes its place."""

    __slots__ = ("arguments", "function", "keywords")

    def __init__(self, function: Function, arguments: tuple[object, ...], keywords: Keywords | None = None) -> None:
        self.function = function
        self.arguments = arguments
        self.keywords = keywords

    def __reduce__(self) -> tuple[type[Call], tuple[Function, tuple[object, ...], Keywords | None]]:
        return Call, (self.function, self.arguments, self.keywords)

    def __repr__(self) -> str:
        return f"Call({self.function!r}, {self.arguments!r}, {self.keywords!r})"


class Vertex:
    """One vertex: what to call, with which template, on which other vertices' values."""

    __slots__ = ("arguments", "form", "function", "inputs", "key", "keywords", "steps")

    def __init__(
        self,
        key: Hashable,
        function: Function | None,
        arguments: tuple[object, ...],
        keywords: Keywords | None,
        inputs: tuple[int, ...],
        form: int,
        steps: tuple[Step, ...] | None = None,
    ) -> None:
        self.key = key
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.inputs = inputs
        self.form = form
        self.steps = steps

    def __repr__(self) -> str:
        steps = f", {len(self.steps)} steps" if self.steps else ""
        return f"Vertex({self.key!r}, {self.function!r}, {self.arguments!r}, inputs={self.inputs}, form={self.form}{steps})"


ProgramStep: TypeAlias = tuple[
    Function | None, tuple[object, ...], Keywords | None, int, tuple[Step, ...] | None, tuple[int, ...], tuple[int, ...]
]


class Program:
    """A small graph as one function: steps in order, each on arguments and earlier results; the last result is the value.

    steps: the parts of a vertex, then the places of its inputs (arguments first, then results in order), then the places whose
    values nobody reads after it.
    """

    __slots__ = ("__weakref__", "steps")

    def __init__(self, steps: tuple[ProgramStep, ...]) -> None:
        self.steps = steps

    def __call__(self, *arguments: object) -> object:
        values = [*arguments]
        for function, template, keywords, form, more, places, unneeded in self.steps:
            values.append(evaluate(function, template, keywords, form, more, [values[place] for place in places]))
            for place in unneeded:
                values[place] = None
        return values[-1]

    def __reduce__(self) -> tuple[type[Program], tuple[tuple[ProgramStep, ...]]]:
        return Program, (self.steps,)

    def functions(self) -> list[Function]:
        """What it calls, those inside nested programs too."""
        found: list[Function] = []
        for function, _, _, _, more, _, _ in self.steps:
            for called in (function, *(step[0] for step in more or ())):
                found += called.functions() if isinstance(called, Program) else [called] if called is not None else []
        return found


def give(value: object) -> object:
    """Return the argument: the function of a vertex whose value is a container of other values."""
    return value


# ---------------------------------------------------------------- filling templates


def _fill_dict(template: dict[object, object], inputs: Sequence[object]) -> object:
    return {_fill(key, inputs): _fill(value, inputs) for key, value in template.items()}


def _fill_call(template: Call, inputs: Sequence[object]) -> object:
    return _call(template.function, template.arguments, template.keywords, inputs)


_FILLERS: dict[type, Callable[..., object]] = {
    Ref: lambda template, inputs: inputs[template.position],
    list: lambda template, inputs: [_fill(item, inputs) for item in template],
    tuple: lambda template, inputs: tuple([_fill(item, inputs) for item in template]),
    set: lambda template, inputs: {_fill(item, inputs) for item in template},
    frozenset: lambda template, inputs: frozenset([_fill(item, inputs) for item in template]),
    Span: lambda template, inputs: list(inputs[template.start : template.stop]),
    Quote: lambda template, inputs: template.value,
    dict: _fill_dict,
    Call: _fill_call,
}


def _fill(template: object, inputs: Sequence[object]) -> object:
    filler = _FILLERS.get(type(template))
    return template if filler is None else filler(template, inputs)


def _call(function: Function, arguments: tuple[object, ...], keywords: Keywords | None, inputs: Sequence[object]) -> object:
    filled = [_fill(item, inputs) for item in arguments]
    if not keywords:
        return function(*filled)
    return function(*filled, **{str(name): _fill(item, inputs) for name, item in keywords.items()})


def evaluate(
    function: Function | None,
    arguments: tuple[object, ...],
    keywords: Keywords | None,
    form: int,
    steps: tuple[Step, ...] | None,
    inputs: Sequence[object],
) -> object:
    """Compute a vertex from its parts and the values of its inputs, in the order of ``Vertex.inputs``.

    Raises:
        Exception: whatever the user's functions raise.
    """
    value: object
    if form == FLAT and function is not None:
        value = function(*[inputs[item.position] if type(item) is Ref else item for item in arguments])
    elif form == NESTED and function is not None:
        value = _call(function, arguments, keywords, inputs)
    elif form == GRAPH_NODE:
        node = arguments[0]
        assert callable(node)
        value = node({key: _fill(item, inputs) for key, item in (keywords or {}).items()})
    else:
        value = arguments[0]
    if steps is not None:
        for step in steps:
            value = evaluate(*step, None, (value,))
    return value


# ---------------------------------------------------------------- packed vertices

_patterns: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}


def pack_vertex(vertex: Vertex, function_number: int, step_numbers: Sequence[int] = ()) -> Packed:
    """Encode a vertex for ``run_packed``.

    Args:
        vertex: the vertex; its key and the numbers of its inputs are not part of the encoding.
        function_number: place of ``vertex.function`` in the table that ``run_packed`` will get (ignored where there is none).
        step_numbers: the same for the function of each step.

    Raises:
        ValueError: there is not exactly one number for each step.
    """
    first = _pack_step(vertex.arguments, vertex.keywords, vertex.form, function_number, len(vertex.inputs))
    if vertex.steps is None:
        return first
    packed: list[Any] = [first]
    for (_, arguments, keywords, form), number in zip(vertex.steps, step_numbers, strict=True):
        packed.append(_pack_step(arguments, keywords, form, number, 1))
    return packed


def _pack_step(
    arguments: tuple[Any, ...], keywords: Keywords | None, form: int, number: int, input_count: int
) -> int | tuple[Any, ...]:
    if form == FLAT:
        # The commonest vertex costs three bytes. The empty tuple is one object everywhere, so identity alone is not enough.
        if len(arguments) == input_count < len(IN_ORDER) and arguments is IN_ORDER[input_count]:
            return number
        pattern = tuple([(place, item.position) for place, item in enumerate(arguments) if type(item) is Ref])
        if not pattern:
            return number, arguments
        shared = _patterns.get(pattern)
        if shared is None:
            if len(_patterns) >= _PATTERN_LIMIT:
                _patterns.clear()
            shared = _patterns[pattern] = pattern
        return number, tuple([None if type(item) is Ref else item for item in arguments]), shared
    if form == VALUE:
        return arguments
    return number, arguments, keywords, form


def run_packed(packed: Packed, functions: Mapping[int, Function] | Sequence[Function], inputs: Sequence[object]) -> object:
    """Compute a packed vertex.

    Args:
        packed: what ``pack_vertex`` returned.
        functions: the table that the numbers in it point into.
        inputs: values in the order of ``Vertex.inputs``.

    Raises:
        Exception: whatever the user's functions raise.
    """
    if isinstance(packed, int):
        return functions[packed](*inputs)
    if isinstance(packed, list):
        value = run_packed(packed[0], functions, inputs)
        for step in packed[1:]:
            value = functions[step](value) if type(step) is int else run_packed(step, functions, (value,))
        return value
    size = len(packed)
    if size == 3:
        number, literals, pattern = packed
        arguments = [*literals]
        for place, position in pattern:
            arguments[place] = inputs[position]
        return functions[number](*arguments)
    if size == 2:
        return functions[packed[0]](*packed[1])
    if size == 1:
        return packed[0]
    number, template, keywords, form = packed
    return evaluate(functions[number] if form == NESTED else None, template, keywords, form, None, inputs)


# ---------------------------------------------------------------- what plain pickle can carry

_PLAIN_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None), type(...), range, Ref, Span})
_PLAIN_CONTAINERS = frozenset({tuple, list, dict, set, frozenset, slice, Quote})


def is_plain(obj: object) -> bool:
    """Tell whether plain pickle is safe: only exact builtin atoms and containers of them (and our own placeholders).

    Functions, classes and instances of other classes are not plain: they may live in ``__main__``, which only
    cloudpickle can send. Containers that hold themselves are fine.
    """
    if type(obj) in _PLAIN_ATOMS:
        return True
    if type(obj) not in _PLAIN_CONTAINERS:
        return False
    pending = [obj]
    seen = {id(obj)}
    for container in pending:  # grows while it is walked: a stack without recursion
        items: Sequence[object]
        if isinstance(container, dict):
            items = [*chain.from_iterable(container.items())]
        elif isinstance(container, slice):
            items = (container.start, container.stop, container.step)
        elif isinstance(container, Quote):
            items = (container.value,)
        else:
            items = container  # type: ignore[assignment]
        kinds = set(map(type, items))
        if kinds <= _PLAIN_ATOMS:
            continue
        if not kinds <= _PLAIN_ATOMS | _PLAIN_CONTAINERS:
            return False
        for item in items:
            if type(item) in _PLAIN_CONTAINERS and id(item) not in seen:
                seen.add(id(item))
                pending.append(item)
    return True

"""Random graphs of all node kinds give what Dask's synchronous scheduler gives."""

from __future__ import annotations

import dask.local
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st

from daskvine.graph import FUSED_CALLS_LIMIT, Plan
from vinecore.runtime.vertex import evaluate, pack_vertex, run_packed

LITERALS = st.one_of(
    st.integers(1000, 1005),
    st.sampled_from(["text", "", None, 2.5, b"key-0", (), (7, "u"), [], [1, [2]], {"d": "key-0"}, slice(1, 2)]),
)


def show(*arguments: object, **keywords: object) -> tuple[object, ...]:
    """Return something that tells apart any two argument lists; small enough to repeat along a graph."""
    text = repr((arguments, sorted(keywords.items())))
    return (text if len(text) < 400 else hash_text(text),)


def hash_text(text: str) -> str:
    return f"{sum(ord(letter) * (place + 1) for place, letter in enumerate(text))}:{len(text)}"


def legacy_argument(known: list[object]) -> st.SearchStrategy[object]:
    simple = st.one_of(LITERALS, st.sampled_from(known)) if known else LITERALS
    return st.recursive(
        simple,
        lambda inner: st.one_of(
            st.lists(inner, max_size=6),
            st.lists(inner, max_size=3).map(tuple),
            st.lists(inner, max_size=3).map(lambda items: (show, *items)),
            st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        ),
        max_leaves=6,
    )


def node_argument(known: list[object]) -> st.SearchStrategy[object]:
    references = st.sampled_from(known).flatmap(lambda key: st.sampled_from([TaskRef(key), Alias(key)])) if known else LITERALS
    return st.recursive(
        st.one_of(LITERALS, references, LITERALS.map(lambda value: DataNode(None, value))),
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=6).map(lambda items: List(*items)),
            st.lists(inner, min_size=2, max_size=3).map(lambda items: Tuple(*items)),
            st.dictionaries(st.sampled_from(["a", "b"]), inner, min_size=1, max_size=2).map(lambda items: Dict(items)),
            st.lists(inner, max_size=3).map(lambda items: Task("inner", show, *items)),
        ),
        max_leaves=6,
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[object, object], object]:
    keys: list[object] = [*[f"key-{number}" for number in range(5)], *[("t", number) for number in range(5)], 11, 12, 13.5]
    keys = draw(st.permutations(keys))[: draw(st.integers(1, len(keys)))]
    dsk: dict[object, object] = {}
    for key in keys:
        known = list(dsk)
        kind = draw(st.sampled_from(["legacy", "legacy", "task", "task", "chain", "literal", "alias", "list", "data"]))
        if kind == "chain" and known:
            dsk[key] = draw(st.sampled_from([(show, known[-1]), Task(key, show, TaskRef(known[-1]))]))
        elif kind == "legacy":
            dsk[key] = (show, *draw(st.lists(legacy_argument(known), max_size=4)))
        elif kind == "task":
            keywords = draw(st.dictionaries(st.sampled_from(["p", "q"]), node_argument(known), max_size=1))
            dsk[key] = Task(key, show, *draw(st.lists(node_argument(known), max_size=4)), **keywords)
        elif kind == "alias" and known:
            target = draw(st.sampled_from(known))
            dsk[key] = draw(st.sampled_from([target, Alias(key, target)]))
        elif kind == "list":
            dsk[key] = draw(st.lists(legacy_argument(known), max_size=3))
        elif kind == "data":
            dsk[key] = DataNode(key, draw(LITERALS))
        else:
            dsk[key] = draw(LITERALS)
    wanted = draw(st.lists(st.one_of(st.sampled_from(keys), st.lists(st.sampled_from(keys), max_size=3)), max_size=4))
    shuffled = {key: dsk[key] for key in draw(st.permutations(keys))}
    return shuffled, draw(st.sampled_from([wanted, keys[-1]]))


def answered_by_dask(keys: object) -> bool:
    """Dask's scheduler refuses an empty request; ours answers it."""
    return keys != [] and not (isinstance(keys, list) and all(key == [] for key in keys))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(graphs())
def test_random_graphs_give_what_dask_gives(case: tuple[dict[object, object], object]) -> None:
    dsk, keys = case
    plan = Plan(dsk, keys)
    values: list[object] = []
    for number in range(len(plan)):
        vertex = plan.vertex(number)
        assert vertex.inputs == plan.inputs[number] and all(other < number for other in vertex.inputs)
        inputs = [values[other] for other in vertex.inputs]
        value = evaluate(vertex.function, vertex.arguments, vertex.keywords, vertex.form, vertex.steps, inputs)
        steps = vertex.steps or ()
        packed = pack_vertex(vertex, 0, range(1, len(steps) + 1))
        assert repr(run_packed(packed, [vertex.function, *(step[0] for step in steps)], inputs)) == repr(value)  # type: ignore[list-item]
        values.append(value)
        # What could have been fused was.
        if len(vertex.inputs) == 1 and (other := vertex.inputs[0]) not in plan.requested and len(plan.consumers[other]) == 1:
            assert len(plan.vertex(other).steps or ()) == FUSED_CALLS_LIMIT - 1
    for number, consumers in enumerate(plan.consumers):
        assert consumers or number in plan.requested
    if answered_by_dask(keys):
        assert repr(plan.pack(values.__getitem__)) == repr(dask.local.get_sync(dsk, keys))

"""Nodes that Dask fused, nested and shared at random, give what Dask's own evaluation of them gives."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from dask import local
from dask._task_spec import Alias, DataNode, List, Task, TaskRef, _execute_subgraph
from hypothesis import given, settings
from hypothesis import strategies as st

from daskvine.graph import Plan
from vinecore.runtime.vertex import Program, evaluate, pack_vertex, run_packed


def show(*arguments: object, **keywords: object) -> str:
    """Tells any two argument lists apart, in bounded length."""
    text = repr((arguments, sorted(keywords.items())))
    return text if len(text) < 300 else f"{sum(ord(letter) * (place + 1) for place, letter in enumerate(text))}:{len(text)}"


@st.composite
def inner_graph(draw: st.DrawFn, outside: list[str], depth: int) -> tuple[dict[Any, Any], str, list[str]]:
    """A graph with one end, that refers to names from outside: (nodes, key of the end, names)."""
    nodes: dict[Any, Any] = {}
    prefix = f"i{depth}-"
    for number in range(draw(st.integers(1, 5))):
        key = f"{prefix}{number}"
        known = [*outside, *nodes]
        # The first reference goes to the node before, so that there is one end.
        chosen = [f"{prefix}{number - 1}"] if number else []
        chosen += draw(st.lists(st.sampled_from(known), max_size=2)) if known else []
        references = [TaskRef(name) for name in chosen]
        kind = draw(st.sampled_from(["flat", "flat", "nested", "keywords", "data", "nested fusion"]))
        if kind == "nested" and references:
            nodes[key] = Task(key, show, List(*references), 5, Task(None, show, references[0]))
        elif kind == "keywords" and references:
            nodes[key] = Task(key, show, *references[1:], last=references[0])
        elif kind == "data" and not number:
            nodes[key] = DataNode(key, draw(st.sampled_from([7, "text", [1, 2], {"a": 1}])))
        elif kind == "nested fusion" and depth and chosen:
            deeper, out, names = draw(inner_graph(sorted(set(chosen)), depth - 1))
            nodes[key] = Task(key, _execute_subgraph, deeper, out, tuple(names), *map(TaskRef, names))
            if number and chosen[0] not in names:
                nodes[key] = Task(key, show, references[0], number)
        else:
            nodes[key] = Task(key, show, *references, draw(st.sampled_from([number, "i0-0", None])))
    used = {name for node in nodes.values() for name in node.dependencies} & set(outside)
    return nodes, f"{prefix}{len(nodes) - 1}", sorted(used)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[Any, Any], list[str]]:
    names = ["x", "y", "z"]
    graph: dict[Any, Any] = {
        "a": 1,
        "b": (show, "a"),
        "c": Task("c", show, TaskRef("b")),
        "d": Alias("d", "b"),
        "e": DataNode("e", [5, 6]),
    }
    keys: list[str] = []
    for number in range(draw(st.integers(1, 3))):
        inner, out, used = draw(inner_graph(names, 2))
        for copy in range(draw(st.integers(1, 3))):
            key = f"fused-{number}-{copy}"
            values = st.sampled_from([*map(TaskRef, "abcde"), 9])
            given = draw(st.lists(values, min_size=len(used), max_size=len(used)))
            graph[key] = Task(key, _execute_subgraph, inner, out, tuple(used), *given)
            keys.append(key)
    graph["last"] = Task("last", show, *map(TaskRef, keys))
    graph["chain"] = Task("chain", show, TaskRef(keys[-1]))
    return graph, draw(st.sampled_from([["last", "chain"], ["chain"], [*keys, "c"]]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(graphs())
def test_fused_nodes_give_what_dask_gives(case: tuple[dict[Any, Any], list[str]]) -> None:
    graph, keys = case
    plan = Plan(graph, keys)
    values: list[object] = []
    for number in range(len(plan)):
        vertex = plan.vertex(number)
        functions = [vertex.function, *(step[0] for step in vertex.steps or ())]
        packed = pickle.loads(pickle.dumps(pack_vertex(vertex, 0, range(1, len(functions)))))
        here = [pickle.loads(pickle.dumps(function)) for function in functions]
        values.append(run_packed(packed, here, [values[other] for other in vertex.inputs]))
    assert plan.pack(values.__getitem__) == local.get_sync(graph, keys)


@pytest.mark.parametrize("second", [["k0", "x"], ["k0", "y"], ["k0"]], ids=str)
@pytest.mark.parametrize("third", [["k1", "x"], ["k1", "y"], ["k1"]], ids=str)
def test_chains_and_what_only_looks_like_one(second: list[str], third: list[str]) -> None:
    """Whatever the numbers of the inputs are: a later step may need an input, or a literal, besides the value before it."""
    inner = {
        "k0": Task("k0", show, TaskRef("x")),
        "k1": Task("k1", show, *map(TaskRef, second)),
        "k2": Task("k2", show, *map(TaskRef, third)),
    }
    names = ("x", "y")
    graph: dict[Any, Any] = {"a": 1, "b": 2, **{f"v{number}": (show, number + 10) for number in range(6)}}
    for x in ["a", "b", *[f"v{number}" for number in range(6)]]:
        for y in ["a", "b", "v1", "v3", "v5"]:
            asked = {**graph, "z": Task("z", _execute_subgraph, inner, "k2", names, TaskRef(x), TaskRef(y))}
            keys = [f"v{number}" for number in range(6)] + ["z"]
            plan = Plan(asked, keys)
            values: list[object] = []
            for number in range(len(plan)):
                vertex = plan.vertex(number)
                inputs = [values[other] for other in vertex.inputs]
                values.append(evaluate(vertex.function, vertex.arguments, vertex.keywords, vertex.form, vertex.steps, inputs))
            assert plan.pack(values.__getitem__) == local.get_sync(asked, keys), (x, y)
            if (second, third) == (["k0"], ["k1"]):
                assert vertex.function is show and len(vertex.steps or ()) == 2


def test_blocks_share_one_program_and_chains_need_no_dask() -> None:
    import dask.array as da
    import numpy as np

    x = da.from_array(np.arange(12.0), chunks=3)
    y = (x + 1) * x[::-1] - x
    graph = dict(y.__dask_optimize__(y.__dask_graph__(), y.__dask_keys__()))
    plan = Plan(graph, y.__dask_keys__())
    vertices = [plan.vertex(number) for number in range(len(plan))]
    called = [f for v in vertices for f in (v.function, *(step[0] for step in v.steps or ()))]
    assert _execute_subgraph not in called
    programs = {id(function) for function in called if isinstance(function, Program)}
    assert len(programs) == 1


def test_values_that_nobody_reads_any_more_are_dropped() -> None:
    alive: list[int] = []

    class Tracked:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def make(*inputs: object) -> Tracked:
        counts.append(len(alive))
        return Tracked()

    counts: list[int] = []
    inner = {f"k{n}": Task(f"k{n}", make, *([TaskRef(f"k{n - 1}")] if n else []), TaskRef("x")) for n in range(20)}
    graph = {f"f{n}": Task(f"f{n}", _execute_subgraph, inner, "k19", ("x",), TaskRef("x")) for n in range(2)} | {"x": (show, 1)}
    plan = Plan(graph, ["f0", "f1"])
    (program,) = {plan.vertex(number).function for number in range(len(plan))} - {show}
    assert isinstance(program, Program) and program.functions() == [make] * 20
    value = program("x")
    assert max(counts) <= 2 and len(alive) == 1
    del value
    assert not alive

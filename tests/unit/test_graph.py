"""Dask graphs become vertices that compute what Dask's own synchronous scheduler computes."""

from __future__ import annotations

import functools
import operator
import pickle
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence

import cloudpickle
import dask
import dask.local
import pytest
from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Set, Task, TaskRef, Tuple
from dask.highlevelgraph import HighLevelGraph

from daskvine.graph import FUSED_CALLS_LIMIT, Plan
from vinecore.errors import MissingKeyError, UsageError
from vinecore.runtime.vertex import (
    FLAT,
    GRAPH_NODE,
    IN_ORDER,
    NESTED,
    VALUE,
    Call,
    Quote,
    Ref,
    Span,
    Vertex,
    evaluate,
    is_plain,
    pack_vertex,
    ref,
    run_packed,
)

Pair = namedtuple("Pair", "left right")


def inc(value: int) -> int:
    return value + 1


def add(left: int, right: int) -> int:
    return left + right


def show(*arguments: object, **keywords: object) -> tuple[object, ...]:
    return ("show", arguments, tuple(sorted(keywords.items())))


def run(dsk: object, keys: object) -> object:
    """Evaluate a plan twice, vertex by vertex and packed, and check that both agree."""
    plan = Plan(dsk, keys)
    direct: list[object] = []
    packed: list[object] = []
    functions: list[Callable[..., object]] = []

    def number(function: object) -> int:
        functions.append(function)  # type: ignore[arg-type]
        return len(functions) - 1

    for index in range(len(plan)):
        vertex = plan.vertex(index)
        assert vertex.key == plan.order[index]
        assert vertex.inputs == plan.inputs[index]
        assert len(set(vertex.inputs)) == len(vertex.inputs)
        assert all(other < index for other in vertex.inputs)
        direct.append(
            evaluate(
                vertex.function,
                vertex.arguments,
                vertex.keywords,
                vertex.form,
                vertex.steps,
                [direct[other] for other in vertex.inputs],
            )
        )
        parts = pack_vertex(vertex, number(vertex.function), [number(step[0]) for step in vertex.steps or ()])
        parts = (pickle if is_plain(parts) else cloudpickle).loads((pickle if is_plain(parts) else cloudpickle).dumps(parts))
        packed.append(run_packed(parts, functions, [packed[other] for other in vertex.inputs]))
    assert_consistent(plan)
    result = plan.pack(direct.__getitem__)
    assert repr(result) == repr(plan.pack(dict(enumerate(packed))))
    return result


def assert_consistent(plan: Plan) -> None:
    consumers: list[list[int]] = [[] for _ in plan.order]
    for number, inputs in enumerate(plan.inputs):
        for other in inputs:
            consumers[other].append(number)
    assert plan.consumers == consumers
    assert len(set(plan.requested)) == len(plan.requested)
    # Culling: whatever nobody needs was asked for.
    assert all(consumers[number] or number in plan.requested for number in range(len(plan)))


def same_as_dask(dsk: object, keys: object) -> object:
    result = run(dsk, keys)
    expected = dask.local.get_sync(dsk, keys)
    assert result == expected
    assert repr(result) == repr(expected)
    return result


# ---------------------------------------------------------------- legacy graphs


@pytest.mark.parametrize(
    ("dsk", "keys", "expected"),
    [
        ({"x": 1, "y": (inc, "x")}, "y", 2),
        ({"x": 1, "y": (inc, "x")}, ["x", "y"], (1, 2)),
        ({("x", 0): 1, ("x", 1): (add, ("x", 0), 10)}, [[("x", 1)], ("x", 0)], ((11,), 1)),
        ({"a": (add, (inc, 1), (inc, (inc, 2)))}, "a", 6),
        ({"x": (inc, 1), "y": (sum, ["x", "x", 5, ["x"][0]])}, "y", 11),
        ({"x": 1, "y": "x", "z": "y", "w": (inc, "z")}, ["w", "z"], (2, 1)),
        ({"x": [1, 2], "y": "x", "w": (sum, "y")}, ["w", "y", "x"], (3, [1, 2], [1, 2])),
        ({"x": (inc, 1), "y": ["x", 3, ["x"]]}, "y", [2, 3, [2]]),
        ({"x": (inc, 1), "y": (show, {"k": "x"})}, "y", ("show", ({"k": "x"},), ())),
        ({"x": (inc, 1), "y": (show, ("x", 7), ((2, 3), "x"))}, "y", ("show", ((2, 7), ((2, 3), 2)), ())),
        ({"x": (inc, 1), "y": (sorted, {"x", 9})}, "y", [2, 9]),
        ({"x": (inc, 1), "y": (show, frozenset(["x"]))}, "y", ("show", (frozenset([2]),), ())),
        ({"x": (inc, 1), "y": (show, Pair("x", 4))}, "y", ("show", (Pair(2, 4),), ())),
        ({"x": (inc, 1), "y": (show, slice("x", None), None, b"x", 1.5)}, "y", ("show", (slice("x", None), None, b"x", 1.5), ())),
        ({7: (inc, 1), "y": (show, 7, 7.0, "7")}, "y", ("show", (2, 2, "7"), ())),
        ({1: (inc, 1000), "y": (show, True, [True])}, "y", ("show", (1001, [1001]), ())),
        ({"f": inc, "y": (operator.call, "f", 4)}, "y", 5),
        ({"x": (list, (range, 3)), "y": (show, "x", "x")}, "y", ("show", ([0, 1, 2], [0, 1, 2]), ())),
        ({"x": (dict,), "y": (show, (), [], "x")}, "y", ("show", ((), [], {}), ())),
        ({"x": (inc, 1), "y": (show, ("x", [1]), (inc, "x"))}, "y", ("show", ((2, [1]), 3), ())),
        ({"x": None, "y": (show, "x", ["x"])}, ["y", "x"], (("show", (None, [None]), ()), None)),
        ({"x": "x" * 300, "y": (len, "x"), "z": (len, "x")}, ["y", "z"], (300, 300)),
        ({"x": {"a": 1}, "y": (show, "x")}, "y", ("show", ({"a": 1},), ())),
        ({"x": (1, 2), "y": (sum, "x")}, ["x", "y"], ((1, 2), 3)),
        ({"x": (inc, 1)}, [], ()),
        ({"x": (inc, 1)}, [[], ["x", "x"]], ((), (2, 2))),
    ],
)
def test_legacy_graphs(dsk: dict[object, object], keys: object, expected: object) -> None:
    if keys not in ([], [[], ["x", "x"]]):
        same_as_dask(dsk, keys)
    assert run(dsk, keys) == expected


def test_a_nested_task_is_a_task_even_where_a_key_equals_it() -> None:
    dsk = {(inc, 1): 100, "y": (show, (inc, 1))}
    assert same_as_dask(dsk, "y") == ("show", (2,), ())


def test_a_literal_that_equals_a_key_is_a_reference() -> None:
    dsk = {"a": "hello", "hello": (inc, 41), "b": (show, "a", "hello", "other")}
    assert same_as_dask(dsk, ["a", "b"]) == (42, ("show", (42, 42, "other"), ()))


# ---------------------------------------------------------------- task nodes


@pytest.mark.parametrize(
    "node",
    [
        Task("y", show, TaskRef("x"), 1, TaskRef("x")),
        Task("y", show, Alias("x"), key=TaskRef("z"), other=[1]),
        Task("y", show, ["x", 1], {"k": "x"}, ("x",)),
        Task("y", show, List(TaskRef("x"), 1, [2]), Tuple(TaskRef("x"), TaskRef("z")), Dict({"k": TaskRef("z"), "l": [1]})),
        Task("y", show, List(TaskRef("x"), TaskRef("z"), TaskRef("w"), TaskRef("v"), TaskRef("u")), TaskRef("w")),
        Task("y", sorted, Set(TaskRef("x"), TaskRef("z"), 77)),
        Task("y", show, Task("inner", add, TaskRef("x"), Task(None, inc, TaskRef("z")))),
        Task("y", show, DataNode(None, [1, 2]), TaskRef("x"), List(DataNode(None, [5]), TaskRef("x"))),
        Task("y", show, List(), Dict({}), Tuple()),
        Task("y", show, List(Task(None, inc, 1))),
        List(TaskRef("x"), TaskRef("z")),
        Dict({"k": TaskRef("x"), ("a", 1): List(TaskRef("z"))}),
        Tuple(TaskRef("x"), "x"),
        DataNode("y", [1, 2]),
        DataNode("y", 5),
        DataNode("y", "x"),
        Alias("y", "x"),
        Task("y", functools.partial(show, 1), TaskRef("x")),
    ],
    ids=lambda node: type(node).__name__,
)
def test_task_nodes(node: GraphNode) -> None:
    others = {name: Task(name, inc, index) for index, name in enumerate("uvwxz")}
    same_as_dask({**others, "y": node}, "y")
    same_as_dask({**others, "y": node, "after": Task("after", show, TaskRef("y")), "all": List(TaskRef("y"))}, ["after", "all"])


def test_mixtures_of_legacy_tuples_and_nodes() -> None:
    dsk = {
        "a": 1,
        "b": (inc, "a"),
        "c": Task("c", add, TaskRef("a"), TaskRef("b")),
        "d": (show, "c", TaskRef("b"), Task("n", inc, TaskRef("c")), [Alias("a")]),
        "e": Alias("e", "d"),
        "f": (show, "e", "b"),
    }
    same_as_dask(dsk, ["f", "e", ["a"]])


class Doubled(Task):
    """A node with an evaluation of its own."""

    def __call__(self, values=()):  # type: ignore[no-untyped-def]
        return 2 * super().__call__(values)


def test_a_node_with_its_own_evaluation_evaluates_itself() -> None:
    dsk = {
        "a": (inc, 1),
        "k": 5,
        "b": Doubled("b", add, TaskRef("a"), TaskRef("k")),
        "c": Task("c", show, Doubled(None, inc, TaskRef("b"))),
    }
    plan = Plan(dsk, ["b", "c"])
    assert plan.vertex(0).steps == ((None, (dsk["b"],), {"a": Ref(0), "k": 5}, GRAPH_NODE),)
    assert plan.vertex(1).form == GRAPH_NODE and plan.vertex(1).keywords == {"b": Ref(0)}
    assert run(dsk, ["b", "c"]) == (14, ("show", (30,), ()))


def test_unhashable_members_fail_when_they_run_as_in_dask() -> None:
    dsk = {"a": (inc, 1), "b": Task("b", show, Set(List(TaskRef("a")), 1))}
    plan = Plan(dsk, "b")
    assert len(plan) == 1
    with pytest.raises(TypeError, match="unhashable"):
        run(dsk, "b")


def test_fused_tasks_stay_functions() -> None:
    inner = Task("i", inc, TaskRef("a")), Task("o", add, TaskRef("i"), TaskRef("b"))
    dsk = {"a": Task("a", inc, 1), "b": Task("b", inc, 2), "o": GraphNode.fuse(*inner), "p": Task("p", inc, TaskRef("o"))}
    assert same_as_dask(dsk, ["p", "o"]) == (7, 6)


# ---------------------------------------------------------------- order, culling, aliases, fusion


def tree(leaf_count: int) -> tuple[dict[object, object], object]:
    dsk: dict[object, object] = {("x", number): (add, number, 1) for number in range(leaf_count)}
    layer = list(dsk)
    while len(layer) > 1:
        above = []
        for place in range(0, len(layer), 2):
            key = ("x", len(dsk))
            dsk[key] = (add, layer[place], layer[place + 1])
            above.append(key)
        layer = above
    return dsk, layer[0]


def test_a_tree_is_numbered_depth_first() -> None:
    dsk, root = tree(4)
    plan = Plan(dsk, root)
    assert plan.order == [("x", 0), ("x", 1), ("x", 4), ("x", 2), ("x", 3), ("x", 5), ("x", 6)]
    assert plan.inputs == [(), (), (0, 1), (), (), (3, 4), (2, 5)]
    assert plan.consumers == [[2], [2], [6], [5], [5], [6], []]
    assert plan.requested == [6]
    assert plan.vertex(2).arguments is IN_ORDER[2]
    assert plan.vertex(0).arguments == (0, 1)
    assert plan.pack({6: "result"}) == "result"


def test_only_what_is_needed_is_planned() -> None:
    dsk, _ = tree(64)
    plan = Plan({**dsk, "bad": (inc, "bad2"), "bad2": (inc, "bad")}, [("x", 64), ("x", 3)])
    assert sorted(plan.order) == [("x", 0), ("x", 1), ("x", 3), ("x", 64)]
    assert len(plan.requested) == 2


def test_aliases_and_small_literals_are_no_vertices() -> None:
    dsk = {"a": 1, "b": "a", "c": (add, "a", "b"), "d": "c", "e": (add, "d", "c"), "f": (show, "e", "c")}
    plan = Plan(dsk, ["f", "d"])
    assert plan.order == ["c", "e", "f"] and plan.requested == [2, 0]
    assert plan.vertex(0).arguments == (1, 1)
    assert plan.vertex(1).arguments == (Ref(0), Ref(0)) and plan.vertex(1).inputs == (0,)
    assert run(dsk, ["f", "d", "c"]) == (("show", (4, 2), ()), 2, 2)
    # Asked for, they are vertices, one for all their names; consumers still carry the literal.
    plan = Plan(dsk, ["b", "c", ["a", "b"]])
    assert plan.order == ["c", "a"] and plan.requested == [1, 0] and plan.consumers == [[], []]
    assert plan.vertex(1).form == VALUE and plan.vertex(1).arguments == (1,)
    assert plan.pack({0: "C", 1: "one"}) == ("one", "C", ("one", "one"))


def test_large_literals_are_shared_vertices() -> None:
    dsk = {"a": [1, 2], "b": (sum, "a"), "c": (len, "a"), "d": (add, "b", "c")}
    plan = Plan(dsk, "d")
    assert plan.order == ["a", "b", "c", "d"]
    assert plan.vertex(0).form == VALUE and plan.vertex(0).function is None


def test_linear_chains_are_fused() -> None:
    dsk = {"a": (range, 3), "b": (list, "a"), "c": (sum, "b"), "d": (add, "c", 1), "e": (show, "d", ["d"]), "f": (show, "d", "e")}
    plan = Plan(dsk, "f")
    assert plan.order == ["d", "e", "f"]
    assert plan.inputs == [(), (0,), (0, 1)]
    vertex = plan.vertex(0)
    assert vertex.function is range and vertex.inputs == () and vertex.steps is not None
    assert [step[0] for step in vertex.steps] == [list, sum, add]
    assert vertex.steps[2][1] == (Ref(0), 1)
    same_as_dask(dsk, "f")


def test_requested_inner_keys_break_a_chain() -> None:
    dsk = {"a": (inc, 0), "b": (inc, "a"), "c": "b", "d": (inc, "c"), "e": (inc, "d")}
    assert Plan(dsk, "e").order == ["e"]
    assert Plan(dsk, ["e", "b"]).order == ["b", "e"]
    assert Plan(dsk, ["c", "e"]).order == ["b", "e"]
    assert same_as_dask(dsk, ["e", "c", "e"]) == (4, 2, 4)


def test_a_chain_behind_several_inputs_keeps_them() -> None:
    dsk = {"a": (inc, 0), "b": (inc, 1), "c": (add, "b", "a"), "d": (inc, "c"), "e": (add, "a", "d"), "f": (inc, "e")}
    plan = Plan(dsk, ["f"])
    assert plan.order == ["a", "b", "d", "f"]
    assert plan.inputs == [(), (), (1, 0), (0, 2)]
    assert same_as_dask(dsk, ["f"]) == (6,)


def test_inputs_of_repeated_arguments_appear_once() -> None:
    dsk = {"a": (inc, 0), "b": (inc, 1), "c": (show, "b", "a", "b", ["a"], 5)}
    plan = Plan(dsk, "c")
    assert plan.inputs[2] == (0, 1)
    assert plan.vertex(2).form == NESTED
    same_as_dask(dsk, "c")


def test_deep_chains_have_no_limit() -> None:
    length = 100_000
    dsk: dict[object, object] = {("x", 0): (inc, 0)}
    dsk |= {("x", number): (inc, ("x", number - 1)) for number in range(1, length)}
    plan = Plan(dsk, [("x", length - 1)])
    assert len(plan) == -(-length // FUSED_CALLS_LIMIT)
    assert run(dsk, ("x", length - 1)) == length


def test_deep_alias_chains_have_no_limit() -> None:
    length = 100_000
    dsk: dict[object, object] = {0: (inc, -5)}
    dsk |= {number: Alias(number, number - 1) for number in range(1, length)}
    assert run(dsk, [length - 1, 5]) == (-4, -4)
    assert len(Plan(dsk, length - 1)) == 1


def test_deep_graphs_that_cannot_be_fused_have_no_limit() -> None:
    dsk: dict[object, object] = {0: (inc, -1), 1: (inc, 0)}
    for number in range(2, 50_000):
        dsk[number] = (max, number - 1, (number - 2)) if number % 2 else Task(number, inc, TaskRef(number - 1))
    plan = Plan(dsk, 49_999)
    assert 20_000 < len(plan) < 50_000
    assert run(dsk, 49_999) == 25_000


def test_wide_lists_are_one_placeholder() -> None:
    count = 5_000
    dsk: dict[object, object] = {("x", number): (inc, number) for number in range(count)}
    dsk["sum"] = (sum, [("x", number) for number in range(count)])
    plan = Plan(dsk, "sum")
    assert repr(plan.vertex(count).arguments) == f"(Span(0, {count}),)"
    assert run(dsk, "sum") == count * (count + 1) // 2
    dsk["sum"] = (sum, [("x", number) for number in reversed(range(count))] + [("x", 1)])
    assert run(dsk, "sum") == count * (count + 1) // 2 + 2


def test_vertices_can_be_taken_in_any_order_and_again() -> None:
    dsk, root = tree(8)
    plan = Plan(dsk, root)
    once = [repr(plan.vertex(number)) for number in range(len(plan))]
    assert [repr(plan.vertex(number)) for number in reversed(range(len(plan)))] == once[::-1]
    with pytest.raises(IndexError):
        plan.vertex(len(plan))


# ---------------------------------------------------------------- shapes


def test_packing_keeps_the_nesting_of_lists() -> None:
    dsk = {"t": 11, "z": 3, "x": (inc, 0)}
    plan = Plan(dsk, [["t"], ["z", "x"]])
    values = {number: run(dsk, plan.order[number]) for number in range(len(plan))}
    assert plan.pack(values) == ((11,), (3, 1))
    assert plan.pack(values.__getitem__, sequence=list) == [[11], [3, 1]]
    assert Plan(dsk, "x").pack(lambda number: ("asked", number)) == ("asked", 0)
    with pytest.raises(KeyError):
        plan.pack({})


def test_packing_asks_once_for_each_vertex() -> None:
    asked: list[int] = []
    plan = Plan({"a": (inc, 1), "b": "a"}, ["a", ["b", "a"]])
    assert plan.pack(lambda number: asked.append(number) or number) == (0, (0, 0))
    assert asked == [0]


# ---------------------------------------------------------------- refusals


def test_a_missing_key_is_named_with_close_matches() -> None:
    dsk = {("sum-abc", number): (inc, number) for number in range(12)}
    with pytest.raises(
        MissingKeyError, match=r"requested key \('sum-abd', 3\) is not in the graph of 12 keys; close matches: \('sum-abc', 3\)"
    ):
        Plan(dsk, [("sum-abc", 1), ("sum-abd", 3)])
    with pytest.raises(MissingKeyError, match=r"'zzz' is not in the graph of 1 keys$"):
        Plan({"a": 1}, "zzz")
    with pytest.raises(MissingKeyError, match="several keys go into a list"):
        Plan({"a": 1, "b": 2}, ("a", "b"))


def test_a_missing_reference_names_the_task_that_has_it() -> None:
    dsk = {"alpha": (inc, 1), "beta": Task("beta", inc, TaskRef("alpa"))}
    with pytest.raises(
        MissingKeyError, match="task 'beta' refers to key 'alpa', which is not in the graph of 2 keys; close matches: 'alpha'"
    ):
        Plan(dsk, "beta")
    assert Plan(dsk, "alpha").order == ["alpha"]


def test_a_cycle_is_named_in_order() -> None:
    dsk = {"a": (add, "x", "b"), "b": (inc, "c"), "c": (add, "x", "d"), "d": (inc, "b"), "x": (inc, 1)}
    with pytest.raises(UsageError, match="each key needs the next: 'b' -> 'c' -> 'd' -> 'b'; remove"):
        Plan(dsk, "a")
    assert Plan(dsk, "x").order == ["x"]
    with pytest.raises(UsageError, match="'a' -> 'a'"):
        Plan({"a": (inc, "a")}, "a")
    with pytest.raises(UsageError, match="'b' -> 'a' -> 'b'"):
        Plan({"a": Alias("a", "b"), "b": Alias("b", "a")}, "b")
    with pytest.raises(UsageError, match=r"\.\.\. \(1000 keys\) -> 0;"):
        Plan({number: (inc, (number + 1) % 1000) for number in range(1000)}, 0)


@pytest.mark.parametrize("dsk", [None, 5, [("a", 1)], dict, "graph"])
def test_what_is_no_graph_is_refused(dsk: object) -> None:
    with pytest.raises(UsageError, match="not a Dask graph"):
        Plan(dsk, "a")


@pytest.mark.parametrize("keys", [{"a": 1}, [{"a"}], [("a", [1])]])
def test_what_cannot_be_a_key_is_refused(keys: object) -> None:
    with pytest.raises(UsageError, match="cannot be a key"):
        Plan({"a": 1}, keys)


# ---------------------------------------------------------------- what users hand over


def test_high_level_graphs() -> None:
    layers = {"one": {("a", 0): (inc, 1), ("a", 1): (inc, 2)}, "two": {"b": (sum, [("a", 0), ("a", 1)])}}
    graph = HighLevelGraph(layers, {"one": set(), "two": {"one"}})
    assert same_as_dask(graph, ["b", ("a", 0)]) == (5, 2)


def compute(*collections: object) -> tuple[object, ...]:
    """Compute through Dask with our evaluation as its scheduler."""
    return dask.compute(*collections, scheduler=lambda dsk, keys, **_: run(dsk, keys))  # type: ignore[no-any-return]


def test_delayed() -> None:
    one = dask.delayed(inc)(1)
    parts = [dask.delayed(add)(one, number) for number in range(5)]
    total = dask.delayed(sum)(parts)
    mapping = dask.delayed(show)({"k": one, "l": [total, (one, 3)]}, flag=total, plain=[1])
    assert compute(total, mapping, one) == dask.compute(total, mapping, one, scheduler="sync")
    assert compute(dask.delayed([1, one])) == ([1, 2],)


def test_bags() -> None:
    bag = pytest.importorskip("dask.bag")
    numbers = bag.from_sequence(range(40), npartitions=5)
    sums = numbers.filter(lambda item: item % 3).map(inc).fold(operator.add)
    counts = numbers.map(lambda item: item % 4).frequencies()
    assert compute(sums, counts) == dask.compute(sums, counts, scheduler="sync")


def test_arrays() -> None:
    array = pytest.importorskip("dask.array")
    numpy = pytest.importorskip("numpy")
    source = array.from_array(numpy.arange(400.0).reshape(20, 20), chunks=(7, 9))
    ours = compute((source + source.T.rechunk((7, 9))).mean(axis=0), source @ source, source[3:11, ::2].cumsum(axis=1))
    base = numpy.arange(400.0).reshape(20, 20)
    for result, expected in zip(ours, ((base + base.T).mean(axis=0), base @ base, base[3:11, ::2].cumsum(axis=1)), strict=True):
        numpy.testing.assert_allclose(result, expected)
    assert Plan(source.sum(), source.sum().__dask_keys__()).requested


def test_dataframes() -> None:
    pandas = pytest.importorskip("pandas")
    try:
        import dask.dataframe as frames
    except Exception as reason:  # an old Dask refuses a new pandas in several ways
        pytest.skip(f"no dask.dataframe here: {reason}")
    frame = pandas.DataFrame({"a": range(60), "b": [number % 7 for number in range(60)], "c": 1.5})
    source = frames.from_pandas(frame, npartitions=4)
    (grouped, merged) = compute(source.groupby("b").a.sum(), source.merge(source, on="a").c_x.sum())
    pandas.testing.assert_series_equal(grouped.sort_index(), frame.groupby("b").a.sum(), check_dtype=False)
    assert merged == 90.0


def test_importing_the_packages_does_not_import_dask() -> None:
    code = "import sys, daskvine, vinecore.runtime.vertex; sys.exit('dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ---------------------------------------------------------------- runtime/vertex.py


def test_refs_are_small_immutable_values() -> None:
    assert Ref(3) == ref(3) == ref(3) and Ref(3) != Ref(4) and Ref(3) != 3
    assert len({Ref(1), ref(1), Ref(2), 1}) == 3
    with pytest.raises(AttributeError, match="immutable"):
        Ref(1).position = 2
    with pytest.raises(AttributeError, match="immutable"):
        del Ref(1).position
    assert pickle.loads(pickle.dumps([Ref(5), ref(70), Span(1, 3), Call(inc, (Ref(0),))][:2])) == [Ref(5), Ref(70)]


@pytest.mark.parametrize(
    ("vertex", "inputs", "expected", "packed"),
    [
        (Vertex("k", add, IN_ORDER[2], None, (4, 9), FLAT), (1, 2), 3, 0),
        (Vertex("k", add, (1, 5), None, (), FLAT), (), 6, (0, (1, 5))),
        (Vertex("k", add, (ref(0), 5), None, (4,), FLAT), (1,), 6, (0, (None, 5), ((0, 0),))),
        (Vertex("k", operator.sub, (ref(1), ref(0)), None, (4, 5), FLAT), (1, 10), 9, (0, (None, None), ((0, 1), (1, 0)))),
        (Vertex("k", None, ([1],), None, (), VALUE), (), [1], ([1],)),
        (Vertex("k", show, (), {"a": ref(0)}, (3,), NESTED), (1,), ("show", (), (("a", 1),)), (0, (), {"a": ref(0)}, NESTED)),
        (Vertex("k", inc, IN_ORDER[1], None, (3,), FLAT, ((inc, IN_ORDER[1], None, FLAT),)), (1,), 3, [0, 1]),
        (Vertex("k", None, (4,), None, (), VALUE, ((add, (ref(0), 2), None, FLAT),)), (), 6, [(4,), (1, (None, 2), ((0, 0),))]),
    ],
)
def test_packed_vertices(vertex: Vertex, inputs: Sequence[object], expected: object, packed: object) -> None:
    assert evaluate(vertex.function, vertex.arguments, vertex.keywords, vertex.form, vertex.steps, inputs) == expected
    numbers = [1] * len(vertex.steps or ())
    encoded = pack_vertex(vertex, 0, numbers)
    assert encoded == packed
    functions = [vertex.function, *(step[0] for step in vertex.steps or ())]
    assert run_packed(encoded, functions, inputs) == expected  # type: ignore[arg-type]
    assert run_packed(pickle.loads(pickle.dumps(encoded)), functions, inputs) == expected  # type: ignore[arg-type]


def test_steps_need_their_numbers() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack_vertex(Vertex("k", inc, IN_ORDER[1], None, (3,), FLAT, ((inc, IN_ORDER[1], None, FLAT),)), 0)


def test_quoted_literals_are_given_as_they_are() -> None:
    literal: list[object] = [1, Ref(0)]
    arguments = (Quote(literal), [ref(0), Span(0, 2)], {ref(1), 3}, frozenset([ref(0)]), Call(show, (ref(1),), {"k": [ref(0)]}))
    (name, values, _) = evaluate(show, arguments, None, NESTED, None, ("a", "b"))  # type: ignore[misc]
    assert name == "show"
    assert values[0] is literal  # type: ignore[has-type]
    assert values[1:] == (["a", ["a", "b"]], {"b", 3}, frozenset(["a"]), ("show", ("b",), (("k", ["a"]),)))  # type: ignore[has-type]


def test_literals_beside_references_are_not_walked() -> None:
    """A literal may hold itself; walking it when the template is filled would never end."""
    endless: list[object] = [1]
    endless.append(endless)
    dsk = {"a": (inc, 1), "b": Task("b", show, endless, List(TaskRef("a"), endless))}
    plan = Plan(dsk, "b")
    vertex = plan.vertex(0)
    assert vertex.steps is not None
    value = evaluate(vertex.function, vertex.arguments, vertex.keywords, vertex.form, vertex.steps, ())
    assert value[1][0] is endless and value[1][1] == [2, endless]  # type: ignore[index]


class Whole(int):
    pass


@pytest.mark.parametrize(
    ("obj", "plain"),
    [
        (5, True),
        ("text", True),
        (None, True),
        ([1, (2.5, {"k": {1j}}), slice(1, (2,)), ..., frozenset()], True),
        ([Ref(0), Span(0, 3), Quote([1])], True),
        (Whole(3), False),
        ([[[Whole(3)]]], False),
        ({(1, Whole(3)): 1}, False),
        ({"k": inc}, False),
        (slice(None, Whole(1)), False),
        (Quote([inc]), False),
        (inc, False),
        (int, False),
        (Pair(1, 2), False),
        (Call(inc, ()), False),
    ],
)
def test_is_plain(obj: object, plain: bool) -> None:
    assert is_plain(obj) is plain
    assert is_plain([1, obj]) is plain
    if plain:
        assert repr(pickle.loads(pickle.dumps(obj))) == repr(obj)


def test_is_plain_ends_on_containers_that_hold_themselves() -> None:
    endless: list[object] = []
    endless += [endless, (endless, endless)]
    assert is_plain(endless)
    endless.append(inc)
    assert not is_plain(endless)

"""Random graphs, run by one manager on real slots, give what Dask's synchronous scheduler gives."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import pytest
from dask import local
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskvine import DaskVine

# Elements of an array: inline, around the inline limit, well above it.
SIZES = (1, 8_000, 8_200, 40_000)
TURN = 1_000_003


@pytest.fixture(scope="module")
def m() -> Iterator[DaskVine]:
    with DaskVine(local_cores=2) as manager:
        yield manager


def leaf(number: int, size: int) -> Any:
    """An array of whole numbers, or a plain one: sums stay exact."""
    return np.full(size, number % TURN, dtype=np.int64) if size > 1 else number % TURN


def mix(*inputs: Any, **keywords: Any) -> Any:
    """Depends on every input, its position and its depth; as large as the largest of them."""
    total: Any = 1
    for place, value in enumerate([*inputs, *keywords.values()], 2):
        part = mix(*value) if isinstance(value, (list, tuple)) else value
        total = _shaped(total, part) * 3 % TURN + _shaped(part, total) * place
    return total % TURN


def _shaped(value: Any, like: Any) -> Any:
    """Of two arrays that differ in size, the sum of the smaller stands for it."""
    if isinstance(value, np.ndarray) and isinstance(like, np.ndarray) and value.size < like.size:
        return int(value.sum()) % TURN
    return value


def same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    else:
        np.testing.assert_array_equal(left, right)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[Hashable, Any], Any]:
    """Layers of a drawn width; each vertex reads a few of the last ``reach`` ones, so that graphs are wide, deep or both."""
    size = draw(st.integers(2, 60))
    reach = draw(st.sampled_from([1, 2, 5, 60]))
    keys: list[Hashable] = [draw(st.sampled_from([("k", n), f"k-{n}"])) for n in range(size)]
    dsk: dict[Hashable, Any] = {}
    for number, key in enumerate(keys):
        known = keys[max(0, number - reach) : number]
        kinds = ["leaf", "legacy", "legacy", "task", "task", "nested", "alias", "literal"] if known else ["leaf"]
        kind = draw(st.sampled_from(kinds))
        inputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4)) if known else []
        if kind == "leaf":
            dsk[key] = (leaf, 7 * number + 1, draw(st.sampled_from(SIZES)))
        elif kind == "legacy":
            dsk[key] = (mix, *inputs)
        elif kind == "task":
            dsk[key] = Task(key, mix, *map(TaskRef, inputs[:-1]), last=TaskRef(inputs[-1]))
        elif kind == "nested":
            inner: list[Any] = [[*inputs, number], (mix, inputs[0], (mix, inputs[-1]))]
            dsk[key] = draw(st.sampled_from([(mix, *inner), Task(key, mix, List(*map(TaskRef, inputs)), 5)]))
        elif kind == "alias":
            dsk[key] = draw(st.sampled_from([inputs[0], Alias(key, inputs[0])]))
        else:
            dsk[key] = draw(st.sampled_from([0.5 + number, DataNode(key, leaf(number, 10))]))
    several = st.lists(st.sampled_from(keys), min_size=1, max_size=3)
    wanted = draw(st.lists(st.one_of(st.sampled_from(keys), several), min_size=1, max_size=4))
    return dsk, draw(st.sampled_from([wanted, [keys[-1]], keys[-1]]))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=graphs())
def test_random_graphs(m: DaskVine, case: tuple[dict[Hashable, Any], Any]) -> None:
    dsk, keys = case
    expected = local.get_sync(dsk, keys)
    same(m.get(dsk, keys), expected)


def test_the_manager_is_clean_afterwards(m: DaskVine) -> None:
    state = m.engine.machine.state
    m.engine.call_in_loop(m.engine.machine.check)
    assert not state.tasks and not state.parked and not state.relays

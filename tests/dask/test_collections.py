"""Dask's own collections give on workers what they give with Dask's synchronous scheduler."""

from __future__ import annotations

import dataclasses
import importlib.util
import operator
import os
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest

from daskvine import DaskVine
from tests.dask.conftest import Runs


def same(left: Any, right: Any) -> None:
    """Equal values of equal types, arrays included."""
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    else:
        assert left == right


def check(m: DaskVine, collection: Any) -> Any:
    value = collection.compute(scheduler=m.get)
    same(value, collection.compute(scheduler="synchronous"))
    return value


# ---------------------------------------------------------------- arrays

X = np.arange(240.0).reshape(12, 20)


def arrays() -> dict[str, Any]:
    x = da.from_array(X, chunks=(5, 7))
    square = da.from_array(np.arange(144.0).reshape(12, 12) % 17 + 12 * np.eye(12), chunks=4)
    return {
        "elementwise": ((x + 1) * 2 - x) ** 2 / (x + 3),
        "shared inputs": (x + x.mean(axis=0)) - x.sum(),
        "transpose": (x + 1) @ (x + 1).T,
        "mean over axis": x.mean(axis=0),
        "var over all": x.var(),
        "argmax": x.argmax(axis=1),
        "cumsum": x.cumsum(axis=1),
        "slices": x[2:9, ::3],
        "fancy": x[[1, 5, 3]][:, [0, 19, 4]],
        "boolean": x[x > 100],
        "rechunk": x.rechunk((3, 20)).rechunk((12, 4)),
        "reshape": x.reshape(6, 2, 20),
        "stack": da.stack([x, x + 1], axis=1),
        "concatenate": da.concatenate([x, -x], axis=0),
        "tensordot": da.tensordot(x, x, axes=([0], [0])),
        "overlap": x.map_overlap(lambda block: block * 2, depth=1, boundary="reflect"),
        "map_blocks": x.map_blocks(lambda block, block_id=None: block + sum(block_id), dtype=float),
        "where": da.where(x % 2 == 0, x, -x),
        "histogram": da.histogram(x, bins=6, range=(0, 240))[0],
        "random": da.random.default_rng(7).random((10, 10), chunks=5),
        "qr": da.linalg.qr(da.from_array(X.T.copy(), chunks=(5, 12)))[1],
        "inverse by parts": da.linalg.tsqr(square.rechunk((4, 12)))[0],
        "norm": da.linalg.norm(x),
        "svd": da.linalg.svd(da.from_array(X, chunks=(12, 20)))[1],
        "empty": x[:0],
        "object": da.from_array(np.array(["a", None, 3], dtype=object), chunks=2),
        "scalar": da.from_array(np.array(5), chunks=()),
    }


@pytest.mark.parametrize("name", sorted(arrays()))
def test_arrays(m: DaskVine, name: str) -> None:
    check(m, arrays()[name])


def test_array_is_writable_and_not_shared_with_the_next_compute(m: DaskVine) -> None:
    x = da.ones((300, 300), chunks=100) + 1
    first = x.compute(scheduler=m.get)
    first[:] = 0
    assert x.compute(scheduler=m.get).sum() == 180000


def test_store_into_a_target_on_disk(m: DaskVine, tmp_path: Path) -> None:
    target = np.lib.format.open_memmap(tmp_path / "target.npy", mode="w+", dtype=float, shape=X.shape)
    name = str(tmp_path / "target.npy")

    class Target:
        shape, dtype = X.shape, X.dtype

        def __setitem__(self, where: Any, block: Any) -> None:
            np.lib.format.open_memmap(name, mode="r+")[where] = block

    x = da.from_array(X, chunks=(5, 7)) * 3
    da.store(x, Target(), lock=False, scheduler=m.get)
    np.testing.assert_array_equal(target, X * 3)
    # From the target on: stored blocks are read again by what follows.
    stored = da.store(x, Target(), lock=False, compute=False)
    dask.compute(stored, scheduler=m.get)
    np.testing.assert_array_equal(np.load(name), X * 3)


# ---------------------------------------------------------------- bags


def parity(number: int) -> int:
    return number % 3


def bags() -> dict[str, Any]:
    numbers = db.range(100, npartitions=7)
    return {
        "map": numbers.map(lambda number, more: number + more, more=2),
        "filter": numbers.filter(lambda number: number % 2),
        "fold": numbers.fold(operator.add, split_every=2),
        "frequencies": numbers.map(parity).frequencies(sort=True),
        "foldby": numbers.foldby(parity, operator.add, 0),
        "topk": numbers.topk(5),
        "pluck": db.from_sequence([{"a": 1, "b": [1]}, {"a": 2, "b": [2]}], npartitions=2).pluck("b").flatten(),
        "product": db.range(4, npartitions=2).product(db.from_sequence("ab", npartitions=1)),
        "map_partitions": numbers.map_partitions(lambda part: [sum(part)]),
        "statistics": numbers.var(),
        "groupby": numbers.groupby(parity, shuffle="tasks").map(lambda group: (group[0], sorted(group[1]))),
        "zip": db.zip(numbers, numbers.map(parity)),
        "accumulate": numbers.accumulate(operator.add),
    }


@pytest.mark.parametrize("name", sorted(bags()))
def test_bags(m: DaskVine, name: str) -> None:
    bag = bags()[name]
    value = bag.compute(scheduler=m.get)
    expected = bag.compute(scheduler="synchronous")
    if name == "groupby":
        value, expected = sorted(value), sorted(expected)
    assert value == expected


def test_bag_of_files(m: DaskVine, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"a {number}\nb\n")
    check(m, db.read_text(str(tmp_path / "*.txt")).str.split().map(len))
    out = db.from_sequence(["x", "y"], npartitions=2).to_textfiles(str(tmp_path / "out-*.txt"), compute=False)
    dask.compute(out, scheduler=m.get)
    assert [path.read_text().strip() for path in sorted(tmp_path.glob("out-*.txt"))] == ["x", "y"]


# ---------------------------------------------------------------- delayed


@dataclasses.dataclass
class Event:
    mass: Any
    tags: Any = ()


@dask.delayed(pure=True)
def add(x: Any, y: Any = 10) -> Any:
    return x + y


@dask.delayed
def describe(*args: Any, **kwargs: Any) -> str:
    return repr((args, sorted(kwargs.items())))


def test_delayed_nested_arguments(m: DaskVine) -> None:
    one = add(1)
    nested = describe([one, {"k": (one, [add(one, y=one)])}], {1, 2}, Event(one, [one]), slice(0, 3), key=one, other={"a": one})
    value = check(m, nested)
    assert "Event(mass=11, tags=[11])" in value and "22" in value


def test_delayed_call_without_arguments_and_none(m: DaskVine) -> None:
    assert dask.delayed(dict)().compute(scheduler=m.get) == {}
    assert dask.delayed(lambda: None)().compute(scheduler=m.get) is None
    assert dask.delayed(5).compute(scheduler=m.get) == 5
    assert dask.delayed([1, (2, {"a": 3})]).compute(scheduler=m.get) == [1, (2, {"a": 3})]


def test_delayed_attributes_items_and_operators(m: DaskVine) -> None:
    check(m, (dask.delayed(3) + 4) * 2 - dask.delayed([5, 6])[1])
    check(m, dask.delayed("a,b").split(","))
    check(m, dask.delayed(Event)(4, tags="x").mass)
    first, second = dask.delayed(divmod, nout=2)(17, 5)
    assert dask.compute(first, second, scheduler=m.get) == (3, 2)


def mark(path: str, value: Any) -> Any:
    with open(path, "a") as file:
        file.write(f"{value}\n")
    return value


def test_pure_calls_run_once_and_impure_ones_each(m: DaskVine, runs: Runs) -> None:
    path = str(runs.path)
    pure = dask.delayed(mark, pure=True)
    assert dask.compute(pure(path, "p"), pure(path, "p"), scheduler=m.get) == ("p", "p")
    assert runs.lines() == ["p"]
    impure = dask.delayed(mark, pure=False)
    assert dask.compute(impure(path, "i"), impure(path, "i"), scheduler=m.get) == ("i", "i")
    assert runs.lines() == ["p", "i", "i"]


def test_long_delayed_chain_and_wide_fan(m: DaskVine) -> None:
    value: Any = 0
    for _ in range(600):
        value = add(value, 1)
    assert value.compute(scheduler=m.get) == 600
    assert dask.delayed(sum)([add(number, number) for number in range(500)]).compute(scheduler=m.get) == 2 * sum(range(500))


# ---------------------------------------------------------------- ways in


def test_compute_of_several_persist_and_config(m: DaskVine) -> None:
    x = da.from_array(X, chunks=6)
    bag = db.range(10, npartitions=2)
    total, doubled, plain, text = dask.compute(x.sum(), {"d": bag.map(lambda n: n * 2)}, 7, "t", scheduler=m.get)
    assert (total, doubled, plain, text) == (X.sum(), {"d": [2 * n for n in range(10)]}, 7, "t")
    kept, kept_bag = dask.persist(x + 1, bag, scheduler=m.get)
    np.testing.assert_array_equal(kept.compute(scheduler="synchronous"), X + 1)
    assert (kept.sum() + 1).compute(scheduler=m.get) == (X + 1).sum() + 1
    assert kept_bag.compute(scheduler=m.get) == list(range(10))
    with dask.config.set(scheduler=m.get):
        assert dask.delayed(os.getpid)().compute() != os.getpid()
        np.testing.assert_array_equal((x * 2).compute(), X * 2)
        assert x.persist().sum().compute() == X.sum()


def test_unoptimised_graphs(m: DaskVine) -> None:
    x = (da.from_array(X, chunks=6) + 1).sum(axis=0)
    np.testing.assert_array_equal(x.compute(scheduler=m.get, optimize_graph=False), (X + 1).sum(axis=0))


def test_annotations_reach_the_vertices(m: DaskVine, runs: Runs) -> None:
    """A vertex that fails twice passes with ``annotate(retries=2)``."""
    path = str(runs.path)

    def flaky(value: int) -> int:
        mark(path, value)
        if len(Path(path).read_text().split()) < 3:
            raise RuntimeError("not yet")
        return value

    with dask.annotate(retries=2, priority=5, resources={"cores": 1}):
        value = dask.delayed(flaky)(4)
    assert value.compute(scheduler=m.get, optimize_graph=False) == 4
    assert runs.lines() == ["4"] * 3


# ---------------------------------------------------------------- dataframes

# Deprecations between Dask and pandas are theirs to settle.
pandas_deprecations = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
needs_dataframes = pytest.mark.skipif(
    importlib.util.find_spec("pandas") is None or importlib.util.find_spec("pyarrow") is None,
    reason="dask.dataframe needs pandas and pyarrow",
)


@needs_dataframes
@pandas_deprecations
class TestDataFrames:
    @staticmethod
    def frame() -> Any:
        import dask.dataframe as dd
        import pandas as pd

        rows = np.arange(400)
        plain = pd.DataFrame({"key": rows % 7, "value": rows * 0.5, "name": [f"n{row % 5}" for row in rows]})
        return dd.from_pandas(plain, npartitions=6)

    @staticmethod
    def check(m: DaskVine, collection: Any, sort: str = "") -> None:
        ours, theirs = collection.compute(scheduler=m.get), collection.compute(scheduler="synchronous")
        if sort:
            ours, theirs = ours.sort_values(sort).reset_index(drop=True), theirs.sort_values(sort).reset_index(drop=True)
        assert type(ours) is type(theirs)
        assert ours.equals(theirs) if hasattr(ours, "equals") else ours == theirs

    def test_elementwise_and_reductions(self, m: DaskVine) -> None:
        frame = self.frame()
        self.check(m, frame[frame.value > 20].assign(twice=frame.value * 2))
        self.check(m, frame.value.sum())
        self.check(m, frame.describe())
        self.check(m, frame.name.nunique())
        self.check(m, len(frame) * frame.value.mean())

    def test_groupby(self, m: DaskVine) -> None:
        frame = self.frame()
        self.check(m, frame.groupby("key").value.mean())
        self.check(m, frame.groupby(["key", "name"]).agg({"value": ["min", "max", "count"]}).value["max"].nlargest(3))

    @pytest.mark.parametrize("method", ["tasks", "disk"])
    def test_shuffle_and_merge(self, m: DaskVine, method: str) -> None:
        frame = self.frame()
        with dask.config.set({"dataframe.shuffle.method": method}):
            self.check(m, frame.merge(frame, on="value", suffixes=("", "_r")), sort="value")
            self.check(m, frame.shuffle("key"), sort="value")
            self.check(m, frame.set_index("value").loc[30:60])

    def test_parquet_there_and_back(self, m: DaskVine, tmp_path: Path) -> None:
        import dask.dataframe as dd

        frame = self.frame()
        with dask.config.set(scheduler=m.get):
            frame.to_parquet(tmp_path / "frame")
            back = dd.read_parquet(tmp_path / "frame")
            assert back.npartitions == 6
            assert back.compute().equals(frame.compute())
        self.check(m, back.groupby("key").value.sum())


def test_bag_groupby_through_the_disk(m: DaskVine) -> None:
    """The value between its stages deletes its directory when it ends: only copies of it may be alive when others use it."""
    import dask.bag as db

    for number in range(3):
        bag = db.from_sequence(range(1000 + number), npartitions=10).groupby(lambda x: x % 3)
        assert sum(len(values) for _, values in bag.compute(scheduler=m.get)) == 1000 + number


def test_the_clock_and_chance_are_asked_again(m: DaskVine) -> None:
    import random
    import time

    for function in (time.time, random.random):
        value = dask.delayed(function)()
        assert value.compute(scheduler=m.get) != value.compute(scheduler=m.get)

"""dask-awkward collections give on workers what they give with Dask's synchronous scheduler."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from daskvine import DaskVine

if importlib.util.find_spec("dask_awkward") is None:
    pytest.skip("needs dask-awkward: pip install 'daskvine[awkward]' (with a Dask that it supports)", allow_module_level=True)

import awkward as ak
import dask
import dask_awkward as dak

EVENTS = [[{"pt": float(n * 10 + i), "charge": (-1) ** i} for i in range(n % 4)] for n in range(40)]


def events() -> Any:
    return dak.from_awkward(ak.Array(EVENTS), npartitions=5)


def check(m: DaskVine, collection: Any) -> Any:
    ours, theirs = collection.compute(scheduler=m.get), collection.compute(scheduler="synchronous")
    assert ak.to_list(ours) == ak.to_list(theirs)
    return ours


def test_fields_masks_and_reductions(m: DaskVine) -> None:
    array = events()
    check(m, array.pt * 2)
    check(m, array[array.pt > 100].pt)
    assert check(m, dak.sum(array.pt, axis=None)) == sum(item["pt"] for event in EVENTS for item in event)
    check(m, dak.num(array, axis=1))
    check(m, dak.max(array.pt, axis=1))


def test_pairs(m: DaskVine) -> None:
    array = events()
    pairs = dak.combinations(array, 2, fields=["a", "b"])
    opposite = pairs[pairs.a.charge * pairs.b.charge < 0]
    value = check(m, opposite.a.pt + opposite.b.pt)
    assert len(value) == len(EVENTS)


def test_map_partitions_and_several_at_once(m: DaskVine) -> None:
    array = events()
    counts = dak.map_partitions(lambda part: ak.num(part, axis=1) + 1, array)
    check(m, counts)
    number, total = dask.compute(dak.count(array.pt, axis=None), dak.sum(array.charge, axis=None), scheduler=m.get)
    assert number == sum(map(len, EVENTS))
    assert total == sum(item["charge"] for event in EVENTS for item in event)


def test_persist(m: DaskVine) -> None:
    kept = events().pt.persist(scheduler=m.get)
    assert ak.to_list(kept.compute(scheduler="synchronous")) == [[item["pt"] for item in event] for event in EVENTS]

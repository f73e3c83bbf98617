"""Allocation: exact where asked, never more than the worker unless asked, and never nothing of what the worker has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vinecore.model.allocation import DISK_SHARE, allocate
from vinecore.model.resources import Resources

NAMES = ("cores", "memory", "disk", "gpus")
totals = st.builds(Resources, st.integers(1, 256), st.integers(1, 10**6), st.integers(2, 10**7), st.integers(0, 16))
amounts = st.none() | st.integers(0, 300) | st.floats(0, 300, allow_nan=False)
requests = st.builds(Resources, amounts, amounts, amounts, amounts)


@given(requests, totals)
def test_what_is_asked_for_is_given_exactly(request: Resources, total: Resources) -> None:
    given_ = allocate(request, total)
    for name in NAMES:
        if getattr(request, name) is not None:
            assert getattr(given_, name) == getattr(request, name)


@given(requests, totals)
def test_nothing_above_the_worker_is_given_unasked(request: Resources, total: Resources) -> None:
    given_ = allocate(request, total)
    for name in NAMES:
        if getattr(request, name) is None:
            assert 0 <= getattr(given_, name) <= getattr(total, name)
    assert bool(given_.missing_in(total)) == bool(request.missing_in(total))


@given(requests, totals)
def test_unset_follows_the_largest_share(request: Resources, total: Resources) -> None:
    given_ = allocate(request, total)
    if request.gpus is None:
        assert given_.gpus == 0
    if request.memory is None and request.missing_in(total) == "":
        asked = [getattr(request, n) / getattr(total, n) for n in NAMES if getattr(request, n) and getattr(total, n)]
        share = max(asked, default=1.0)
        assert given_.memory is not None and total.memory is not None
        assert abs(given_.memory - max(1, share * total.memory)) <= 1


@given(totals)
def test_nothing_asked_for_is_the_whole_worker(total: Resources) -> None:
    given_ = allocate(Resources(), total)
    assert (given_.cores, given_.memory, given_.gpus) == (total.cores, total.memory, 0)
    assert total.disk is not None and given_.disk == int(total.disk * DISK_SHARE)


@given(st.lists(st.floats(0, 4, allow_nan=False, width=16), max_size=40))
def test_what_is_taken_and_given_back_leaves_the_whole(cores: list[float]) -> None:
    committed = Resources(0, 0, 0, 0)
    for count in cores:
        committed = committed.plus(Resources(cores=round(count, 3)))
    for count in reversed(cores):
        committed = committed.minus(Resources(cores=round(count, 3)))
    assert committed == Resources(0, 0, 0, 0)

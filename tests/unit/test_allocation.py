"""The tables of the reference: worker of 4 cores, 4000 MB memory, 8000 MB disk."""

from __future__ import annotations

import pytest

from vinecore.model.allocation import allocate
from vinecore.model.resources import Resources

WORKER = Resources(4, 4000, 8000, 8)


@pytest.mark.parametrize(
    ("request_", "cores", "memory", "disk", "gpus"),
    [
        (Resources(), 4, 4000, 6000, 0),
        (Resources(cores=1), 1, 1000, 1500, 0),
        (Resources(cores=3), 3, 3000, 4500, 0),
        (Resources(memory=1000), 1, 1000, 1500, 0),
        (Resources(cores=1, memory=2000), 1, 2000, 3000, 0),
        (Resources(cores=1, memory=2000, disk=6000), 1, 2000, 6000, 0),
        (Resources(gpus=4), 0, 2000, 3000, 4),
        (Resources(cores=4), 4, 4000, 6000, 0),
        (Resources(1, 2, 3, 4), 1, 2, 3, 4),
        (Resources(0, 0, 0, 0), 0, 0, 0, 0),
        (Resources(cores=0, memory=0), 0, 0, 6000, 0),
    ],
)
def test_allocations_follow_the_reference(request_: Resources, cores: float, memory: float, disk: float, gpus: float) -> None:
    assert allocate(request_, WORKER) == Resources(cores, memory, disk, gpus)


def test_a_request_that_does_not_fit_is_not_made_smaller() -> None:
    given = allocate(Resources(cores=8), WORKER)
    assert given.cores == 8
    assert given.missing_in(WORKER) == "8 cores (it has 4)"


def test_a_request_of_a_resource_that_the_worker_lacks_does_not_fit() -> None:
    given = allocate(Resources(gpus=1), Resources(4, 4000, 8000, 0))
    assert given.gpus == 1
    assert "gpus" in given.missing_in(Resources(4, 4000, 8000, 0))

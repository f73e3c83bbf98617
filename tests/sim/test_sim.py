"""Both machines through seeded random lives; ``python -m tests.sim.simulate`` runs more of them."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS, Mutation, noticed_by
from tests.sim.simulate import failing

LIVES = 300
PER_TEST = 30
# Mistakes that are noticed within few lives; the whole list has its own command.
QUICK = [
    m
    for m in MUTATIONS
    if m.function in ("attach", "released", "_bundle_ended", "release", "_tell_once", "unpark", "send_unlinks")
]


@pytest.mark.parametrize("start", range(0, LIVES, PER_TEST))
def test_random_lives_keep_every_promise(start: int) -> None:
    assert failing(range(start, start + PER_TEST)) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutation", QUICK, ids=lambda mutation: mutation.name)
def test_planted_mistakes_are_noticed(mutation: Mutation) -> None:
    assert noticed_by(mutation, range(200)) is not None


def test_a_mutation_leaves_nothing_changed() -> None:
    from vinecore.manager import lineage

    right = lineage.attach
    with next(m for m in MUTATIONS if m.function == "attach").planted():
        assert lineage.attach is not right
    assert lineage.attach is right

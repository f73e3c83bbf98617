"""Both machines through seeded random lives; ``python -m tests.sim.simulate`` runs more of them, and CI 2,000."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS, SEEDS, Mutation, noticed_by
from tests.sim.simulate import failing

LIVES = 300
PER_TEST = 30


@pytest.mark.parametrize("start", range(0, LIVES, PER_TEST))
def test_random_lives_keep_every_promise(start: int) -> None:
    assert failing(range(start, start + PER_TEST)) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name + " (rare)" * mutation.rare)
@pytest.mark.timeout(900)
def test_planted_mistakes_are_noticed(mutation: Mutation) -> None:
    assert noticed_by(mutation, range(SEEDS)) is not None


def test_a_mutation_leaves_nothing_changed() -> None:
    from vinecore.manager import lineage

    right = lineage.attach
    with next(m for m in MUTATIONS if m.function == "attach").planted():
        assert lineage.attach is not right
    assert lineage.attach is right


def test_a_mutation_reaches_those_who_imported_the_function() -> None:
    """Else a check of tickets that never fails would be planted where nobody calls it."""
    from tests.kit import transfers
    from vinecore.model import ticket

    right = ticket.check_ticket
    with next(m for m in MUTATIONS if m.function == "check_ticket").planted():
        assert transfers.check_ticket is ticket.check_ticket is not right
    assert transfers.check_ticket is ticket.check_ticket is right

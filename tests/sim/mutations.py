"""Planted mistakes that the simulation must notice: ``python -m tests.sim.mutations [--seeds N]``.

Each mutation replaces a few characters of one function of a machine. If no life out of N breaks a promise, the simulation is
blind to that kind of mistake, and the run is red. Nothing stays changed afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.sim.simulate import simulate

SEEDS = 400


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in the source of a function."""

    name: str
    module: str
    function: str
    old: str
    new: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run the body with the mistake in place."""
        module = importlib.import_module(f"vinecore.{self.module}")
        owner_name, _, method = self.function.rpartition(".")
        owner = getattr(module, owner_name) if owner_name else module
        right = getattr(owner, method)
        source = textwrap.dedent(inspect.getsource(right))
        if source.count(self.old) != 1:
            raise LookupError(f"mutation {self.name!r}: {self.old!r} is not once in {self.function}; bring the list up to date")
        made: dict[str, object] = {}
        exec(source.replace(self.old, self.new), module.__dict__, made)
        setattr(owner, method, made[method])
        try:
            yield
        finally:
            setattr(owner, method, right)


MUTATIONS = [
    Mutation(
        "late answers count", "manager.on_tasks", "answered", "entry is None or entry.attempt != result.attempt", "entry is None"
    ),
    Mutation("a reference is forgotten", "manager.lineage", "attach", "file.uses += 1", "pass"),
    Mutation("a reference is given back twice", "manager.on_files", "released", "file.holds -= 1", "file.holds -= 2"),
    Mutation("kept values are not made again", "manager.on_tasks", "_bundle_ended", "lineage.make_again(state, output)", "pass"),
    Mutation("what a rerun needs is dropped", "manager.lineage", "release", "if file.remakes > 0:", "if False:"),
    Mutation("an outcome is told again", "manager.lineage", "_tell_once", "task.handle = None", "pass"),
    Mutation("errors do not spread", "manager.on_tasks", "fail", "pending.extend(c for c", "list(c for c"),
    Mutation("parked entries stay parked", "manager.placement", "unpark", "entry.dequeued = False", "continue"),
    Mutation("a splice never ends", "manager.splices", "ended", "_let_source_go(state, splice)", "pass"),
    Mutation("a lost source is waited for", "manager.splices", "worker_left", "source_failed(state, splice)", "pass"),
    Mutation(
        "a splice nobody can serve stays open",
        "manager.splices",
        "_ask",
        "orders.EndSplice(splice.transfer_id)",
        "orders.EndSplice(0)",
    ),
    Mutation("resources are not returned", "manager.placement", "unplace", ".minus(worker.amount_of(shape))", ""),
    Mutation("copies are never unlinked", "manager.on_files", "send_unlinks", "messages.Unlink(names)", "messages.Unlink([])"),
    Mutation("late results stay in the store", "manager.on_tasks", "_drop_late", ".append(name)", ""),
    Mutation("the last retry is not used", "manager.on_tasks", "_raised", "entry.retries > 0", "entry.retries > 1"),
    Mutation(
        "inputs elsewhere join a bundle",
        "manager.bundles",
        "_Bundle.can_join",
        "worker_id not in file.on_workers",
        "not file.on_workers",
    ),
    Mutation(
        "the border of a revocation is ignored",
        "worker.on_calls",
        "_take_back",
        "if number < slot.taken:",
        "if number < slot.first:",
    ),
    Mutation("a dead slot takes its calls along", "worker.on_calls", "slot_gone", "again.append(group)", "pass"),
    Mutation(
        "a dead parent takes its calls along", "worker.on_calls", "lose_slots", "if number not in slot.cancelled:", "if False:"
    ),
    Mutation(
        "calls wait for an object that has failed", "worker.on_calls", "object_settled", "library.queue.append(group)", "pass"
    ),
    Mutation("a dropped object arrives and stays", "worker.on_cache", "unlink", "state.unwanted.add(name)", "pass"),
    Mutation("handed back calls vanish", "worker.on_calls", "_pay", "for call in group.calls:", "for call in ():"),
]


def noticed_by(mutation: Mutation, seeds: range) -> tuple[int, str] | None:
    """The first seed whose life breaks with the mistake planted, and how; None when all of them are well."""
    with mutation.planted():
        for seed in seeds:
            try:
                simulate(seed)
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    blind = 0
    for mutation in MUTATIONS:
        found = noticed_by(mutation, range(args.seeds))
        if found is None:
            blind += 1
        text = "NOT NOTICED" if found is None else f"seed {found[0]}: {found[1]:.110}"
        print(f"{mutation.name:45} {text}", flush=True)
    return 1 if blind else 0


if __name__ == "__main__":
    sys.exit(main())

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
from types import ModuleType

from tests.sim.simulate import simulate

SEEDS = 1000


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in the source of a function. ``rare``: it takes many lives to be noticed."""

    name: str
    module: str
    function: str
    old: str
    new: str
    rare: bool = False

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
        # Modules that imported the function by its name hold it too.
        owners = [owner, *(other for other in _modules() if other.__dict__.get(method) is right and other is not owner)]
        for place in owners:
            setattr(place, method, made[method])
        try:
            yield
        finally:
            for place in owners:
                setattr(place, method, right)


def _modules() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] in ("vinecore", "tests")]


MUTATIONS = [
    Mutation("late answers count", "manager.on_tasks", "answered", "at is None or entry.attempt != result.attempt", "at is None"),
    Mutation("a reference is forgotten", "manager.lineage", "attach", "file.uses += 1", "pass"),
    Mutation("a reference is given back twice", "manager.on_files", "released", "file.holds -= 1", "file.holds -= 2"),
    Mutation("kept values are not made again", "manager.on_tasks", "_bundle_ended", "lineage.make_again(state, output)", "pass"),
    Mutation("what a rerun needs is dropped", "manager.lineage", "release", "if file.remakes > 0:", "if False:"),
    Mutation("an outcome is told again", "manager.lineage", "_tell_once", "task.handle = None", "pass"),
    Mutation("errors do not spread", "manager.on_tasks", "fail", "pending.extend(c for c", "list(c for c"),
    Mutation("who is kept for a worker is forgotten", "manager.near", "keep_together", "instance.local.push(sibling)", "pass"),
    Mutation(
        "what a busy worker keeps is lost", "manager.placement", "_take_over", "near.put_back(state, entry)", "entry.queue = None"
    ),
    Mutation("a line counts too little", "manager.ready", "ReadyQueue.remove", "self._gone += 1", "self._gone += 2"),
    Mutation("parked entries stay parked", "manager.placement", "unpark", "near.put_back(state, entry)", "pass"),
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
        "the border of a revocation is ignored",
        "worker.on_claims",
        "_take_back",
        "if not slot.taken <= number < end:",
        "if not slot.first <= number < end:",
    ),
    Mutation("a dead slot takes its calls along", "worker.on_calls", "slot_gone", "again.append(group)", "pass"),
    Mutation(
        "a dead parent takes its calls along",
        "worker.on_calls",
        "lose_slots",
        "if number not in slot.cancelled:",
        "if False:",
    ),
    Mutation(
        "calls wait for an object that has failed", "worker.on_calls", "object_settled", "library.queue.append(group)", "pass"
    ),
    Mutation(
        "a dropped object arrives and stays",
        "worker.on_cache",
        "arrived",
        "state.orders.append(orders.UnlinkObjects([name]))",
        "pass",
    ),
    Mutation("handed back calls vanish", "worker.on_claims", "_pay", "for call in group.calls:", "for call in ():"),
    # Transfers between workers.
    Mutation("tickets do not expire", "model.ticket", "check_ticket", "if now_s > expires_s:", "if False:"),
    Mutation("tickets are made to last", "manager.transfers", "fetch", "+ LIFETIME_S", "+ 10**9"),
    Mutation("a ticket is for anybody", "model.ticket", "make_ticket", "{worker_id} {expires_s}", "{expires_s}"),
    Mutation("a ticket is for anything", "model.ticket", "make_ticket", " {name}", ""),
    Mutation("a transfer's place is not given back", "manager.transfers", "ended", "source.outgoing -= 1", "pass"),
    Mutation(
        "who waits for a source is forgotten",
        "manager.transfers",
        "look_again",
        "near.put_back(state, entry)",
        "continue",
        rare=True,
    ),
    Mutation(
        "an object that a peer lacks stays there", "manager.on_files", "fetch_failed", ".append(message.name)", "", rare=True
    ),
    Mutation(
        "who cannot be reached is asked for ever", "manager.on_files", "fetch_failed", "in message.unreached if", "in () if"
    ),
    Mutation(
        "transfers of a lost worker never end", "manager.transfers", "worker_left", "ended(state, name, destination)", "pass"
    ),
    Mutation(
        "what vanished is said to be here",
        "worker.on_calls",
        "slot_answered",
        "if result.status == messages.NO_INPUT:",
        "if False:",
        rare=True,
    ),
    # Sandboxes.
    Mutation("a rerun does not pin its inputs", "manager.lineage", "rerun", "file.uses += 1", "pass"),
    Mutation("products of late results stay", "manager.on_tasks", "answered", "if size and not content:", "if False:", rare=True),
    Mutation("products of dead slots stay", "worker.on_calls", "_unlink_results", "names += [product.name", "[product.name"),
    Mutation("products of a retry are kept", "manager.on_tasks", "_reported", "or not is_last:", "and is_last:"),
    Mutation(
        "what is never made is waited for", "manager.on_tasks", "finish", "file.never_made = not file.is_available()", "pass"
    ),
    Mutation(
        "readers of what is not made wait", "manager.on_tasks", "_products_settled", "if reader.state is t.WAITING:", "if False:"
    ),
    Mutation(
        "lost products of failed tasks are waited for", "manager.lineage", "make_again", "producer.error is not None or", ""
    ),
    Mutation(
        "requests are not looked at",
        "manager.placement",
        "_fits",
        "if not amount.missing_in(worker.total.minus(worker.committed)):",
        "if True:",
    ),
    Mutation("others wait behind a request too", "manager.placement", "_fits", "instance.alike is entry.kind.shape", "True"),
    Mutation("what lacked room is not offered again", "manager.placement", "unplace", "other.library.offer(other)", "pass"),
    Mutation("who may take more is not asked", "manager.placement", "_serve_asking", "library.log(instance)", "pass"),
    Mutation("nobody knows who has a bundle", "manager.placement", "_commit", "or is_bundle", ""),
    Mutation("ended readers are remembered", "manager.lineage", "use_ended", "file.left_by(entry)", "pass"),
    # Workers that leave on purpose.
    Mutation("sole copies are not handed over", "manager.on_drain", "settle", "if not sole:", "if True:"),
    Mutation(
        "a draining worker gets work",
        "manager.entries",
        "WorkerEntry.takes_work",
        "not self.draining and not self.blocked",
        "True",
    ),
    Mutation("instances do not hear of a drain", "manager.entries", "WorkerEntry.close", "instance.look()", "pass"),
    Mutation(
        "placed entries are lost from the chain",
        "manager.placement",
        "_mark_placed",
        "first.before = entry",
        "first.before = None",
    ),
    Mutation(
        "work of a leaving worker is forgotten", "manager.on_tasks", "taken_back", "if entry.state is t.PLACED:", "if False:"
    ),
    # What is kept, and what is ended by a limit.
    Mutation("readers of ended tasks wait", "manager.on_tasks", "_ended_without_value", "reader.state is t.WAITING", "False"),
    Mutation("what kept values were made of stays", "manager.lineage", "cut", "release(state, unneeded)", "pass"),
    Mutation("pieces of graphs go with the first value", "manager.on_libraries", "forget_codes", "return  #", "pass  #"),
    Mutation("reruns are not counted", "manager.lineage", "_let_go", "read.remakes -= 1", "pass"),
    Mutation(
        "vertices ended by a limit succeed", "manager.on_tasks", "answered", "_cut_short(state, entry, entry.report)", "pass"
    ),
    # Libraries.
    Mutation("retiring slots are not replaced", "worker.on_calls", "retire", "open_slots(state, library, 1)", "pass"),
]


def noticed_by(mutation: Mutation, seeds: range) -> tuple[int, str] | None:
    """The first seed whose life breaks with the mistake planted, and how; None when all of them are well."""
    with mutation.planted():
        for seed in seeds:
            # Plain lives too: what peers can mend is a mistake where there are none.
            for plain in (False, True):
                try:
                    simulate(seed, plain)
                except Exception as error:
                    return seed, f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="part of the names")
    args = parser.parse_args()
    blind = 0
    for mutation in MUTATIONS:
        if args.only not in mutation.name:
            continue
        found = noticed_by(mutation, range(args.seeds))
        if found is None:
            blind += 1
        text = "NOT NOTICED" if found is None else f"seed {found[0]}: {found[1]:.110}"
        print(f"{mutation.name:45} {text}", flush=True)
    return 1 if blind else 0


if __name__ == "__main__":
    sys.exit(main())

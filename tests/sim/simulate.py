"""Seeded random lives of a small cluster: calls, graphs and sandboxed tasks; workers that come, crash, freeze and leave, slots
and parents that die, disks that are full, transfers between workers that fail, hosts that are drained and blocked.

    python -m tests.sim.simulate --seeds 1000 --start 0 [--processes 2]

A seed decides everything: what is submitted, when, what breaks, how long each message takes. The user (``user.py``, ``boxes.py``,
``keeper.py``) behaves like the layers above the engine: reads large values, drops futures, cancels, ends graphs. ``trouble.py``
breaks things, ``truth.py`` knows what must come of it, ``keeper.py`` keeps the books of who reads what. At the end faults stop,
everything wanted must be delivered exactly once with the right value, and when the user has let go of everything no table may
hold anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
import traceback

from tests.kit.machines import ManagerShell
from tests.kit.network import Faults, Network, Violation
from tests.sim.boxes import BoxUser
from tests.sim.keeper import Keeper
from tests.sim.trouble import Trouble
from tests.sim.truth import Truth
from tests.sim.user import User
from vinecore.model.resources import Resources

# Faults stop after this much virtual time; everything must be done after so much more.
BUSY_S = 1.5
LIMIT_S = 900.0
# Seeds that one process of several takes at a time.
CHUNK = 50


class Simulation:
    """One life. ``run`` raises when a promise is broken.

    Parameters:
        plain: without sandboxes, peers, drains and disks: the first kind of lives, which older regression tests name.
    """

    def __init__(self, seed: int, plain: bool = False) -> None:
        self.seed = seed
        self.plain = plain
        self.rng = rng = random.Random(f"life {seed}")
        self.more = random.Random(f"more of life {seed}")
        self.calm = rng.random() < 0.2  # no faults at all: then nothing may run twice
        harsh = 0.0 if self.calm else rng.choice([0.0, 0.02, 0.1])
        delay = rng.choice([0.0, 0.0005, 0.005, 0.05])
        self.network = Network(seed, Faults(delay, harsh, harsh, harsh * 0.5 if rng.random() < 0.3 else 0.0, harsh))
        self.shell = ManagerShell(self.network)
        state = self.shell.machine.state
        state.tunables.max_losses = 10_000
        state.tunables.max_library_retries = 10_000
        state.notes_wanted = rng.random() < 0.2
        self.truth = Truth(self.network, self.shell)
        self.user = User(rng, self.calm, self.network, self.shell, self.truth)
        self.user.ends_at = self.network.now + BUSY_S
        self.trouble = Trouble(rng, self.more, self.network, self.shell, self.truth)
        self.boxes: BoxUser | None = None
        self.keeper: Keeper | None = None
        if not plain:
            self._add_more(harsh)
            third = random.Random(f"third of life {seed}")
            if third.random() < 0.5:
                self.keeper = Keeper(third, self.user, self.boxes)

    def _add_more(self, harsh: float) -> None:
        """Most lives have peers, many have sandboxes."""
        if self.more.random() < 0.7:
            self.trouble.let_peers_talk()
            self.network.faults.peer_breaks = harsh
        if self.more.random() < 0.7:
            self.boxes = BoxUser(self.more, self.user)

    # ------------------------------------------------------------ the whole life

    def run(self) -> None:
        rng, network = self.rng, self.network
        self.user.install()
        if self.boxes is not None:
            self.boxes.install()
        for _ in range(rng.randint(0, 3)):
            network.later(rng.random() * 0.3, self.trouble.join)
        for _ in range(rng.randint(1, 8)):
            network.later(rng.random() * BUSY_S, self.user.act)
        network.later(0.0, self.user.act)
        if not self.calm:
            for _ in range(rng.randint(0, 10)):
                network.later(rng.random() * BUSY_S, self.trouble.break_something)
        if not self.plain:
            self._plan_more()
        network.run(BUSY_S)
        self.trouble.end()
        if self.boxes is not None:
            self.boxes.give_up()
        if not network.run(LIMIT_S, self._is_done):
            raise Violation("stuck: " + "; ".join(self._story()))
        self.truth.check_outcomes(self.calm)
        self.user.let_go_of_everything()
        network.run(60.0)
        self._check_empty()
        self.trouble.check_tickets()

    def _plan_more(self) -> None:
        more, network = self.more, self.network
        if self.keeper is not None:
            network.later(0.0, self.keeper.look)
            for _ in range(self.keeper.rng.randint(0, 8)):
                network.later(self.keeper.rng.random() * BUSY_S, self.keeper.act)
        if self.boxes is not None:
            for _ in range(more.randint(1, 6)):
                network.later(more.random() * BUSY_S, self.boxes.submit)
        if self.calm:
            for _ in range(more.choice([0, 0, 1, 3])):
                network.later(more.random() * BUSY_S, self.trouble.move_out)
        else:
            for _ in range(more.choice([0, 2, 8])):
                network.later(more.random() * BUSY_S, self.trouble.harm)

    def _is_done(self) -> bool:
        return not self.user.pending_pieces and not self.shell.machine.state.tasks and not self.truth.unread()

    def _story(self) -> list[str]:
        state = self.shell.machine.state
        out = [repr(entry) + " in " + repr(entry.inputs) for entry in list(state.tasks.values())[:4]]
        out += [f"unread {self.truth.held[i]!r}" for i in self.truth.unread()][:4]
        out += [repr(i) for w in state.workers.values() for i in w.instances.values()]
        out += [f"{len(state.tasks)} tasks", f"active {len(state.active)}", f"parked {state.parked}", f"relays {state.relays}"]
        out += [f"crowded {state.crowded}", f"peer fetches {state.peer_fetches}", f"drains {state.drains}"]
        return out

    # ------------------------------------------------------------ the end

    def _check_empty(self) -> None:
        """Nobody refers to anything: nothing may be left."""
        state = self.shell.machine.state
        names = ("tasks", "relays", "wanted_here", "wanted_later", "parked", "unlinks", "cancels", "delivered", "crowded")
        for name in (*names, "peer_fetches", "splices"):
            if getattr(state, name):
                raise Violation(f"the manager still has {name}: {getattr(state, name)!r:.300}")
        if self.shell.splices.waiting or self.shell.splices.passing:
            raise Violation("links of a splice are left")
        permanent = {f.name for f in self.user.declared if f.holds}
        left = set(self.shell.objects) - permanent
        if left:
            raise Violation(f"the manager still has objects {sorted(left)}")
        left = {name for name in state.held if name not in permanent}
        if left:
            raise Violation(f"the manager believes in copies of {sorted(left)}")
        self.truth.check_files()
        for worker in self.shell.workers.values():
            self._check_worker_empty(worker.worker_id, permanent)

    def _check_worker_empty(self, worker_id: int, permanent: set[str]) -> None:
        worker = self.shell.workers[worker_id]
        entry = self.shell.machine.state.workers[worker_id]
        for instance in entry.instances.values():
            if instance.outstanding or instance.groups_out or instance.groups or instance.values or instance.calls:
                raise Violation(f"{instance} still has {instance.groups_out} groups")
        if entry.committed != Resources(0, 0, 0, 0):
            raise Violation(f"{entry} still has {entry.committed} committed")
        if entry.outgoing:
            raise Violation(f"{entry} is said to have {entry.outgoing} transfers under way")
        if not worker.alive:
            return
        left = set(worker.store) - permanent
        if left:
            raise Violation(f"worker {worker_id} still stores {sorted(left)}")
        left = set(worker.machine.state.objects) - permanent
        if left or worker.machine.state.fetching or worker.machine.state.libraries_busy():
            raise Violation(f"worker {worker_id} believes in {sorted(left)}, or is busy")


def simulate(seed: int, plain: bool = False) -> Simulation:
    """Live one life.

    Raises:
        Violation, InvariantError: a promise was broken; the text names the seed.
    """
    life = Simulation(seed, plain)
    life.run()
    return life


def failing(seeds: range) -> list[tuple[int, str]]:
    """The seeds that break a promise, with what went wrong."""
    out = []
    for seed in seeds:
        try:
            simulate(seed)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            out.append((seed, f"{type(error).__name__}: {error} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    started = time.perf_counter()
    end = args.start + args.seeds
    chunks = [range(at, min(at + CHUNK, end)) for at in range(args.start, end, CHUNK)]
    bad = 0
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for found in pool.imap(failing, chunks):
            bad += len(found)
            for seed, text in found:
                print(f"seed {seed}: {text:.600}", flush=True)
    took_s = time.perf_counter() - started
    print(f"{args.seeds} lives in {took_s:.1f} s ({args.seeds / took_s * 3600:,.0f} an hour), {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

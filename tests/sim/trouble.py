"""What goes wrong in a life: workers that come, crash, freeze and leave, slots and parents that die, disks, drains, blocks."""

from __future__ import annotations

import random

from tests.kit.builders import RUN
from tests.kit.machines import ManagerShell
from tests.kit.network import Network, Violation
from tests.kit.workers import FakeWorker
from tests.sim.truth import Truth
from vinecore.manager import events
from vinecore.model.ticket import LIFETIME_S
from vinecore.wire import messages

KEY = b"the key of the run's transfers"
# The machine's time 0 by the calendar.
EPOCH_S = 1.7e9


class Trouble:
    """Breaks things when told to.

    Parameters:
        rng: of what every life has. more: of what only full lives have, so that plain ones stay as they are.
    """

    def __init__(self, rng: random.Random, more: random.Random, network: Network, shell: ManagerShell, truth: Truth) -> None:
        self.rng, self.more, self.network, self.shell, self.truth = rng, more, network, shell, truth
        self.has_peers = False

    def let_peers_talk(self) -> None:
        """From now on workers have ports, and the manager a key for tickets."""
        state = self.shell.machine.state
        self.has_peers = True
        state.transfer_key, state.epoch_offset_s = KEY, EPOCH_S
        if self.more.random() < 0.3:
            state.tunables.worker_source_max_transfers = 1

    def join(self) -> FakeWorker:
        """Another worker."""
        return self._add(self.rng.choice([1, 2, 4]), self.rng.choice(["there", "here"]))

    def _add(self, cores: int, machine: str) -> FakeWorker:
        worker = self.shell.join(cores, machine, has_port=self.has_peers and self.more.random() < 0.9)
        if self.has_peers and self.more.random() < 0.15:
            worker.skew_s = self.more.choice([-2000.0, 2000.0])
        return worker

    def break_something(self) -> None:
        """One of the old troubles."""
        rng = self.rng
        workers = list(self.shell.workers.values())
        what = rng.choice(["join", "crash", "cut", "freeze", "slot", "slot", "host", "hand back"])
        if what == "join" or not workers:
            self.join()
            return
        worker = rng.choice(workers)
        if not worker.alive:
            return
        if what == "crash":
            worker.crash()
        elif what == "cut":
            worker.cut_link()
        elif what == "freeze":
            worker.freeze()
        elif what == "slot" and worker.slots:
            rng.choice(list(worker.slots.values())).die()
        elif what == "host" and worker.hosts:
            worker.kill_host(rng.choice(list(worker.hosts)))
        elif what == "hand back":
            worker.from_manager.send(messages.HandBack(rng.randint(1, 5), 1))

    def harm(self) -> None:
        """One of the troubles that only full lives have."""
        workers = [worker for worker in self.shell.workers.values() if worker.alive]
        if not workers:
            return
        worker = self.more.choice(workers)
        what = self.more.choice(["full", "full", "lose", "lose", "goodbye", "slot", "tired", "move"])
        if what == "full":
            worker.disk_full = True
            self.network.later(self.more.random() * 0.5, self._has_room, worker)
        elif what == "lose" and worker.said.machine != "here":
            # Values and products: code that vanishes is an error of its calls.
            made = sorted(name for name in worker.store if not name.startswith(f"{RUN}-b"))
            share = self.more.choice([0.2, 1.0])
            for name in made:
                if self.more.random() < share:
                    worker.lose_object(name)
        elif what == "goodbye":
            worker.say_goodbye()
        elif what == "slot" and worker.slots:
            self.more.choice(list(worker.slots.values())).die()
        elif what == "tired" and worker.slots:
            worker.tire(self.more.choice(list(worker.slots)))
        elif what == "move":
            self.move_out()

    def _has_room(self, worker: FakeWorker) -> None:
        worker.disk_full = False

    def move_out(self) -> None:
        """The user drains or blocks a worker, for a while or for good. No work is lost by that."""
        workers = [worker for worker in self.shell.workers.values() if worker.alive]
        if not workers:
            return
        worker = self.more.choice(workers)
        host, now = worker.said.hostname, self.network.now
        what = self.more.choice(["drain", "drain host", "drain and back", "block"])
        self.truth.moved = True
        if what == "drain":
            self.shell.handle(events.WorkerDrained(now, worker.worker_id))
        elif what == "block":
            until = now + self.more.random() * 2.0
            self.shell.handle(events.HostsChanged(now, block=host, until=until))
            if self.more.random() < 0.3:
                self.network.later(self.more.random(), self._unblock, host)
        else:
            self.shell.handle(events.HostsChanged(now, drain=host))
            if what == "drain and back":
                self.network.later(self.more.random() * 0.2, self._stay, host)

    def _unblock(self, host: str) -> None:
        self.shell.handle(events.HostsChanged(self.network.now, unblock=host))

    def _stay(self, host: str) -> None:
        self.shell.handle(events.HostsChanged(self.network.now, drain=host, drain_on=False))

    def end(self) -> None:
        """Nothing breaks any more, and there is somebody to do the work."""
        faults = self.network.faults
        faults.fetch_fails = faults.upload_fails = faults.library_fails = faults.duplicates = faults.peer_breaks = 0.0
        for worker in self.shell.workers.values():
            worker.disk_full = False
        self._add(4, "there")
        self._add(2, "here")

    def check_tickets(self) -> None:
        """Whoever shows an old ticket, or one for something or somebody else, gets nothing."""
        for worker in self.shell.all_workers:
            for issued, order in worker.transfers.tickets:
                peer = self.shell.peer_at(order.sources[0][1])
                if peer is None or not peer.alive:
                    continue
                peer.skew_s = 0.0
                names = sorted({*peer.store, order.name})
                others = [name for name in names if name != order.name][:1]
                tries = [(order.name, worker.worker_id + 1, order.expires_s)]
                tries += [(name, worker.worker_id, order.expires_s) for name in others]
                tries += [(order.name, worker.worker_id, order.expires_s + 1)]
                for name, worker_id, expires_s in tries:
                    self._expect_refusal(peer, messages.Get(worker_id, name, order.ticket, expires_s))
                late = issued + LIFETIME_S + 60.0 - self.network.now
                peer.skew_s = late
                self._expect_refusal(peer, messages.Get(worker.worker_id, order.name, order.ticket, order.expires_s))
                peer.skew_s = 0.0

    def _expect_refusal(self, peer: FakeWorker, request: messages.Get) -> None:
        peer.store.setdefault(request.name, b"for those who may")
        answer = peer.transfers.serve(request)
        if not isinstance(answer, str) or answer.startswith("FileLost"):
            raise Violation(f"worker {peer.worker_id} gave {request.name} away for a bad ticket: {request!r}")

"""The processes of one worker: a parent for each library, and the slots that it forks.

WorkerLoop --orders--> ProcessTree --local links--> parents, slots
WorkerLoop <--events, results-- (report, answered)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from vinecore.model.refusals import refused_text
from vinecore.shell import descendants
from vinecore.shell.guard import WorkerGuard
from vinecore.shell.local_link import LocalLink
from vinecore.shell.process import HostProcess, SlotEnds, SlotProcess, end_hosts, kill_group
from vinecore.shell.store import Store
from vinecore.wire import messages
from vinecore.worker import events, orders
from vinecore.worker.machine import WorkerMachine
from vinecore.worker.state import NOT_REVOKED


class ProcessTree:
    """Parents and slots; everything here runs in the loop's thread.

    Parameters:
        report: takes an event for the machine.
        answered: takes a slot's id and the payloads that it sent.
        reap: calls a function that may block, in another thread.
    """

    def __init__(
        self,
        store: Store,
        report: Callable[[events.Event], None],
        answered: Callable[[int, list[bytes]], None],
        reap: Callable[[Callable[[], object]], None],
    ) -> None:
        self.store = store
        self.report = report
        self.answered = answered
        self.reap = reap
        self.loop: asyncio.AbstractEventLoop
        # Of the manager that is served now.
        self.machine: WorkerMachine
        self.hosts: dict[int, HostProcess] = {}
        self.slots: dict[int, SlotProcess] = {}
        self.slot_ends = SlotEnds(self._slot_held, self._slot_ended)
        self.guard: WorkerGuard | None = None
        # A parent started ahead of need: its imports overlap with connecting.
        self.spare: HostProcess | None = None
        # Children of this process whose ends nobody has asked for yet: every other child was adopted.
        self._own: list[HostProcess] = []

    def begin(self) -> None:
        """Start the spare parent, have a guard for the case that this process is killed, take orphans in from now on."""
        # First: its imports take longest, and go on meanwhile.
        self.spare = self._new_host()
        # Before orphans are taken in, or the guard would be a child of this process.
        self.guard = WorkerGuard(self.store.mark, self.store.remove, self.store.kept_fds)
        descendants.adopt_orphans()

    def reap_adopted(self) -> None:
        """Children ended: forget those that were taken in."""
        descendants.reap_adopted(self._own_pids())

    def _new_host(self) -> HostProcess:
        host = HostProcess(str(self.store.temporary), self.store.remove_library, self.store.mark)
        self._own.append(host)
        return host

    def _own_pids(self) -> set[int]:
        self._own = [host for host in self._own if host.process.returncode is None]
        return {host.process.pid for host in self._own}

    def end(self) -> None:
        """End every parent and slot of this worker."""
        hosts, self.hosts = list(self.hosts.values()), {}
        slots, self.slots = list(self.slots.values()), {}
        self.slot_ends.clear()
        if self.spare is not None:
            hosts.append(self.spare)
            self.spare = None
        for slot in slots:
            slot.close()
        end_hosts(hosts, [slot.pid for slot in slots if slot.pid])
        # What made itself a session of its own is no member of its slot's group.
        descendants.end_descendants(self._own_pids())

    def start_host(self, order: orders.StartHost) -> None:
        """Begin a library: its parent process, the spare one if there is one. That there can be none harms no other library."""
        try:
            host = self.spare or self._new_host()
        except OSError as error:
            text = f"its process {refused_text(error, os.uname().nodename)}"
            self.loop.call_soon(self.report, events.HostGone(time.monotonic(), order.library_id, text))
            return
        self.spare = None
        self.hosts[order.library_id] = host
        library_id = order.library_id

        def said(payloads: list[bytes]) -> None:
            for payload in payloads:
                message = messages.decode_from_library(payload)
                if isinstance(message, messages.Forked):
                    self._forked(message)
                elif isinstance(message, messages.SlotExited):
                    still_open = message.slot_id in self.slots
                    self.slot_ends.exited(self.loop, message, still_open)
                self.report(events.HostSaid(time.monotonic(), library_id, message))

        link = host.connect(self.loop, said, lambda: self._host_gone(library_id, host))
        begin, welcome = order.begin, self.machine.state.welcome
        assert welcome is not None
        path = str(self.store.path(begin.payload_name)) if begin.payload_name else ""
        message = messages.Begin(
            library_id,
            begin.name,
            begin.payload,
            [name for name in begin.modules if name not in order.without],
            str(self.store.objects),
            welcome.run,
            welcome.inline_limit_bytes,
            path,
            begin.exec_mode,
            begin.mounts,
            begin.init_command,
            begin.program,
            begin.growth_mb,
        )
        link.send(messages.encode(message))

    def _forked(self, message: messages.Forked) -> None:
        slot = self.slots.get(message.slot_id)
        if slot is None:
            kill_group(message.pid)
            return
        slot.pid = message.pid
        if slot.kill_wanted:
            slot.kill()

    def _host_gone(self, library_id: int, host: HostProcess) -> None:
        if self.hosts.get(library_id) is not host:
            return
        del self.hosts[library_id]
        host.ask_end()
        for slot_id, slot in self.machine.state.slots.items():
            if slot.library_id == library_id and slot_id in self.slots:
                self.slots[slot_id].kill()
        for slot_id in [i for i, s in self.machine.state.slots.items() if s.library_id == library_id]:
            self.drop_slot(slot_id)
        self.report(events.HostGone(time.monotonic(), library_id, host.end_text()))
        self.reap(host.remove_files)

    def open_slots(self, order: orders.OpenSlots) -> None:
        """Let a parent fork slots.

        Raises:
            OSError: one cannot be opened, and no other is ready here.
        """
        host = self.hosts.get(order.library_id)
        if host is None or host.link is None:
            return
        for slot_id in order.slot_ids:
            try:
                self._open_slot(slot_id, host.link)
            except OSError as error:
                if not any(slot.is_ready for slot in self.machine.state.slots.values()):
                    raise
                how = refused_text(error, os.uname().nodename)
                self.loop.call_soon(self.report, events.SlotGone(time.monotonic(), slot_id, NOT_REVOKED, how))

    def _open_slot(self, slot_id: int, to_host: LocalLink) -> None:
        slot = SlotProcess()
        try:
            slot.link = LocalLink(
                self.loop,
                slot.sock,
                lambda payloads: self.answered(slot_id, payloads),
                lambda: self._slot_gone(slot_id),
            )
            to_host.send(messages.encode(messages.ForkSlots([slot_id])), slot.descriptors())
        except BaseException:
            slot.close()
            raise
        finally:
            slot.sent()
        self.slots[slot_id] = slot

    def _slot_gone(self, slot_id: int) -> None:
        slot = self.slots.pop(slot_id, None)
        if slot is None:
            return
        started = slot.claims[0]
        slot.close()
        slot.kill()
        self.slot_ends.closed(self.loop, slot_id, started)

    def _slot_held(self, slot_id: int) -> None:
        """A slot has ended, and somebody else has its socket: what it sent still counts."""
        slot = self.slots.get(slot_id)
        if slot is not None and slot.link is not None:
            slot.kill()
            slot.link.read_rest()
        self._slot_gone(slot_id)

    def drop_slot(self, slot_id: int) -> None:
        """Close a slot's socket; it ends by itself, and its parent then ends what its calls have left."""
        slot = self.slots.pop(slot_id, None)
        self.slot_ends.dropped(slot_id)
        if slot is not None:
            slot.close()

    def stop_host(self, library_id: int) -> None:
        """End a library: its slots at once, its parent in a thread."""
        host = self.hosts.pop(library_id, None)
        slots = [i for i, s in self.machine.state.slots.items() if s.library_id == library_id]
        for slot_id in slots:
            if slot_id in self.slots:
                self.slots[slot_id].kill()
            self.drop_slot(slot_id)
        if host is not None:
            host.ask_end()
            self.reap(host.end_and_clean)

    def _slot_ended(self, slot_id: int, started: int, how: str) -> None:
        self.report(events.SlotGone(time.monotonic(), slot_id, started, how))

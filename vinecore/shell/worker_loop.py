"""The worker's shell.

    manager link --payloads--> decode --> WorkerMachine.handle --> orders --> perform: slots, parents, transfers, manager link
    slot sockets --results--/     ^  ^--- ticks, ends of transfers (threads, back through the loop)

It decides nothing about work. It owns the life of this process: connecting with back-off, serving one manager after another, and
taking its whole tree along when it ends.

Stop order: say goodbye, stop reading, end parents and slots, end transfers, remove the workspace.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from vinecore.errors import AuthenticationError, PeerError
from vinecore.shell.descriptors import raise_descriptors
from vinecore.shell.machine_id import machine_id
from vinecore.shell.manager_dial import ManagerDial, Way
from vinecore.shell.own_words import STDERR, STDOUT, say
from vinecore.shell.peer_server import PeerServer
from vinecore.shell.process import kill_group
from vinecore.shell.process_tree import ProcessTree
from vinecore.shell.secrets import awaited_secret, load_secret, secret_for_worker
from vinecore.shell.store import Store, sweep_dead_workspaces
from vinecore.shell.stream import Link
from vinecore.shell.tls import Identity, client_context, is_server_name
from vinecore.shell.transfer_threads import TransferThreads
from vinecore.wire import messages
from vinecore.worker import events, orders
from vinecore.worker.machine import WorkerMachine

__all__ = ["STDERR", "WorkerConfig", "WorkerLoop", "awaited_secret", "count_gpus", "is_server_name", "say", "secret_for_worker"]

# A worker that leaves waits this long for its manager to fetch what only it holds; batch systems kill after about 30 s.
HANDOVER_S = 5.0
# How often a worker without a secret looks whether a manager has made one.
SECRET_LOOK_S = 0.5
# How often the worker looks whether its manager is silent, its workspace is gone or it has been idle for too long.
LOOK_S = 5.0
# The vendor's tool that lists GPUs may hang. Meanwhile signals are looked for so often: they are only noted.
GPU_LIMIT_S = 10.0
GPU_LOOK_S = 0.1
# When these tell of an end or a failure, that may be because the workspace is gone; all of them are rare.
_NEED_STORE = (events.HostSaid, events.HostGone, events.SlotGone, events.ObjectFailed)


@dataclass
class WorkerConfig:
    """What a worker was told at its start. Times in seconds, sizes in MB; 0 cores means all of them."""

    managers: list[tuple[str, int]]
    secret: bytes | None = None
    # The default secret file, if it is still to be made.
    awaited_secret: Path | None = None
    cores: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    gpus: int = 0
    features: list[str] = field(default_factory=list)
    workspace: str | None = None
    keep_workspace: bool = False
    idle_timeout_s: float = 900.0
    connect_timeout_s: float = 900.0
    min_backoff_s: float = 1.0
    max_backoff_s: float = 8.0
    single_shot: bool = False
    embedded: bool = False
    lifeline_fd: int = -1
    tls: bool = False
    tls_name: str = ""
    debug: bool = False
    quiet: bool = False
    # What tells it to end, and what of that has come already.
    end_signals: tuple[signal.Signals, ...] = ()
    early_signals: list[int] = field(default_factory=list)


class WorkerLoop:
    """One worker process; ``run`` returns its exit code."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.exit_code = 0
        self.leave_reason = ""
        self.exit_wanted = False
        # Nothing can run here any more.
        self._is_lost = False
        # That a signal came, until a line has said so.
        self._untold = ""
        # Until the loop takes signals over: an early end must not leave the workspace behind.
        for number in config.end_signals:
            signal.signal(number, self._signalled_early)
        for early in config.early_signals:
            self._signalled_early(early, None)
        self.store = Store(config.workspace, config.keep_workspace)
        self.machine = WorkerMachine()
        self.link: Link | None = None
        self.peers = PeerServer(self.store, config.secret, self._transfer_key)
        self.peers.encrypted = config.tls
        self.tls = client_context() if config.tls else None
        self.transfers = TransferThreads(self.store, config.secret, self.tls, self._report)
        self.tree = ProcessTree(self.store, self._later, self._slot_answered, self.transfers.submit)
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event
        self.disconnected: asyncio.Event
        self.served = False
        self.last_work = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # ------------------------------------------------------------ life

    def run(self) -> int:
        """Serve until told to stop; returns the exit code (0: well, 1: refused or no manager)."""
        try:
            # A hundred slots have more descriptors than is usually allowed by default.
            raise_descriptors()
            if not self.exit_wanted:
                self.tree.begin()
                asyncio.run(self._guarded())
            if self._untold:
                self._say(f"{self._untold} before {'another' if self.served else 'a'} manager answered")
        finally:
            self.tree.end()
            self.transfers.close()
            self.store.remove()
            if self.tree.guard is not None:
                self.tree.guard.dismiss()
        return self.exit_code

    async def _guarded(self) -> None:
        """Everything between two ways to take signals; the last one ignores them, so that nothing cuts the clean-up short."""
        self.loop = self.tree.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        for number in self.config.end_signals:
            self.loop.add_signal_handler(number, self._signalled, number)
        self.loop.add_signal_handler(signal.SIGCHLD, self.tree.reap_adopted)
        # A thousand slots may end at once: what does not fit is no news, and none for people.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
        try:
            if not self.exit_wanted:
                await self._main()
        finally:
            self.loop.remove_signal_handler(signal.SIGCHLD)
            for number in self.config.end_signals:
                self.loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    async def _main(self) -> None:
        if self.config.lifeline_fd >= 0:
            self.loop.add_reader(self.config.lifeline_fd, self._lifeline_cut)
        self._say(f"workspace {self.store.workspace}")
        give_up = time.monotonic() + self.config.connect_timeout_s
        # Before peers are let in, who have to know it.
        if self.config.awaited_secret is not None and not await self._find_secret(self.config.awaited_secret, give_up):
            return
        if not self.config.embedded:
            self.transfers.submit(sweep_dead_workspaces)
            await self.peers.start()
        tls = None if self.tls is None else (self.tls, self.config.tls_name)
        dial = ManagerDial(self.config.managers, self.config.secret, tls, self._payloads, self.stop, self._say)
        await self._serve_managers(dial, give_up)

    async def _serve_managers(self, dial: ManagerDial, give_up: float) -> None:
        """One after another, until it is told to end or there is nobody to ask any more."""
        backoff = self.config.min_backoff_s
        told = False
        while not self.stop.is_set() and not self._lost_workspace():
            way = await dial.reach(give_up)
            if way is not None:
                self._join(way)
                began = time.monotonic()
                await self._serve()
                has_joined = self.machine.state.welcome is not None
                if self.exit_wanted or (has_joined and self.config.single_shot):
                    return
                give_up = time.monotonic() + self.config.connect_timeout_s
                why = self.leave_reason or "the manager closed the connection"
                if not has_joined:
                    if dial.sent_away(way, why):
                        continue
                elif time.monotonic() - began >= self.config.min_backoff_s:
                    backoff = self.config.min_backoff_s
                    told = False
                    continue
                else:
                    # It ended at once: asking again without a pause would keep both sides busy.
                    dial.failures = {way.place: PeerError(why)}
            elif self.stop.is_set():
                return
            if dial.refusal:
                self._fail(dial.refusal)
                return
            if dial.is_wanted_later():
                if self.config.single_shot:
                    return
                # Somebody is there, so this is no search that may be in vain.
                give_up = time.monotonic() + self.config.connect_timeout_s
            left = give_up - time.monotonic()
            if left <= 0:
                why = dial.failed_within(self.config.connect_timeout_s)
                if self.served:
                    self._say(f"{why}; ending")
                else:
                    self._fail(why)
                return
            if not told:
                # Once for each manager that is waited for: it may come later, or be somewhere else.
                self._say(dial.waits_for(left))
                told = True
            with contextlib.suppress(TimeoutError):
                # The last try is at the deadline, not a pause before it.
                await asyncio.wait_for(self.stop.wait(), min(backoff, left))
            backoff = min(backoff * 2, self.config.max_backoff_s)

    async def _find_secret(self, place: Path, give_up: float) -> bool:
        """Wait for the file that the first manager makes; False when it did not come, or is refused."""
        left = give_up - time.monotonic()
        self._say(
            f"there is no secret at {place} yet: the first manager of this user makes it; looking for it for {left:.0f} s"
            " (copy it from the manager's machine if that is another, or name it with --password FILE)"
        )
        while not self.stop.is_set() and not place.exists() and (left := give_up - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), min(SECRET_LOOK_S, left))
        if self.stop.is_set():
            return False
        try:
            self.config.secret = self.peers.secret = self.transfers.secret = load_secret(place)
        except AuthenticationError as error:
            self._fail(str(error))
            return False
        return True

    def _join(self, way: Way) -> None:
        """Begin to work for a manager that let us in."""
        self.link, self.transfers.address, self.disconnected = way.link, way.address, way.disconnected
        # A signal may have come at this moment.
        self.leave_reason = self._untold
        self.machine = self.tree.machine = WorkerMachine()
        self.machine.state.last_heard = time.monotonic()
        self.link.send(messages.encode(self._hello()))
        self.link.flush()

    def _hello(self) -> messages.Hello:
        config = self.config
        cores = config.cores or len(os.sched_getaffinity(0))
        memory = config.memory_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        disk = config.disk_mb or shutil.disk_usage(self.store.workspace).free // 2 // 2**20
        self._say(
            f"{cores} cores, {memory} MB memory, {disk} MB disk, {config.gpus} gpus; "
            f"manager at {self.transfers.address[0]}:{self.transfers.address[1]}"
        )
        return messages.Hello(
            socket.gethostname(),
            os.getpid(),
            cores,
            int(memory),
            int(disk),
            config.gpus,
            config.features,
            platform.python_version(),
            machine_id(),
            str(self.store.objects),
            [],
            self.peers.port,
        )

    async def _serve(self) -> None:
        """Work for the manager until one side ends the link, then forget everything about it."""
        self.served = True
        self.last_work = time.monotonic()
        waits = [asyncio.ensure_future(self.stop.wait()), asyncio.ensure_future(self.disconnected.wait())]
        while True:
            idle_left_s = self.config.idle_timeout_s - (time.monotonic() - self.last_work)
            pause_s = min(LOOK_S, max(0.05, idle_left_s))
            done, _ = await asyncio.wait(waits, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            self._handle(events.Tick(time.monotonic()))
            self.transfers.tidy()
            if self._lost_workspace():
                break
            state = self.machine.state
            # A library that loads its context is work, however long that takes.
            if state.libraries_busy() or not all(library.ready_told for library in state.libraries.values()):
                self.last_work = time.monotonic()
            elif time.monotonic() - self.last_work >= self.config.idle_timeout_s:
                self.leave_reason = f"no work for {self.config.idle_timeout_s:g} s"
                self.exit_wanted = True
                break
        for wait in waits:
            wait.cancel()
        link = self.link
        if link is not None and not link.lost:
            self._say_goodbye()
            if not self.disconnected.is_set() and not self.config.embedded:
                # What only this worker holds is handed over first; the manager then releases it.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.disconnected.wait(), HANDOVER_S)
            link.close()
        self._say(f"left the manager: {self.leave_reason or 'the connection was closed'}")
        self._untold = ""
        if link is not None and isinstance(link.error, PeerError):
            self._say(f"the link to the manager was closed: {link.error}")
        self.link = None
        self.transfers.interrupt()
        self.tree.end()
        self.store.clear()

    def _transfer_key(self) -> bytes | None:
        """Key of the run that is served now (any thread)."""
        welcome = self.machine.state.welcome
        return welcome.transfer_key if welcome is not None and welcome.transfer_key else None

    def _signalled_early(self, number: int, frame: object) -> None:
        """A note only: an exception raised here would be lost where Python ignores those, in what libraries do at a fork, say."""
        self.leave_reason = self._untold = f"got {signal.Signals(number).name}"
        self.exit_wanted = True

    def _signalled(self, number: int) -> None:
        self._signalled_early(number, None)
        self.stop.set()

    def _lost_workspace(self) -> bool:
        """Whether somebody has removed the workspace: every call would fail here, so the worker ends.

        The manager hears that first: what this worker says afterwards of its calls, which fail, does not count.
        """
        if self.store.is_gone():
            self._give_up(f"its workspace {self.store.workspace} is gone")
            return True
        return False

    def _give_up(self, why: str) -> None:
        """Nothing can run here any more."""
        if not self._is_lost:
            self._is_lost = self.exit_wanted = True
            self.leave_reason = why
            self._fail(why)
            self._say_goodbye()
            self.stop.set()

    def _say_goodbye(self) -> None:
        if self.link is not None and not self.link.lost:
            self.link.send(messages.encode(messages.Goodbye(self.leave_reason or "told to stop")))
            self.link.flush()

    def _lifeline_cut(self) -> None:
        self.loop.remove_reader(self.config.lifeline_fd)
        self.leave_reason = "the process that started it is gone"
        self.exit_wanted = True
        self.stop.set()

    def _fail(self, text: str) -> None:
        say(STDERR, f"vine_worker: {text}")
        self.exit_code = 1

    def _say(self, text: str) -> None:
        if not self.config.quiet:
            say(STDOUT, f"vine_worker: {text}")

    # ------------------------------------------------------------ events in

    def _payloads(self, link: Link, payloads: list[bytes]) -> None:
        now = time.monotonic()
        together: list[object] = []
        for payload in payloads:
            message = messages.decode_from_manager(payload)
            last = together[-1] if together else None
            if type(message) is messages.Run and type(last) is messages.Run and last.library_id == message.library_id:
                # Those that arrived together are one event: a slot then gets one large batch, not several small ones.
                last.groups.extend(message.groups)
                last.values.extend(message.values)
            else:
                together.append(message)
        for message in together:
            if type(message) is messages.Welcome and message.peer_key:
                self.peers.identity = Identity.of_pem(message.peer_key, message.peer_certificate, self.store.objects)
            self._handle(events.ManagerSaid(now, message))
            if type(message) is not messages.Ping and type(message) is not messages.Pong:
                self.last_work = now

    def _handle(self, event: events.Event) -> None:
        if self.config.debug:
            say(STDERR, f"{time.time():.6f} {event!r:.400}")
        for order in self.machine.handle(event):
            self._perform(order)
        if self.link is not None:
            self.link.flush()
        self._schedule()

    def _schedule(self) -> None:
        due = self.machine.next_deadline()
        if due is None:
            return
        if self._timer is not None and self._timer_at <= due and not self._timer.cancelled():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.link is not None:
            self._handle(events.Tick(time.monotonic()))

    def _slot_answered(self, slot_id: int, payloads: list[bytes]) -> None:
        now = time.monotonic()
        for payload in payloads:
            message = messages.decode_from_slot(payload)
            if isinstance(message, messages.Done):
                self._handle(events.SlotAnswered(now, slot_id, message.results))
            elif isinstance(message, messages.Tired):
                self._handle(events.SlotTired(now, slot_id, message.grown_mb))
            else:
                assert isinstance(message, messages.Ready)
                self._handle(events.SlotReady(now, slot_id))
        self.last_work = now

    # ------------------------------------------------------------ orders out

    def _perform(self, order: object) -> None:
        if type(order) is orders.ToSlot:
            slot = self.tree.slots.get(order.slot_id)
            if slot is not None and slot.link is not None:
                message = order.message
                if isinstance(message, messages.SlotCode) and message.path:
                    path = str(self.store.path(message.path))
                    message = messages.SlotCode(message.code_id, b"", message.is_piece, path, message.requires)
                slot.link.send(messages.encode(message))
        elif type(order) is orders.ToManager:
            if self.link is not None:
                self.link.send(messages.encode(order.message))
        else:
            self._perform_rare(order)

    def _perform_rare(self, order: object) -> None:
        if isinstance(order, orders.Revoke):
            if order.slot_id in self.tree.slots:
                self.tree.slots[order.slot_id].claims[1] = order.sequence
        elif isinstance(order, orders.ReadClaim):
            if order.slot_id in self.tree.slots:
                started = self.tree.slots[order.slot_id].claims[0]
                self.loop.call_soon(self._later, events.ClaimRead(time.monotonic(), order.slot_id, started))
        elif isinstance(order, orders.StartHost):
            self.tree.start_host(order)
        elif isinstance(order, orders.ToHost):
            host = self.tree.hosts.get(order.library_id)
            if host is not None and host.link is not None:
                host.link.send(messages.encode(order.message))
        elif isinstance(order, orders.OpenSlots):
            try:
                self.tree.open_slots(order)
            except OSError as error:
                self._give_up(f"it cannot open a slot ({error.strerror}): raise the limit (ulimit -Hn), or offer fewer --cores")
        elif isinstance(order, orders.CloseSlot):
            self.tree.drop_slot(order.slot_id)
        elif isinstance(order, orders.KillSlot):
            if order.slot_id in self.tree.slots:
                self.tree.slots[order.slot_id].kill()
        elif isinstance(order, orders.StopHost):
            self.tree.stop_host(order.library_id)
        elif isinstance(order, orders.FetchObject):
            self.transfers.fetch(order, self._worker_id())
        elif isinstance(order, orders.StopFetch):
            self.transfers.stop(order)
        elif isinstance(order, orders.UploadObject):
            self.transfers.upload(order, self._worker_id())
        elif isinstance(order, orders.UnlinkObjects):
            self.store.unlink(order.names, order.partial)
        elif isinstance(order, orders.LookAtStore):
            self._lost_workspace()
        elif isinstance(order, orders.LeaveManager):
            self.leave_reason = self.leave_reason or order.reason
            self.exit_wanted = self.exit_wanted or order.exit
            self.disconnected.set()

    def _worker_id(self) -> int:
        welcome = self.machine.state.welcome
        assert welcome is not None
        return welcome.worker_id

    def _report(self, event: events.Event) -> None:
        """An event from another thread."""
        self.loop.call_soon_threadsafe(self._later, event)

    def _later(self, event: events.Event) -> None:
        if self.link is None or (isinstance(event, _NEED_STORE) and self._lost_workspace()):
            return
        self._handle(event)


def count_gpus(signals: list[int]) -> int:
    """Number of GPUs that the vendor's tool lists; 0 without the tool, if it takes too long, or once a signal has come."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    until = time.monotonic() + GPU_LIMIT_S
    try:
        process = subprocess.Popen(
            [tool, "-L"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError:
        return 0
    with process:
        while not signals and time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                listed, _ = process.communicate(timeout=GPU_LOOK_S)
                return sum(line.startswith("GPU ") for line in listed.splitlines())
        kill_group(process.pid)
    return 0

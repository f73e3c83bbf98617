"""Tasks with sandboxes in a life: commands and functions with mounts, products and requests, readers that come before makers."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from tests.kit.builders import Handle
from tests.kit.network import Spec, digest, product_value
from tests.sim.truth import ALWAYS
from tests.sim.user import DURATIONS_S, User
from vinecore.manager import events
from vinecore.manager.entries import CodeEntry, FileEntry, Kind, LibraryEntry, LibrarySetup, Shape, TaskEntry
from vinecore.model.resources import Resources
from vinecore.wire import messages

if TYPE_CHECKING:
    from tests.sim.keeper import Keeper

# What tasks ask for; the largest fits only the largest workers, the last fits none.
REQUESTS: tuple[dict[str, float], ...] = (
    {},
    {"cores": 1},
    {"cores": 2},
    {"cores": 3},
    {"cores": 4},
    {"memory": 300},
    {"cores": 1, "memory": 600},
    {"disk": 100},
    {"cores": 0, "memory": 10},
    {"cores": 64},
)
PRODUCT_SIZES = (0, 8, 1000, 100_000, 400_000)
FLAGS = (0, 0, messages.HOME, messages.HOME, messages.ON_SUCCESS, messages.ON_FAILURE)


class BoxUser:
    """The part of the user that submits tasks with sandboxes."""

    def __init__(self, rng: random.Random, user: User) -> None:
        self.rng, self.user = rng, user
        self.calm, self.network, self.truth = user.calm, user.network, user.truth
        # Slots that are replaced after some calls, in some lives.
        setup = LibrarySetup(max_calls=rng.choice([0, 0, 1, 7]))
        self.library = LibraryEntry(3, "processes", exec_mode="fork", setup=setup)
        self.ids = itertools.count(5_000_001)
        self.command = CodeEntry(next(self.ids), 3, b"")
        self.function = CodeEntry(next(self.ids), 3, b"code")
        requests = rng.sample(REQUESTS, rng.randint(1, 4))
        self.kinds = [Kind(f"box {request}", Shape(self.library, Resources(**request), True)) for request in requests]
        self.facts = {kind: (rng.choice(DURATIONS_S), rng.choice([8, 1000, 100_000])) for kind in self.kinds}
        # Files that a task may mount, with their id in the book (0: declared) and their bytes.
        self.mountable: list[tuple[FileEntry, int, bytes]] = []
        self.impossible: list[TaskEntry] = []
        self.is_ending = False
        self.keeper: Keeper | None = None

    def install(self) -> None:
        """The library of processes; some files to mount."""
        self.user.shell.handle(events.LibraryInstalled(self.network.now, self.library))
        for number in range(self.rng.randint(0, 3)):
            data = b"data %d" % number
            self.mountable.append((self.user.declare(data), 0, data))
        if self.rng.random() < 0.5:
            small = self.user.declare(b"small")
            small.data = b"small"
            self.mountable.append((small, 0, b"small"))

    def submit(self) -> None:
        """Some tasks; of a few, whoever reads their products comes first."""
        now: list[TaskEntry] = []
        for _ in range(self.rng.choice([1, 2, 5, 20])):
            if self.rng.random() < 0.1:
                later = self._task(promised=True)
                now += [self._task() for _ in range(2)]
                for file in later.inputs:
                    file.holds += 1  # the task is not known to the manager yet: the user holds what it reads
                self.user.pending_pieces += 1
                self.network.later(self.rng.random() * 0.2, self._submit_later, later)
            else:
                now.append(self._task())
        self._submit(now)

    def _submit(self, entries: list[TaskEntry]) -> None:
        self.user.shell.handle(events.TasksSubmitted(self.network.now, entries))
        if self.is_ending:
            self.give_up()

    def _submit_later(self, entry: TaskEntry) -> None:
        self.user.pending_pieces -= 1
        held = list(entry.inputs)
        self._submit([entry])
        self.user.shell.handle(events.FileReleased(self.network.now, held))

    def give_up(self) -> None:
        """Tasks that fit nowhere would wait for ever."""
        self.is_ending = True
        waiting = [e for e in self.impossible if not self.user.shell.delivery_counts[e.task_id]]
        self.truth.cancel(waiting)
        self.user.shell.handle(events.TasksCancelled(self.network.now, waiting))

    def _task(self, promised: bool = False) -> TaskEntry:
        rng, truth = self.rng, self.truth
        is_command = rng.random() < 0.6
        kind = rng.choice(self.kinds)
        usable = [m for m in self.mountable if m[1] not in truth.dropped]
        mounted = [rng.choice(usable) for _ in range(rng.randint(0, 3))] if usable and rng.random() < 0.7 else []
        entry = TaskEntry(
            next(self.ids),
            kind,
            self.command if is_command else self.function,
            b"" if is_command else b"args",
            Handle(),
            tuple(file for file, _, _ in mounted),
            retries=rng.randint(0, 2),
        )
        flags = [rng.choice(FLAGS) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        entry.sandbox = messages.Sandbox(
            [messages.Mount("", f"in{number}") for number in range(len(mounted))],
            [messages.Product(f"out{number}", "", flag) for number, flag in enumerate(flags)],
            [],
            "make" if is_command else "",
        )
        values = [data for _, _, data in mounted]
        spec = self._spec(entry, is_command, len(flags))
        truth.values[entry.task_id] = b"" if is_command else digest(entry.task_id, values)
        truth.describe(entry, [number for _, number, _ in mounted if number])
        truth.calls.append(entry)
        entry.products = tuple(self._product(entry, n, flag, spec, values, promised) for n, flag in enumerate(flags))
        if not is_command and rng.random() < 0.5:
            output = entry.output = FileEntry(entry.task_id)
            output.producer, output.holds = entry, 1
            number = truth.describe_value(entry) if spec.limits else entry.task_id
            self.mountable.append((output, number, truth.values[entry.task_id]))
        if kind.shape.request.cores == 64:
            self.impossible.append(entry)
        return entry

    def _spec(self, entry: TaskEntry, is_command: bool, products: int) -> Spec:
        """What a task does."""
        rng = self.rng
        duration, size = self.facts[entry.kind]
        spec = self.network.specs[entry.task_id] = Spec(duration, size)
        spec.product_sizes = tuple(rng.choice(PRODUCT_SIZES) for _ in range(products))
        if not is_command and rng.random() < 0.05:
            spec.raises = ALWAYS
        elif not is_command and entry.retries and rng.random() < 0.2:
            spec.raises = rng.randint(1, entry.retries)
        if not self.calm:
            spec.kills = int(rng.random() < 0.03)
            spec.child_kills = int(rng.random() < 0.05)
            spec.late_kills = int(rng.random() < 0.03)
            spec.damages = int(rng.random() < 0.05)
            if rng.random() < 0.05:
                spec.leaves_out = frozenset(n for n in range(products) if rng.random() < 0.5)
        if self.keeper is not None and not spec.raises:
            spec.limits = self.keeper.limits_of(entry)
        return spec

    def _product(self, entry: TaskEntry, number: int, flag: int, spec: Spec, values: list[bytes], promised: bool) -> FileEntry:
        """What a task leaves behind; whoever reads it may come first when it was promised."""
        file = FileEntry(next(self.ids))
        file.holds = 1
        if promised:
            file.promised = True
        file.producer = entry
        value = product_value(entry.task_id, number, values, spec.product_sizes[number])
        fails = spec.raises == ALWAYS or spec.limits > 0
        is_made = number not in spec.leaves_out and not flag & (messages.ON_SUCCESS if fails else messages.ON_FAILURE)
        self.truth.describe_product(entry, file, value, is_made)
        if is_made or self.rng.random() < 0.3:
            self.mountable.append((file, file.value_id, value))
        return file

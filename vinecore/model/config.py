"""Every tunable of the manager: name, unit, default, the reason for the default, and its range.

``Manager.tune(name, value)`` sets one by its documented name (dashes). Names that the reference documents for parts which
are not in this version are rejected like unknown ones: an option that does nothing would be a lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vinecore.errors import UsageError
from vinecore.model.numbers import AMOUNT_LIMIT, SECONDS_LIMIT, number_of, shown

# Of workers, tasks, starts and transfers.
COUNT_LIMIT = 10**9
MS_LIMIT = SECONDS_LIMIT * 1000


@dataclass(slots=True)
class Tunables:
    """Values in force; each comment says what moves when it is changed."""

    # Higher: a busy link is checked less often, a frozen worker is noticed later. 0: never.
    keepalive_interval: float = 5.0
    # Lower: a worker that is only slow (swap, suspended laptop) is declared lost.
    keepalive_timeout: float = 20.0
    # Calls that wait at a worker, as time per slot. Higher: better throughput of tiny calls, worse balance between workers.
    pipeline_ms: float = 20.0
    # Time of one bundle of short graph vertices for one slot; higher: fewer messages, later reaction to imbalance.
    bundle_ms: float = 25.0
    # The same where vertices make large values, which a bundle keeps from being written.
    bundle_large_ms: float = 200.0
    # A value above this many bytes counts as large for bundling.
    bundle_large_bytes: float = 256 * 1024
    # Vertices of a bundle while nobody knows how long they run.
    bundle_unknown_count: float = 16
    # Times a call may be lost with its slot or worker before it fails.
    max_losses: float = 5
    # Starts of a library process, in a row without getting ready or within restart_window seconds, before it counts as failed on
    # that worker.
    max_library_retries: float = 3
    library_restart_window: float = 60.0
    # A slot that has grown by more than its part of this share of the worker's memory is replaced (0: never), where calls leave
    # nothing for later ones: library "python", for futures and graphs. Lower: slots with large temporary values are forked anew
    # more often.
    slot_growth_share: float = 0.5
    # Seconds without a usable worker before one line says so.
    no_worker_notice: float = 5.0
    # hungry(): the least number of waiting tasks to be sated, and the factor on cores.
    hungry_minimum: float = 10
    hungry_minimum_factor: float = 2
    # Transfers from one worker to its peers at the same time; higher: a popular file spreads less like a tree.
    worker_source_max_transfers: float = 10
    # Workers that hold each temp, as long as it is needed. Higher: less is computed again after a loss, more disk and transfers.
    temp_replica_count: float = 1
    # Refuse more workers than this; below zero: no limit.
    max_workers: float = -1
    # Dispatch nothing before that many workers are connected.
    wait_for_workers: float = 0

    # The interval that was asked for; the one in force is at most half of the timeout, or workers that were never asked would
    # count as lost.
    asked_keepalive_interval: float = field(default=5.0, init=False, repr=False)

    def set(self, name: str, value: float) -> bool:
        """Set one by its documented name (dashes or underscores); False when there is no such name.

        Raises:
            UsageError: the value is no number, or out of the range of this one.
        """
        attribute = name.replace("-", "_")
        span = RANGES.get(attribute)
        if span is None:
            return False
        checked = span.checked(attribute.replace("_", "-"), value)
        if attribute == "keepalive_interval":
            self.asked_keepalive_interval = checked
        else:
            setattr(self, attribute, checked)
        if attribute in ("keepalive_interval", "keepalive_timeout"):
            self.keepalive_interval = min(self.asked_keepalive_interval, self.keepalive_timeout / 2)
        return True


@dataclass(frozen=True, slots=True)
class Range:
    """The values that one tunable can have, both ends included."""

    least: float
    most: float
    # What the least value means, where that is no amount.
    note: str = ""
    is_whole: bool = False
    # Smaller ones are taken as the least, as TaskVine does with these.
    is_raised: bool = False

    def checked(self, name: str, value: Any) -> float:
        """The value to use.

        Raises:
            UsageError: it is no number, or out of the range.
        """
        number = number_of(value)
        if number is not None and self.is_raised and number < self.least and math.isfinite(number):
            return float(self.least)
        if number is None or not self.least <= number <= self.most or (self.is_whole and number % 1):
            kind = "a whole number" if self.is_whole else "a number"
            raise UsageError(f"the tunable {name} takes {kind} from {self}, not {shown(value)}")
        return float(number)

    def __str__(self) -> str:
        return f"{self.least:g}{f' ({self.note})' if self.note else ''} to {self.most:,}"


# Of every tunable. A time has an end that everything which waits can wait for: for ever is what a note says, or that end.
RANGES: dict[str, Range] = {
    "keepalive_interval": Range(0, SECONDS_LIMIT, "never"),
    # Less than a second is silence of a busy worker, and not of a lost one.
    "keepalive_timeout": Range(1, SECONDS_LIMIT),
    "pipeline_ms": Range(0, MS_LIMIT),
    "bundle_ms": Range(0, MS_LIMIT),
    "bundle_large_ms": Range(0, MS_LIMIT),
    "bundle_large_bytes": Range(0, AMOUNT_LIMIT),
    "bundle_unknown_count": Range(1, COUNT_LIMIT, is_whole=True),
    "max_losses": Range(0, COUNT_LIMIT, is_whole=True),
    "max_library_retries": Range(0, COUNT_LIMIT, is_whole=True),
    "library_restart_window": Range(0, SECONDS_LIMIT),
    "slot_growth_share": Range(0, 1, "never"),
    "no_worker_notice": Range(0, SECONDS_LIMIT),
    "hungry_minimum": Range(1, COUNT_LIMIT, is_raised=True),
    "hungry_minimum_factor": Range(1, COUNT_LIMIT, is_raised=True),
    "worker_source_max_transfers": Range(1, COUNT_LIMIT, is_whole=True, is_raised=True),
    "temp_replica_count": Range(1, COUNT_LIMIT, is_whole=True, is_raised=True),
    "max_workers": Range(-1, COUNT_LIMIT, "no limit", is_whole=True, is_raised=True),
    "wait_for_workers": Range(0, COUNT_LIMIT, is_whole=True),
}


def near_tunable(name: str) -> str:
    """The documented name of the tunable that was perhaps meant; empty when none looks like it."""
    import difflib  # late: it takes longer to import than all of this

    close = difflib.get_close_matches(name.replace("_", "-"), [known.replace("_", "-") for known in RANGES], 1)
    return close[0] if close else ""

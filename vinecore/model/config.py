"""Every tunable of the manager: name, unit, default and the reason for the default.

``Manager.tune(name, value)`` sets one by its documented name (dashes). Names that the reference documents for parts which
are not in this version are rejected like unknown ones: an option that does nothing would be a lie.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Tunables:
    """Values in force; each comment says what moves when it is changed."""

    # Higher: a busy link is checked less often, a frozen worker is noticed later.
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
    # Starts of a library process within restart_window seconds before it counts as failed on that worker.
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

    def set(self, name: str, value: float) -> bool:
        """Set one by its documented name (dashes or underscores); False when there is no such name."""
        attribute = name.replace("-", "_")
        if attribute not in {f.name for f in fields(self)}:
            return False
        setattr(self, attribute, float(value))
        return True

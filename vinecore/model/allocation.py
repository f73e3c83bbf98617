"""How much of a worker a task gets: the rules of section 5.1 of the reference, pure.

Unset is not zero: what a task does not ask for follows the largest share that it does ask for; a task that asks for nothing gets
the worker.
"""

from __future__ import annotations

import math

from vinecore.model.resources import Resources

# Share of unasked-for disk that is handed out; the rest stays for the cache.
DISK_SHARE = 0.75


def allocate(request: Resources, total: Resources) -> Resources:
    """What a task with this request gets on a worker with this total. A request above the total is returned as asked (it does
    not fit).

    Values asked for are taken exactly. Unset gpus are 0; with gpus asked for, unset cores are 0. Everything else unset gets the
    largest share of the values asked for, at least 1; the whole of it when nothing is asked for or some request takes all.
    """
    have = {"cores": total.cores or 0, "memory": total.memory or 0, "disk": total.disk or 0, "gpus": total.gpus or 0}
    want = {name: getattr(request, name) for name in have}
    asked = {name: amount for name, amount in want.items() if amount is not None}
    shares = [amount / have[name] if have[name] else (math.inf if amount else 0.0) for name, amount in asked.items()]
    share = max(shares, default=1.0)
    if share >= 1.0 or not any(asked.values()):
        share = 1.0
    given: dict[str, float] = {}
    for name, amount in have.items():
        if want[name] is not None:
            given[name] = want[name]
        elif name == "gpus" or (name == "cores" and want["gpus"]):
            given[name] = 0
        else:
            part = max(1, math.floor(amount * share)) if amount else 0
            given[name] = math.floor(part * DISK_SHARE) if name == "disk" else part
    return Resources(**given)

"""Resources: what a worker has and what a task asks for.

"Unset" is not zero: an unset request takes what the rules of allocation give, a zero request takes nothing. Amounts are
cores (float), memory and disk in MB, gpus (float).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vinecore.errors import UsageError
from vinecore.model.numbers import AMOUNT_LIMIT, checked_number

# Sums are rounded to so many: ten tasks of 0.1 cores must leave a whole core when they have ended.
_DIGITS = 6


def checked_amount(name: str, amount: Any, least: float = 0) -> float:
    """An amount of a resource that somebody asks for.

    Raises:
        UsageError: it is no number in the range.
    """
    return checked_number(amount, f"resource {name}", least, AMOUNT_LIMIT, "a number >= 0")


@dataclass(frozen=True, slots=True)
class Resources:
    """Amounts; None means unset."""

    cores: float | None = None
    memory: float | None = None
    disk: float | None = None
    gpus: float | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, float | None] | None) -> Resources:
        """Build from a dict such as ``{"cores": 2, "memory": 1000}``.

        Raises:
            UsageError: a name that is no resource, or an amount that is no number >= 0.
        """
        if not mapping:
            return cls()
        known = {f.name for f in fields(cls)}
        for name in mapping:
            if name not in known:
                hint = "wall_time is an option of get with task_mode='tasks', or set_time_max of a task"
                more = f" ({hint})" if "time" in str(name) else ""
                raise UsageError(f"unknown resource {name!r}: use one of {', '.join(sorted(known))}{more}")
        amounts = {name: None if amount is None else checked_amount(name, amount) for name, amount in mapping.items()}
        return cls(**amounts)

    def checked(self) -> Resources:
        """The same; nobody looked at amounts that were given to the constructor.

        Raises:
            UsageError: an amount that is no number >= 0.
        """
        return self.from_mapping({f.name: getattr(self, f.name) for f in fields(self)})

    def is_unset(self) -> bool:
        """True when nothing is asked for."""
        return self.cores is None and self.memory is None and self.disk is None and self.gpus is None

    def missing_in(self, have: Resources) -> str:
        """What ``have`` lacks for this request, as text for people; empty when it fits."""
        lacks = []
        for name, unit in (("cores", ""), ("memory", " MB"), ("disk", " MB"), ("gpus", "")):
            want, has = getattr(self, name), getattr(have, name) or 0
            if want is not None and want > has:
                lacks.append(f"{want:g}{unit} {name} (it has {has:g}{unit})")
        return ", ".join(lacks)

    def shortage(self, have: Resources) -> float:
        """How much ``have`` lacks for this request, the lacking parts of all amounts added up; 0: it fits."""
        pairs = zip(self.amounts(), have.amounts(), strict=True)
        return sum([(want - max(has, 0)) / want for want, has in pairs if want and want > has])

    def takes_from(self, other: Resources, have: Resources) -> bool:
        """Whether this request takes from what ``have`` has something that the other one would lack then."""
        triples = zip(self.amounts(), other.amounts(), have.amounts(), strict=True)
        return any(mine and theirs and round(mine + theirs, _DIGITS) > has for mine, theirs, has in triples)

    def amounts(self) -> tuple[float, float, float, float]:
        """Cores, memory, disk, gpus; unset counted as nothing."""
        return self.cores or 0, self.memory or 0, self.disk or 0, self.gpus or 0

    def plus(self, other: Resources) -> Resources:
        """The sum, unset counted as nothing."""
        return Resources(
            round((self.cores or 0) + (other.cores or 0), _DIGITS),
            round((self.memory or 0) + (other.memory or 0), _DIGITS),
            round((self.disk or 0) + (other.disk or 0), _DIGITS),
            round((self.gpus or 0) + (other.gpus or 0), _DIGITS),
        )

    def times(self, count: int) -> Resources:
        """That many of it, unset counted as nothing."""
        return Resources(
            round((self.cores or 0) * count, _DIGITS),
            round((self.memory or 0) * count, _DIGITS),
            round((self.disk or 0) * count, _DIGITS),
            round((self.gpus or 0) * count, _DIGITS),
        )

    def minus(self, other: Resources) -> Resources:
        """The difference, unset counted as nothing."""
        return Resources(
            round((self.cores or 0) - (other.cores or 0), _DIGITS),
            round((self.memory or 0) - (other.memory or 0), _DIGITS),
            round((self.disk or 0) - (other.disk or 0), _DIGITS),
            round((self.gpus or 0) - (other.gpus or 0), _DIGITS),
        )

    def whole(self) -> tuple[int, int, int, int]:
        """As a task's environment has it. A part of one core or MB counts as 1: with 0, programs would take all there are."""
        cores, memory, disk = (max(1, int(amount)) if amount else 0 for amount in (self.cores, self.memory, self.disk))
        return cores, memory, disk, int(self.gpus or 0)

"""Resources: what a worker has and what a task asks for.

"Unset" is not zero: an unset request takes what the rules of allocation give, a zero request takes nothing. Amounts are
cores (float), memory and disk in MB, gpus (float).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from vinecore.errors import UsageError

# Sums are rounded to so many: ten tasks of 0.1 cores must leave a whole core when they have ended.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Resources:
    """Amounts; None means unset."""

    cores: float | None = None
    memory: float | None = None
    disk: float | None = None
    gpus: float | None = None

    @classmethod
    def from_mapping(cls, mapping: dict[str, float] | None) -> Resources:
        """Build from a dict such as ``{"cores": 2, "memory": 1000}``.

        Raises:
            UsageError: a name that is no resource, or an amount that is no number >= 0.
        """
        if not mapping:
            return cls()
        known = {f.name for f in fields(cls)}
        for name, amount in mapping.items():
            if name not in known:
                raise UsageError(f"unknown resource {name!r}: use one of {', '.join(sorted(known))}")
            if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0):
                raise UsageError(f"resource {name} must be a number >= 0, not {amount!r}")
        return cls(**mapping)

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

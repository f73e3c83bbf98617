"""Numbers of tasks and graphs, as both floors of the user's side check them."""

from __future__ import annotations

import math
import sys
from typing import Any

from vinecore.model.numbers import (
    AMOUNT_LIMIT,
    CORES_LIMIT,
    SECONDS_LIMIT,
    WHOLE_LIMIT,
    checked_number,
    checked_whole,
    number_of,
    shown,
)


def checked_priority(value: Any) -> float:
    """A priority: any number that a float can hold; a nan is neither larger nor smaller than others.

    Raises:
        UsageError: it is none.
    """
    most = sys.float_info.max if isinstance(value, int) else math.inf
    return float(checked_number(value, "priority", -most, most, "a number, larger runs earlier"))


def checked_wall_time(value: Any, what: str) -> float:
    """The longest run in seconds; parts of a second count.

    Raises:
        UsageError: it is no time above 0.
    """
    return float(checked_number(value, what, math.ulp(0.0), SECONDS_LIMIT, "a number of seconds > 0"))


__all__ = [
    "AMOUNT_LIMIT",
    "CORES_LIMIT",
    "SECONDS_LIMIT",
    "WHOLE_LIMIT",
    "checked_number",
    "checked_priority",
    "checked_wall_time",
    "checked_whole",
    "number_of",
    "shown",
]

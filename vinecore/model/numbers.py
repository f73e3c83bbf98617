"""Numbers that users give: what is no number, is not a number (nan) or is out of its range is refused where it is given.

Behind that place there is no check: one nan among amounts that are compared and summed would end the manager.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from vinecore.errors import UsageError

# Amounts of resources: as MB they fit 63 bits in bytes, too.
AMOUNT_LIMIT = 2**40
# Cores of a worker, and slots of a library: each is up to three processes, 6 MB and four descriptors of the worker. Higher: who
# mistypes a number waits for a machine that has run out of memory or of process ids (32,768 with the usual settings).
CORES_LIMIT = 2048
# Whole numbers that travel in 63 bits, with room for counting on.
WHOLE_LIMIT = 2**62
# About thirty years: what threads, sockets and processes can all wait for.
SECONDS_LIMIT = 10**9
# A value in a message has at most so many characters.
_SHOWN_COUNT = 60


def shown(value: Any) -> str:
    """A value for a message, cut when it is long."""
    try:
        text = repr(value)
    except Exception:
        # Integers of thousands of digits, for one.
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN_COUNT else f"{text[:_SHOWN_COUNT]}..."


def checked_number(
    value: Any, what: str, least: float = -math.inf, most: float = math.inf, wanted: str = "", more: str = ""
) -> float:
    """A number in a range, both ends included; an int stays one, and numbers of other packages become floats.

    Parameters:
        what: it is, for the message.
        wanted: what it has to be, for the message, unless it is above the range; default: a number, with the range.
        more: the message ends with that.

    Raises:
        UsageError: it is none, or out of its range.
    """
    number = number_of(value)
    if number is not None and least <= number <= most:
        return number
    if wanted and number is not None and number > most:
        wanted = f"at most {most}"
    raise UsageError(f"{what} must be {wanted or _range(least, most)}, not {shown(value)}{more}")


def checked_whole(value: Any, what: str, least: int, most: int = WHOLE_LIMIT, wanted: str = "") -> int:
    """A whole number in a range, both ends included.

    Raises:
        UsageError: it is none, or out of its range.
    """
    whole = None if isinstance(value, bool) or not hasattr(value, "__index__") else operator.index(value)
    if whole is not None and least <= whole <= most:
        return whole
    if wanted and whole is not None and whole > most:
        wanted = f"at most {most}"
    raise UsageError(f"{what} must be {wanted or f'a whole number from {least} to {most}'}, not {shown(value)}")


def number_of(value: Any) -> float | None:
    """A number, infinite where it is too large for a float; None: it is no number."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None
    if math.isnan(number):
        return None
    return value if isinstance(value, int | float) else number


def _range(least: float, most: float) -> str:
    if math.isinf(least) and math.isinf(most):
        return "a number"
    if math.isinf(most):
        return f"a number >= {least}"
    return f"a number from {least} to {most}"

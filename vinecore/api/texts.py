"""Texts of the user that travel to workers: what cannot travel is refused where it is given."""

from __future__ import annotations

from typing import Any

from vinecore.errors import UsageError
from vinecore.model.numbers import shown

# What Linux takes as one name of a directory, in bytes.
NAME_LIMIT_BYTES = 255


def checked_text(text: Any, what: str) -> str:
    """A text that can be sent and handed to a program.

    Parameters:
        what: it is, for the message.

    Raises:
        UsageError: no str, or it holds a zero byte, or bytes that are no UTF-8 (as ``os.fsdecode`` hides them in a str).
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} must be a str, not {shown(text)}")
    if "\0" in text:
        raise UsageError(f"{what} holds a zero byte: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds bytes that are no UTF-8, which cannot be sent: {text!r}; rename it") from None
    return text


def checked_variable_name(name: Any) -> str:
    """The name of an environment variable.

    Raises:
        UsageError: it is none.
    """
    text = checked_text(name, "the name of an environment variable")
    if not text or "=" in text:
        raise UsageError(f"the name of an environment variable is not empty and has no '=', unlike {text!r}")
    return text

"""Variables that a library's context function made, readable inside its calls.

They are made once in the library's parent process and inherited by its slots. Outside a library there are none.
"""

from __future__ import annotations

from collections.abc import Mapping

from vinecore.errors import UsageError
from vinecore.runtime.error_texts import safe_text

# Of a key that is no name, as much as one sees at a glance.
_SHOWN_CHARACTERS = 100

_variables: dict[str, object] = {}


def fill(variables: object, library: str) -> None:
    """Set the variables of this process's library.

    Raises:
        UsageError: the context function returned something that is no dict with names as keys.
    """
    must = f"the context function of library {library!r} must return a dict of names to values"
    if not isinstance(variables, Mapping):
        raise UsageError(f"{must}, not {type(variables).__name__}")
    for name in variables:
        if not isinstance(name, str):
            shown = safe_text(repr, name)[:_SHOWN_CHARACTERS]
            raise UsageError(f"{must}, all of whose keys are str: {shown} is of type {type(name).__name__}")
    _variables.update(variables)


def load_variable_from_library(name: str) -> object:
    """Return a variable that the library's context function made.

    Raises:
        KeyError: there is none of that name, or this process is no library.
    """
    try:
        return _variables[name]
    except KeyError:
        have = ", ".join(sorted(_variables)) or "none; this is only filled inside a function call of a library with a context"
        raise KeyError(f"no variable {name!r} in this library's context (there are: {have})") from None

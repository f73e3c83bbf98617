"""What errors say, in words that a message takes: bounded, UTF-8, whatever the user's classes do when they are asked."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from vinecore.errors import UnpicklableError

TEXT_LIMIT_CHARACTERS = 64 * 1024
# Room in a text for the line about what was left out of it.
LINE_CHARACTERS = 128

# As the interpreter itself finds these, whatever a class says.
_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_module_of: Callable[[type], Any] = type.__dict__["__module__"].__get__


def type_name_of(kind: type) -> str:
    """Return a type's name as tracebacks show it, bounded. Never raises: what its metaclass makes of it is not asked."""
    name = exact(_qualname_of(kind))
    try:
        module = _module_of(kind)
    except AttributeError:
        return name
    # Any object may stand there.
    module = exact(module) if issubclass(type(module), str) else "builtins"
    return name if module in ("builtins", "__main__") else exact(f"{module}.{name}")


def describe(error: BaseException) -> str:
    """Return an error as one line; the types that pickling itself raises say nothing and are left out. Never raises."""
    text = safe_text(str, error)
    # Not isinstance, which asks for an attribute of the object.
    if issubclass(type(error), pickle.PicklingError | UnpicklableError) or (type(error) is TypeError and text):
        return text
    return named_line_of(error, text)


def line_of(error: BaseException) -> str:
    """Return an error's type and text as a message takes them: bounded, and UTF-8. Never raises."""
    return sendable(named_line_of(error, safe_text(str, error)))


def text_of(error: BaseException) -> str:
    """The same of its text alone."""
    return sendable(safe_text(str, error))


def named_line_of(error: BaseException, text: str) -> str:
    return f"{type_name_of(type(error))}: {text}" if text else type_name_of(type(error))


def sendable(text: str) -> str:
    """Return a text that user code made as a message takes it: bounded, and UTF-8."""
    return exact(text).encode(errors="backslashreplace").decode()


def exact(text: str) -> str:
    """A copy of a subclass's text as a plain, bounded str; of one that was bounded here, the same."""
    text = "".join((text,))
    if len(text) <= TEXT_LIMIT_CHARACTERS + LINE_CHARACTERS:
        return text
    half = TEXT_LIMIT_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def safe_text(show: Callable[[Any], str], value: object) -> str:
    try:
        return exact(show(value))
    except BaseException as failure:
        return f"<{show.__name__}() of it failed: {type_name_of(type(failure))}>"

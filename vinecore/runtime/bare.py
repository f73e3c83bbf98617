"""Exceptions taken apart without the help of their class, and put together again without its ``__init__``.

Pickle rebuilds an exception as ``class(*args)``. That fails, or gives another message, for the many classes whose ``__init__``
takes something else than what it hands to ``super().__init__``. Here the class and what its instance holds travel instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Of classes that Python code made; the same flag that pickle's own helper looks at.
_HEAP_TYPE = 1 << 9


class Bare:
    """Pickles an exception as class, arguments and attributes.

    Parameters:
        travels: whether an attribute can be pickled and unpickled; None: all of them go along.
        has_notes: whether its notes go along.
    """

    def __init__(self, error: BaseException, travels: Callable[[object], bool] | None = None, has_notes: bool = True) -> None:
        kind = type(error)
        # What its built-in class says of it: arguments, and attributes such as ImportError's name.
        _, args, *more = _builtin_base(kind).__reduce__(error)
        if isinstance(error, BaseExceptionGroup):
            args = args[0], [Bare(one, travels) for one in error.exceptions]
        attributes: dict[str, Any] = (more[0] if more else None) or {}
        if not has_notes:
            attributes = {name: value for name, value in attributes.items() if name != "__notes__"}
        self._bad = [] if travels is None else [name for name, value in attributes.items() if not travels(value)]
        self._parts = kind, args, {name: value for name, value in attributes.items() if name not in self._bad}

    def left_out(self) -> str:
        """Which attributes do not go along, for people; empty when all do."""
        return f"(attributes left out, because they cannot be sent: {', '.join(self._bad)})" if self._bad else ""

    def __reduce__(self) -> Any:
        return rebuild, self._parts


# How an exception may travel, best first.
FORMS: tuple[Callable[[BaseException, Callable[[object], bool]], object], ...] = (
    lambda error, travels: error,
    lambda error, travels: Bare(error),
    Bare,
)
FORMS_WITHOUT_NOTES: tuple[Callable[[BaseException, Callable[[object], bool]], object], ...] = (
    lambda error, travels: Bare(error, None, False),
    lambda error, travels: Bare(error, travels, False),
)


def rebuild(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """An exception of this class; only the built-in class that it stands on is asked to make it."""
    base = _builtin_base(kind)
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in attributes.items():
        field: Any = getattr(base, name, None)
        if hasattr(type(field), "__set__"):
            # Past all that its class says of it: exceptions may be frozen dataclasses, or have a property of that name.
            field.__set__(error, value)
        else:
            error.__dict__[name] = value
    return error


def has_own_pickling(kind: type) -> bool:
    """Whether a class says itself how it is rebuilt."""
    ours = [vars(one) for one in kind.__mro__ if one.__flags__ & _HEAP_TYPE]
    return any(name in names for names in ours for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"))


def _builtin_base(kind: type) -> Any:
    base: Any = kind
    while base.__flags__ & _HEAP_TYPE:
        base = base.__base__
    return base

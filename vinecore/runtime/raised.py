"""An exception as bytes, and back: itself where its class allows, else as text; with its traceback as text, notes and causes.

Classes of exceptions may do anything: properties in the place of the interpreter's fields, a ``__str__`` that raises, an
``__init__`` that takes something else than it hands on. Whatever they do, the error of the user's call gets out.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import TracebackType
from typing import Any

from vinecore.errors import RemoteError, RemoteTraceback, UnpicklableError
from vinecore.runtime.bare import FORMS, FORMS_WITHOUT_NOTES, Bare, has_own_pickling
from vinecore.runtime.error_texts import (
    LINE_CHARACTERS,
    TEXT_LIMIT_CHARACTERS,
    describe,
    exact,
    named_line_of,
    safe_text,
    type_name_of,
)
from vinecore.runtime.payload import dump

# Larger exceptions travel as text only; must stay below what one control frame may carry.
ERROR_LIMIT_BYTES = 1024 * 1024
# What encode_error returns at most: a pickle and eight texts of four bytes a character.
ENCODED_ERROR_LIMIT_BYTES = ERROR_LIMIT_BYTES + 8 * 4 * (TEXT_LIMIT_CHARACTERS + LINE_CHARACTERS)

_PROTOCOL = 5
_OUR_FRAMES = "vinecore.runtime."

# As the interpreter itself finds these, whatever a class says.
frames_of: Callable[[BaseException], TracebackType | None] = BaseException.__dict__["__traceback__"].__get__
_set_cause: Callable[[BaseException, BaseException], None] = BaseException.__dict__["__cause__"].__set__
_dumps = pickle.dumps
_loads = pickle.loads


def encode_error(error: BaseException, note: str = "") -> bytes:
    """Return an exception with its traceback's text as bytes; what cannot be pickled and rebuilt travels as text. Never raises.

    At most ``ENCODED_ERROR_LIMIT_BYTES``.

    Parameters:
        error: the exception, with its traceback as far as there is one.
        note: a line for people, added below the traceback.
    """
    text = _traceback_text(error)
    if note:
        text = f"{text.rstrip()}\n{exact(note)}\n"
    pickled, reason = _pickle_error(error)
    reason = exact(reason)
    if pickled is not None and reason:
        text = f"{text.rstrip()}\n{reason}\n"
    type_name = exact(type_name_of(type(error)))
    return _dumps((pickled, text, type_name, safe_text(str, error), safe_text(repr, error), _notes_of(error), reason), _PROTOCOL)


def decode_error(data: bytes | memoryview) -> BaseException:
    """Return the exception that ``encode_error`` was given, its remote traceback as cause; else a RemoteError that names it."""
    try:
        pickled, text, type_name, message, shown, notes, reason = _loads(data)
    except Exception as failure:
        return RemoteError(f"an error came back that cannot be read ({describe(failure)}); see the worker's log")
    error: BaseException | None = None
    if pickled is not None:
        try:
            error = _rebuild_error(pickled)
        except (Exception, SystemExit) as failure:
            reason = describe(failure)
    if error is None:
        error = RemoteError(f"{type_name}: {message or shown} (could not be rebuilt here: {reason})")
    # Past all that its class says of it: exceptions may be frozen dataclasses, or have a property of that name.
    _set_cause(error, RemoteTraceback(text))
    if notes and _notes_of(error) != notes:
        _set_notes(error, notes)
    return error


def add_note(error: BaseException, note: str) -> bool:
    """Add a note to an exception that may be of any class; False when it takes none. Never raises."""
    notes = _own_notes(error)
    return notes is not None and _set_notes(error, [*notes, note])


def _rebuild_error(pickled: bytes) -> BaseException:
    rebuilt: BaseException = _loads(pickled)
    # Not isinstance, which believes what an object says of its class.
    if not issubclass(type(rebuilt), BaseException):
        raise UnpicklableError(f"it unpickles as a {type_name_of(type(rebuilt))}")
    return rebuilt


def _pickle_error(error: BaseException) -> tuple[bytes | None, str]:
    """The exception's pickle after a trial, and what does not come along, or the reason why there is none.

    The trial costs microseconds, and only on errors.
    """
    reason = ""
    forms = FORMS
    if _own_notes(error):
        # Some of them travel beside it anyway.
        forms = FORMS_WITHOUT_NOTES if _has_long_notes(error) else FORMS + FORMS_WITHOUT_NOTES
    for form in forms:
        try:
            dressed = form(error, _travels)
            pickled = dump(dressed)
            again = _rebuild_error(pickled)
            if len(pickled) > ERROR_LIMIT_BYTES:
                reason = f"its pickle of {len(pickled)} bytes is above the limit of {ERROR_LIMIT_BYTES}"
            elif dressed is not error:
                assert type(dressed) is Bare
                return pickled, dressed.left_out()
            elif has_own_pickling(type(error)) or safe_text(str, again) == safe_text(str, error):
                # Else its __init__ takes something else than what it hands on, and the text would not be the one that it had.
                return pickled, ""
        except BaseException as failure:
            # Whatever the user's class does here, the call's own error must get out.
            reason = reason or describe(failure)
    return None, reason


def _travels(value: object) -> bool:
    try:
        _loads(dump(value))
    except BaseException:
        # As above.
        return False
    return True


def _own_notes(error: BaseException) -> list[Any] | None:
    """The list of its notes, empty when it has none; None: something else is there, or cannot be read. Never raises."""
    try:
        # Past the class's own __getattr__, which may raise anything for a name that it does not know.
        notes = BaseException.__getattribute__(error, "__notes__")
    except AttributeError:
        return []
    except BaseException:
        return None
    # A plain copy, past the methods of a subclass.
    return list.__getitem__(notes, slice(None)) if issubclass(type(notes), list) else None


def _set_notes(error: BaseException, notes: list[Any]) -> bool:
    try:
        BaseException.__setattr__(error, "__notes__", notes)
    except BaseException:
        return False  # its class has a property of that name
    return True


def _notes_of(error: BaseException) -> list[str]:
    """Its notes, as many as are together no longer than one text may be, and a line that says how many were left out."""
    return _first_notes(_own_notes(error) or [], None)


def _first_notes(notes: list[Any], show: Callable[[object], str] | None) -> list[str]:
    """As above; ``show``: makes a text of those that are none, which are left out without it."""
    taken: list[str] = []
    room = TEXT_LIMIT_CHARACTERS
    for position, note in enumerate(notes):
        if issubclass(type(note), str):
            text = exact(note)
        elif show is not None:
            text = safe_text(show, note)
        else:
            continue
        # A list item costs some bytes too.
        room -= len(text) + 8
        if room < 0 and taken:
            taken.append(f"... {len(notes) - position} notes left out ...")
            break
        taken.append(text)
    return taken


def _has_long_notes(error: BaseException) -> bool:
    """Whether a pickle of its notes would be above the limit of that of the whole error."""
    least_bytes = 0
    seen: set[int] = set()
    for note in _own_notes(error) or ():
        # A second time the same object is a reference only.
        if issubclass(type(note), str) and id(note) not in seen:
            seen.add(id(note))
            least_bytes += str.__len__(note)
        least_bytes += 2
        if least_bytes > ERROR_LIMIT_BYTES:
            return True
    return False


def _traceback_text(error: BaseException) -> str:
    import traceback

    def traceback_of(error: BaseException) -> str:
        found = traceback.TracebackException(type(error), error, _user_frames(frames_of(error)), compact=True)
        rest = [found]
        while rest:
            one = rest.pop()
            _shorten_notes(one)
            rest += filter(None, (one.__cause__, one.__context__, *(one.exceptions or ())))
        return "".join(found.format())

    def frames(error: BaseException) -> str:
        return "".join(traceback.format_tb(_user_frames(frames_of(error))))

    try:
        return exact(traceback_of(error))
    except BaseException:
        # Its class has no answer to what tracebacks ask for: without causes, then.
        lines = [named_line_of(error, safe_text(str, error)), *_notes_of(error)]
        return exact("Traceback (most recent call last):\n" + safe_text(frames, error) + "\n".join(lines) + "\n")


def _shorten_notes(shown: Any) -> None:
    """Of a traceback that is not yet text: long lists of long notes take seconds, and all but the ends would be cut."""
    notes = shown.__notes__
    if issubclass(type(notes), list):
        shown.__notes__ = _first_notes(list.__getitem__(notes, slice(None)), str)


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames above the user's; whole where there are no others."""
    below = trace
    while below is not None and str(below.tb_frame.f_globals.get("__name__")).startswith(_OUR_FRAMES):
        below = below.tb_next
    return below or trace

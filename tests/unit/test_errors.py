"""The hierarchy of errors: each survives pickling, and the tree drawn in the module's docstring is the real one."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

from vinecore import errors

ROOT = Path(__file__).resolve().parents[2]


def classes_below(root: type[BaseException]) -> list[type[BaseException]]:
    """The class and all its subclasses that the errors module defines."""
    below = [cls for child in root.__subclasses__() if child.__module__ == errors.__name__ for cls in classes_below(child)]
    return [root, *dict.fromkeys(below)]


VINE_ERRORS = classes_below(errors.VineError)
DEFINED = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Each drawn class with its drawn parent and the builtin it is said to be as well."""
    assert errors.__doc__ is not None
    parents: list[str] = []
    drawn: dict[str, tuple[str | None, str | None]] = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([│ ]*[├└]── |)([A-Z]\w+)(?:$|  +(.*)$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        also = re.search(r"\(also an? (\w+)\)", match[3] or "")
        parents[depth:] = [match[2]]
        drawn[match[2]] = (parents[depth - 1] if depth > 0 else None, also[1] if also is not None else None)
    return drawn


def test_the_docstring_draws_every_class_under_its_parent() -> None:
    expected = {}
    for cls in VINE_ERRORS:
        ours = [base.__name__ for base in cls.__bases__ if base in VINE_ERRORS]
        others = [base.__name__ for base in cls.__bases__ if base not in VINE_ERRORS and base is not Exception]
        expected[cls.__name__] = (ours[0] if ours else None, others[0] if others else None)
    assert drawn_tree() == expected


def test_every_class_is_an_error_of_ours_or_the_remote_traceback() -> None:
    assert set(DEFINED) == {*VINE_ERRORS, errors.RemoteTraceback}
    assert len(VINE_ERRORS) > 10


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", DEFINED, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls: type[Exception], protocol: int) -> None:
    error = cls("worker 3: lost\nstart another")
    error.add_note("seen twice")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is cls
    assert copy.args == error.args
    assert str(copy) == str(error) == "worker 3: lost\nstart another"
    assert copy.__notes__ == ["seen twice"]


@pytest.mark.parametrize("cls", DEFINED, ids=lambda cls: cls.__name__)
def test_every_class_says_what_it_means(cls: type[Exception]) -> None:
    assert cls.__doc__ is not None
    assert cls.__doc__ != cls.__bases__[0].__doc__


def test_no_other_module_defines_an_error_of_ours() -> None:
    names = {cls.__name__ for cls in DEFINED}
    elsewhere = []
    for path in sorted([*(ROOT / "vinecore").rglob("*.py"), *(ROOT / "daskvine").rglob("*.py")]):
        if path.name == "errors.py":
            continue
        elsewhere += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
            for node in ast.walk(ast.parse(path.read_text(), str(path)))
            if isinstance(node, ast.ClassDef) and names & {ast.unparse(base).split(".")[-1] for base in node.bases}
        ]
    assert elsewhere == [], "errors live in vinecore/errors.py only"


def test_unreachable_is_an_error_of_ours_that_names_the_value() -> None:
    with pytest.raises(errors.InvariantError, match="'surprise'"):
        errors.unreachable("surprise")  # type: ignore[arg-type]

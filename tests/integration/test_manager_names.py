"""A manager's name and properties."""

from __future__ import annotations

from typing import Any

import pytest

from vinecore import Manager
from vinecore.errors import UsageError


def test_name_and_properties(capfd: pytest.CaptureFixture[str]) -> None:
    with Manager(local_cores=1) as manager:
        assert manager.name is None and manager.properties == {}
        assert manager.tune("no-such-thing", 1) == -1
        manager.set_name("dimuons")
        manager.set_property("owner", "somebody")
        manager.set_property("owner", "somebody else")
        assert manager.name == "dimuons" and "'dimuons'" in repr(manager)
        assert manager.properties == {"owner": "somebody else"}
        assert manager.tune("no-such-thing", 1) == -1
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["vine", "vine dimuons"]


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\udcff", 3, None])
def test_bad_names(m: Manager, name: Any) -> None:
    with pytest.raises(UsageError, match="the name of a project"):
        m.set_name(name)
    assert m.name is None


@pytest.mark.parametrize(("name", "value"), [("", "x"), (3, "x"), ("x", 3), ("x", "a\0b")])
def test_bad_properties(m: Manager, name: Any, value: Any) -> None:
    with pytest.raises(UsageError, match="property"):
        m.set_property(name, value)
    assert m.properties == {}

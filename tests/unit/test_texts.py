"""Texts that cannot travel are refused where they are given: one of them used to end the whole manager."""

from __future__ import annotations

from typing import Any

import pytest

from daskvine.options import GetOptions
from vinecore import LibraryTask, Task
from vinecore.api.files import checked_name
from vinecore.api.texts import checked_text, checked_variable_name
from vinecore.errors import UsageError

NO_UTF8 = "a\udcffb"


@pytest.mark.parametrize(
    ("text", "why"), [(NO_UTF8, "no UTF-8"), ("a\0b", "a zero byte"), (3, "must be a str, not 3"), (b"x", "must be a str")]
)
def test_texts_that_cannot_be_sent(text: Any, why: str) -> None:
    with pytest.raises(UsageError, match=f"a command .*{why}"):
        checked_text(text, "a command")


def test_texts_that_can() -> None:
    for text in ("", "ä 漢 \n\t", "x" * 100_000):
        assert checked_text(text, "a command") == text


@pytest.mark.parametrize("name", ["", "A=B", "A\0B", NO_UTF8])
def test_names_of_variables(name: str) -> None:
    with pytest.raises(UsageError, match="environment variable"):
        checked_variable_name(name)


@pytest.mark.parametrize("name", [NO_UTF8, "x\0y", "ä" * 128, f"deep/{'n' * 256}/x"])
def test_names_in_a_sandbox(name: str) -> None:
    with pytest.raises(UsageError, match="a name in the task's directory"):
        checked_name(name)


def test_tasks_and_libraries_ask() -> None:
    with pytest.raises(UsageError, match="a command holds"):
        Task(f"cat {NO_UTF8}")
    with pytest.raises(UsageError, match="the environment variable A holds"):
        Task("true").set_env_var("A", NO_UTF8)
    assert isinstance(LibraryTask("x", {}, "fork"), LibraryTask)


def test_options_of_get_ask() -> None:
    with pytest.raises(UsageError, match=r"env_vars\['A'\] holds"):
        GetOptions.parse({"task_mode": "tasks", "env_vars": {"A": NO_UTF8}})

"""A missing password file is named to managers in their own words, and files say what they are."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from vinecore import FunctionCall, Manager
from vinecore.errors import AuthenticationError
from vinecore.shell import secrets

LIMIT_S = 30.0


def test_a_manager_without_its_password_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(AuthenticationError, match=f"no password file {missing}: create it .* or leave password_file out"):
        Manager(local_cores=1, password_file=missing)
    monkeypatch.setenv(secrets.PASSWORD_FILE_VARIABLE, missing)
    with pytest.raises(AuthenticationError, match=f"{missing}: create it .* or unset VINE_PASSWORD_FILE"):
        Manager(port=0)


def make(size: int) -> bytes:
    if size < 0:
        raise ValueError(size)
    return b"x" * size


def test_files_say_what_they_are(tmp_path: Path) -> None:
    with Manager(local_cores=1) as m:
        assert repr(m.declare_buffer(b"12345")) == "<File buffer 5 bytes>"
        assert repr(m.declare_buffer()) == "<File buffer not made yet>"
        assert repr(m.declare_file(tmp_path / "x")) == f"<File {tmp_path}/x>"
        m.install_library(m.create_library_from_functions("makers", make, exec_mode="direct"))
        for size, text in ((100_000, "[0-9]{6} bytes"), (-1, "whose task failed")):
            temp = m.declare_temp()
            call = FunctionCall("makers", "make", size)
            call.set_output(temp)
            assert repr(temp) == "<File temp not made yet>"
            m.submit(call)
            assert m.wait(LIMIT_S) is call
            assert re.fullmatch(f"<File temp {text}>", repr(temp))
            is_text = isinstance(m.fetch_file(temp, LIMIT_S), str)
            assert is_text == (size > 0) and (not is_text or temp.contents(pickle.load) == make(size))

"""Why a program that is there cannot be run, in words; nothing is said where nothing is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vinecore.runtime import unrunnable


@pytest.mark.parametrize(
    ("content", "code", "said", "text"),
    [
        (
            b"#!/no/such/python -u\n",
            127,
            "",
            "names the interpreter '/no/such/python', which is not there on .*: install it where",
        ),
        (b"#! /no/such", 127, "", "the first line of 'tool' names the interpreter '/no/such', which is not there on .*"),
        (b"#!/etc\n", 126, "", "names the interpreter '/etc', which is no program on .*"),
        (b"#!/bin/sh\r\n", 127, "", r"names the interpreter '/bin/sh\\r': its lines end as on Windows"),
        (b"#!/usr/bin/env python3\r\n", 127, "", r"names 'python3\\r': its lines end as on Windows"),
        (b"#!/usr/bin/env no-such-tool\n", 127, "", "names 'no-such-tool', which is not in the PATH of the worker on .*"),
        (b"#!/usr/bin/env -S A=1 no-such-tool -u\n", 127, "", "names 'no-such-tool', which is not in the PATH"),
        (b"#!/usr/bin/env -S -i -u FOO no-such-tool\n", 127, "", "names 'no-such-tool', which is not in the PATH"),
        (b"#!/usr/bin/env -S --unset FOO --chdir /etc -uBAR no-such-tool -u\n", 127, "", "names 'no-such-tool', which is"),
        (b"#!/usr/bin/env -S -iC /no/such sh\n", 127, "", ""),
        (b"#!/no/\xff\n", 127, "", r"names the interpreter '/no/\\udcff'"),
        (b"\x7fELF\x02", 127, "/bin/sh: 1: exec: ./tool: not found", "'tool' was built for a loader .*"),
        # These have run, or nothing is missing.
        (b"\x7fELF\x02", 127, "", ""),
        (b"#!/bin/sh\n", 127, "./tool: 2: no-such-thing: not found", ""),
        (b"#!/usr/bin/env -S A=1 sh\n", 127, "", ""),
        (b"#!/usr/bin/env\n", 127, "", ""),
        (b"#!\n", 126, "", ""),
        (b"", 126, "", ""),
        (b"#!/no/such/python\n", 1, "", ""),
    ],
)
def test_why(tmp_path: Path, content: bytes, code: int, said: str, text: str) -> None:
    path = tmp_path / "tool"
    path.write_bytes(content)
    why = unrunnable.why(str(path), code, said)
    assert why == "" if not text else re.search(text, why), why


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert unrunnable.why(str(tmp_path / "tool"), 127, "").startswith("the file 'tool' cannot be read on ")

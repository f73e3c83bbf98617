"""Why a machine cannot run a program, where the shell only says ``not found`` of a file that is there."""

from __future__ import annotations

import itertools
import os
import re
import shutil

# What the kernel reads of a first line.
_HEAD_BYTES = 256
# What a shell ends with when the program cannot be run, or is not found.
_CODES = (126, 127)
# Options of env whose value is the next word.
_WITH_VALUE = re.compile("-[iv0]*[uCa]|--unset|--chdir|--argv0")


def why(path: str, code: int, said: str) -> str:
    """What is missing for a program to run, for people; empty when nothing is, as far as can be seen.

    Parameters:
        code: with which it, or the shell in its place, has ended.
        said: on standard error.
    """
    if code not in _CODES:
        return ""
    name, machine = os.path.basename(path), os.uname().nodename
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"the file {name!r} cannot be read on {machine}: {error.strerror}"
    if head.startswith(b"#!"):
        missing = _missing_of(os.fsdecode(head[2:].partition(b"\n")[0]), machine)
        return f"the first line of {name!r} names {missing}" if missing else ""
    if head.startswith(b"\x7fELF") and code == 127 and said.startswith("/bin/sh: "):
        return f"{name!r} was built for a loader (ld.so) that {machine} does not have: build it for the machines of the workers"
    return ""


def _program_of(words: list[str]) -> str:
    """What ``env`` is told to run; empty when it is nothing."""
    for before, word in itertools.pairwise(words):
        if not word.startswith("-") and "=" not in word and not _WITH_VALUE.fullmatch(before):
            return word
    return ""


def _missing_of(line: str, machine: str) -> str:
    """What such a line (without ``#!``) names that cannot be run, and what to do; empty when all is there."""
    # As the kernel does: other white space is part of a name.
    words = re.split("[ \t]+", line.strip(" \t"))
    exists = os.path.exists(words[0])
    what, where = f"the interpreter {words[0]!r}", f"which {'is no program on' if exists else 'is not there on'} {machine}"
    is_there = not words[0] or (os.path.isfile(words[0]) and os.access(words[0], os.X_OK))
    if is_there and os.path.basename(words[0]) == "env":
        named = _program_of(words)
        is_there = not named or shutil.which(named) is not None
        what, where = repr(named), f"which is not in the PATH of the worker on {machine}"
    if is_there:
        return ""
    if line.endswith("\r"):
        return f"{what}: its lines end as on Windows (\\r\\n), let them end with \\n"
    return f"{what}, {where}: install it where workers run, or change that line"

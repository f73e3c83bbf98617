"""Directories inside each other, more of them than a path can name or calls can go down."""

from __future__ import annotations

import os
from pathlib import Path


def make_deep(path: Path, levels: int, rights: int = 0o700) -> Path:
    """Make a directory with so many levels below it, a file in the last; returns the path of that."""
    path.mkdir(exist_ok=True)
    place = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        if not os.access("d", os.F_OK, dir_fd=place):
            os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
        os.chmod(f"/proc/self/fd/{place}", rights)
        os.close(place)
        place = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=place))
    os.close(place)
    return path.joinpath(*["d"] * levels)

"""How many files this process may have open: a worker needs two for each slot, its children what they had before."""

from __future__ import annotations

import contextlib
import resource

# Enough for thousands of slots; some systems allow a billion, which whoever closes "all" one by one would notice.
_WANTED = 65536
_before: list[tuple[int, int]] = []


def raise_descriptors() -> None:
    """Allow this process as many as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            _before.append((soft, hard))


def restore_descriptors(pid: int) -> None:
    """Give a child the limit that this process had: programs that use select() rely on low numbers."""
    if _before:
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _before[0])

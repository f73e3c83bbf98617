"""Why a machine does not start one more process, for people."""

from __future__ import annotations

import errno

_FIXES = {
    errno.EAGAIN: "raise the limit of processes there (ulimit -u, or pids.max of its container)",
    errno.EMFILE: "raise the limit of open files there (ulimit -Hn), or let the library's context close what it has opened",
    errno.ENFILE: "raise the limit of open files there (fs.file-max)",
    errno.ENOMEM: "its memory is full: offer fewer --cores there, or give the library fewer slots",
}


def refused_text(error: OSError, machine: str) -> str:
    """The rest of a sentence that begins with the process which could not be started on this machine."""
    fix = _FIXES.get(error.errno or 0, "")
    return f"could not be started on {machine}: {error.strerror or error}{fix and f' ({fix})'}"

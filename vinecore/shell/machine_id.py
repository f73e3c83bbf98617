"""Which processes share this kernel, and so may share files."""

from __future__ import annotations

import socket


def machine_id() -> str:
    """A text that is equal for processes that run under the same kernel."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()

"""What is read from the operating system: memory, CPU time of a process tree, bytes over the loopback device.

Owns no process and starts none. Everything here is Linux, as the engine is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

# RSS counts as settled when it moved by less than this between two looks, this many times in a row.
SETTLED_CHANGE_BYTES = 256 * 1024
SETTLED_LOOKS = 10
SETTLE_LIMIT_S = 20.0


def become_subreaper() -> None:
    """Let orphans among our descendants become our children, so that their CPU time and their leftovers are seen."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tree_cpu_s() -> float:
    """CPU seconds of this process and all its descendants, those included that ended and were reaped by one of them."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # ended and reaped since the listing: its parent's figures hold it now
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def settled_rss_bytes() -> int:
    """Resident memory once the process's own threads have stopped changing it; bounded."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    last, quiet_looks = rss_bytes(), 0
    while quiet_looks < SETTLED_LOOKS and time.monotonic() < deadline:
        time.sleep(0.05)
        now = rss_bytes()
        quiet_looks = quiet_looks + 1 if abs(now - last) < SETTLED_CHANGE_BYTES else 0
        last = now
    return last


def enter_own_network() -> bool:
    """Move this single-threaded process into a network of its own with a loopback device.

    Its loopback counters then hold the traffic of this process tree and of nobody else. False where the system forbids it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    return True


@dataclass(frozen=True, slots=True)
class Apart:
    """Another network for workers, with one cable to this process's own; ``manager`` is this end's address."""

    manager: str
    enter: Callable[[], None]

    def cable_bytes(self) -> int:
        """Bytes that crossed the cable, both directions: all that workers and manager say to each other."""
        return sum(_device_bytes(CABLE))


CABLE = "vine0"


def network_for_workers() -> Apart:
    """Move this single-threaded process into a network of its own, and make a second one for workers.

    What workers send to each other stays in theirs, so that the cable carries the manager's traffic and nothing else.

    Raises:
        RuntimeError: the system forbids it, or has no ``ip`` command.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not enter_own_network():
        raise RuntimeError("this system forbids networks of one's own: bytes of the manager cannot be told from those of workers")
    theirs = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter_own_network()

    def enter() -> None:
        if libc.setns(theirs, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot enter the workers' network")

    place = f"/proc/{os.getpid()}/fd/{theirs}"
    commands = [
        (None, f"link add {CABLE} type veth peer name vine1 netns {place}"),
        (None, f"address add 10.77.0.1/30 dev {CABLE}"),
        (None, f"link set {CABLE} up"),
        (enter, "address add 10.77.0.2/30 dev vine1"),
        (enter, "link set vine1 up"),
    ]
    for where, words in commands:
        done = subprocess.run(["ip", *words.split()], preexec_fn=where, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ip {words}: {done.stderr.strip()}")
    return Apart("10.77.0.1", enter)


def loopback_bytes() -> int:
    """Bytes that crossed the loopback device, both directions of every connection, headers and acknowledgements included.

    ``/proc/<pid>/io`` would not do: it counts read and write, but not the send and recv that sockets use; and the sockets'
    own counters vanish when a connection closes. What crossed the device bounds from above what any process sent or received.
    """
    return _device_bytes("lo")[0]


def _device_bytes(device: str) -> tuple[int, int]:
    """Bytes received and sent by a network device of this process's network."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            fields = counters.split()
            return int(fields[0]), int(fields[8])
    raise RuntimeError(f"no device {device} in /proc/self/net/dev")

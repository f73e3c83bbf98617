"""Hosts of their own on this machine: network namespaces on a bridge, whose links can be cut in one direction or both.

Each host reaches the others and this machine at ``Net.address``, nothing else: no route leads out. A direction is cut by teaching
the sender a hardware address that nobody has: frames vanish without a word, as behind a dead switch. No packet filter is needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

NOBODY = "02:00:00:00:00:99"


class Refused(Exception):
    """Namespaces are not to be had here; the text says why."""


def ip(*words: object) -> str:
    """Run ``ip``; returns what it prints.

    Raises:
        Refused: it is not there, or failed.
    """
    tool = shutil.which("ip") or "/usr/sbin/ip"
    try:
        done = subprocess.run([tool, *map(str, words)], capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        raise Refused(f"no command ip: {error}") from None
    if done.returncode:
        raise Refused(f"ip {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """One namespace."""

    def __init__(self, net: Net, number: int) -> None:
        self.net = net
        self.name = f"{net.prefix}h{number}"
        self.address = f"{net.subnet}.{10 + number}"
        self._outside = f"{net.prefix}v{number}"
        ip("netns", "add", self.name)
        net.undo.append(("netns", "del", self.name))
        ip("link", "add", self._outside, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self._outside, "master", net.bridge, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command to run it on this host."""
        return (shutil.which("ip") or "/usr/sbin/ip", "netns", "exec", self.name)

    def cut(self, direction: str) -> None:
        """Nothing gets "out" of it any more, or nothing comes "in", or "both"."""
        others = [host for host in self.net.hosts if host is not self]
        if direction in ("out", "both"):
            for address in [self.net.address, *(host.address for host in others)]:
                ip("-n", self.name, "neigh", "replace", address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")
        if direction in ("in", "both"):
            ip("neigh", "replace", self.address, "lladdr", NOBODY, "dev", self.net.bridge, "nud", "permanent")
            for host in others:
                ip("-n", host.name, "neigh", "replace", self.address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")

    def heal(self) -> None:
        """Both directions work again."""
        for host in self.net.hosts:
            for words in (("-n", self.name, "neigh", "del", host.address), ("-n", host.name, "neigh", "del", self.address)):
                with contextlib.suppress(Refused):
                    ip(*words, "dev", "eth0")
        with contextlib.suppress(Refused):
            ip("-n", self.name, "neigh", "del", self.net.address, "dev", "eth0")
        with contextlib.suppress(Refused):
            ip("neigh", "del", self.address, "dev", self.net.bridge)


class Net:
    """A bridge with hosts on it."""

    def __init__(self, count: int) -> None:
        # Several test runs at a time must not meet: all names and addresses carry the process's number.
        number = os.getpid()
        self.prefix = f"vt{number % 0xFFFFF:x}"
        self.bridge = f"{self.prefix}b"
        self.undo: list[tuple[str, ...]] = []
        self.subnet = f"10.{200 + number % 50}.{number // 50 % 250}"
        self.address = f"{self.subnet}.1"
        self.hosts: list[Host] = []
        if f"{self.subnet}." in ip("-4", "route", "show"):
            raise Refused(f"{self.subnet}.0/24 is in use here")
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            self.undo.append(("link", "del", self.bridge))
            ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            for host in range(count):
                self.hosts.append(Host(self, host))
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Until every port of the bridge forwards."""
        until = time.monotonic() + 10
        for host in self.hosts:
            while "state UP" not in ip("-n", host.name, "link", "show", "eth0"):
                if time.monotonic() > until:
                    raise Refused(f"the link of {host.name} does not come up")
                time.sleep(0.02)

    def close(self) -> None:
        """Everything of it goes."""
        while self.undo:
            with contextlib.suppress(Refused):
                ip(*self.undo.pop())


@contextlib.contextmanager
def net_of(count: int) -> Iterator[Net]:
    """A net for a test, which is skipped where the system forbids namespaces."""
    try:
        net = Net(count)
    except Refused as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield net
    finally:
        net.close()

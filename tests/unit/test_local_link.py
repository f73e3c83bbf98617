"""A message with descriptors may have to wait for room in the socket: what it hands over is what was given, all the same."""

from __future__ import annotations

import asyncio
import os
import socket

from vinecore.shell.local_link import LocalLink


def test_descriptors_that_have_to_wait() -> None:
    """The sender closes its own at once, so their numbers are those of others by the time the message leaves."""
    count = 2000
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    link = LocalLink(loop, ours, lambda payloads: None, lambda: None)
    for number in range(count):
        fd = os.memfd_create("number")
        os.write(fd, str(number).encode())
        link.send(b"x" * 100, (fd,))
        os.close(fd)
    assert link._waiting, "all of them found room"
    theirs.settimeout(5.0)
    got = []
    while len(got) < count:
        _, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 16)
        for fd in descriptors:
            got.append(int(os.pread(fd, 16, 0)))
            os.close(fd)
        link._writable()
    assert got == list(range(count))
    before = len(os.listdir("/proc/self/fd"))
    link.close()
    theirs.close()
    loop.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_what_waits_is_closed_with_the_link() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    link = LocalLink(loop, ours, lambda payloads: None, lambda: None)
    while len(link._waiting) < 3:
        link.send(b"x" * 1000, (theirs.fileno(),))
    link.close()
    theirs.close()
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == before

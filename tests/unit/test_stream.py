"""A link over a transport of asyncio whose other end goes."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from vinecore.shell.stream import Link
from vinecore.wire.handshake import Dialer


def test_nothing_is_written_once_the_other_end_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    """The loss is told in the next turn only, and asyncio logs what is written until then."""
    lost: list[Exception | None] = []

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        over = asyncio.Event()

        def on_lost(link: Link, error: Exception | None) -> None:
            lost.append(error)
            over.set()

        def make() -> Link:
            return Link(Dialer(None, bytes(32), "worker", b""), lambda link: None, lambda link, payloads: None, on_lost)

        _, link = await asyncio.get_running_loop().create_connection(make, sock=ours)
        theirs.close()
        for _ in range(20):
            link.send(b"payload")
            link.flush()
        await over.wait()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        asyncio.run(talk())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lost) == 1 and isinstance(lost[0], BrokenPipeError | ConnectionResetError)

"""A peer that is gone without a word is not waited for: a fetch from it goes on with the next source, or fails, when the manager
says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from tests.kit.calls import LIMIT_S, eventually
from vinecore.shell import transfer
from vinecore.shell.store import Store
from vinecore.shell.transfer_threads import TransferThreads
from vinecore.worker import events, orders


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A port whose owner is frozen: the kernel takes connections, nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[:2]


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TransferThreads, Queue[events.Event]]]:
    # Far beyond the test's own limit: nothing ends by itself.
    monkeypatch.setattr(transfer, "HANDSHAKE_TIMEOUT_S", 10 * LIMIT_S)
    found: Queue[events.Event] = Queue()
    threads = TransferThreads(Store(str(tmp_path / "workspace")), b"secret", None, found.put)
    yield threads, found
    for name, fetching in list(threads._fetching.items()):
        threads.stop(orders.StopFetch(name, fetching.source))
    assert eventually(lambda: not threads._fetching)
    threads.close()
    threads.store.remove()


def test_a_fetch_from_a_lost_peer_ends(silent: tuple[str, int], reports: tuple[TransferThreads, Queue[events.Event]]) -> None:
    threads, found = reports
    threads.fetch(orders.FetchObject("r0-1.1", 10, [silent], b"ticket", 1), 1)
    assert eventually(lambda: "r0-1.1" in threads._fetching)
    threads.stop(orders.StopFetch("r0-2.1", silent))
    threads.stop(orders.StopFetch("r0-1.1", (silent[0], silent[1] + 1)))
    assert found.empty() and "r0-1.1" in threads._fetching, "another object, another peer"
    threads.stop(orders.StopFetch("r0-1.1", silent))
    event = found.get(timeout=LIMIT_S)
    assert isinstance(event, events.ObjectFailed) and event.name == "r0-1.1"
    assert not threads._fetching


def test_the_next_source_is_asked(silent: tuple[str, int], reports: tuple[TransferThreads, Queue[events.Event]]) -> None:
    threads, found = reports
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        other = listener.getsockname()[:2]
        threads.fetch(orders.FetchObject("r0-1.1", 10, [silent, other], b"ticket", 1), 1)
        assert eventually(lambda: "r0-1.1" in threads._fetching)
        threads.stop(orders.StopFetch("r0-1.1", silent))
        taken, _ = listener.accept()
        taken.close()
        assert isinstance(found.get(timeout=LIMIT_S), events.ObjectFailed)

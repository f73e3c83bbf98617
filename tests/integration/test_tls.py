"""Encrypted links of every kind; certificates of the user; both sides must agree; somebody in the middle is found out."""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskvine import DaskVine, FuturesExecutor
from vinecore.errors import UsageError
from vinecore.shell import tls

pytest.importorskip("cryptography", reason="makes the certificates: pip install 'daskvine[tls]'")
ROOT = Path(__file__).parents[2]
LIMIT_S = 30.0


def made(number: int) -> np.ndarray[Any, Any]:
    return np.full(200_000, float(number))


def total(*arrays: np.ndarray[Any, Any]) -> float:
    return float(sum(array.sum() for array in arrays))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("VINE_PORT", raising=False)
    return tmp_path


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(port: int, *more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "vinecore.cli.worker", "127.0.0.1", str(port), "--cores", "1", *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=LIMIT_S)


def test_an_embedded_worker_over_tls_carries_small_and_large_values() -> None:
    with FuturesExecutor(max_workers=1, ssl=True) as ex:
        assert ex.submit(total, np.ones(300_000)).result(LIMIT_S) == 300_000.0
        assert ex.submit(made, 2).result(LIMIT_S).sum() == 400_000.0


def test_workers_exchange_objects_over_tls(worker: Callable[..., Any]) -> None:
    with DaskVine(port=0, ssl=True) as m, FuturesExecutor(manager=m) as ex:
        assert m.using_ssl
        workers = [worker(m.port, "--ssl") for _ in range(2)]
        futures = [ex.submit(made, number) for number in range(8)]
        sums = [ex.submit(total, *futures) for _ in range(4)]
        assert {future.result(LIMIT_S) for future in sums} == {200_000.0 * 28}
        assert all(process.poll() is None for process in workers)
        assert m.engine.call_in_loop(lambda: m.engine.machine.state.next_transfer_id) == 1, "nothing went through the manager"


def test_a_key_and_certificate_of_the_user(worker: Callable[..., Any], home: Path) -> None:
    key, certificate = tls.self_signed()
    (home / "key.pem").write_bytes(key)
    (home / "certificate.pem").write_bytes(certificate)
    with FuturesExecutor(port=0, ssl=(str(home / "key.pem"), str(home / "certificate.pem"))) as ex:
        worker(ex.port, "--ssl")
        assert ex.submit(total, made(1)).result(LIMIT_S) == 200_000.0


def test_a_worker_without_tls_is_told_what_is_missing(worker: Callable[..., Any]) -> None:
    with FuturesExecutor(port=0, ssl=True) as ex:
        process = worker(ex.port)
        assert process.wait(LIMIT_S) == 1
        assert "start vine_worker with --ssl" in process.communicate()[1]


def test_a_manager_without_tls_is_noticed(worker: Callable[..., Any]) -> None:
    with FuturesExecutor(port=0) as ex:
        process = worker(ex.port, "--ssl")
        assert process.wait(LIMIT_S) == 1
        assert "start vine_worker without --ssl" in process.communicate()[1]


@pytest.mark.parametrize("bad", ["yes", ("only-one",), ("missing-key.pem", "missing.pem")])
def test_bad_certificates_are_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match=r"ssl"):
        FuturesExecutor(port=0, ssl=bad)


def test_names_of_files_are_quoted() -> None:
    """One that is empty could not be seen."""
    with pytest.raises(UsageError, match=r"ssl=\(key, certificate\): '' and '' cannot be used"):
        FuturesExecutor(port=0, ssl=("", ""))


def test_somebody_in_the_middle_with_another_certificate_is_found_out(worker: Callable[..., Any], home: Path) -> None:
    """A relay that ends TLS on both sides passes every byte on, and still cannot let the proofs match."""
    with FuturesExecutor(port=0, ssl=True) as ex, socket.create_server(("127.0.0.1", 0)) as trap:
        identity = tls.Identity.of_pem(*tls.self_signed(), home)
        relay = threading.Thread(target=_relay, args=(trap, identity, ex.port), daemon=True)
        relay.start()
        process = worker(trap.getsockname()[1], "--ssl")
        assert process.wait(LIMIT_S) == 1
        assert "interception" in process.communicate()[1]
        relay.join(LIMIT_S)


def _pass_on(source: ssl.SSLSocket, target: ssl.SSLSocket) -> None:
    """Everything that is there to read: select does not see what is decrypted already, and a session ticket is no data."""
    source.setblocking(False)
    try:
        while True:
            data = source.recv(65536)
            if not data:
                raise ConnectionResetError("closed")
            target.setblocking(True)
            target.sendall(data)
    except ssl.SSLWantReadError:
        return


def _relay(trap: socket.socket, identity: tls.Identity, port: int) -> None:
    victim, _ = trap.accept()
    victim.settimeout(LIMIT_S)
    assert victim.recv(4) == tls.CONTROL_PREAMBLE
    victim.sendall(tls.GO_AHEAD)
    inside = identity.context.wrap_socket(victim, server_side=True)
    plain = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    plain.sendall(tls.CONTROL_PREAMBLE)
    assert plain.recv(1) == tls.GO_AHEAD
    outside = tls.client_context().wrap_socket(plain)
    # One thread for both directions: an encrypted socket must not be read and written at the same time.
    ends = {inside: outside, outside: inside}
    open_ends = set(ends)
    while open_ends:
        ready, _, _ = select.select(list(open_ends), [], [], LIMIT_S)
        if not ready:
            break
        for source in ready:
            try:
                _pass_on(source, ends[source])
                continue
            except OSError:
                pass  # one of them has closed, which is what the test waits for
            open_ends.clear()
    inside.close()
    outside.close()

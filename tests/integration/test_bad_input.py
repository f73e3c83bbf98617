"""What must not be: hostile bytes on the port, rogue workers, wrong arguments. Refused in words, disturbing nobody.

The managers listen on the loopback interface of this machine; the rogue side speaks through ``vinecore.wire`` and plain sockets.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daskvine import DaskVine, FuturesExecutor
from tests.kit import rogue as kit
from tests.kit.calls import eventually
from tests.kit.processes import worker_of
from tests.kit.rogue import HELLO, LIMIT_S, rest_of
from vinecore import FunctionCall, Manager
from vinecore.errors import AuthenticationError, MissingKeyError, UsageError
from vinecore.shell import stream
from vinecore.wire import hello, messages
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import BEFORE_AUTH_LIMIT_BYTES, PENDING_PER_ADDRESS

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def m(config: Path) -> Iterator[Manager]:
    """A manager that everybody can reach, with one good worker."""
    with Manager(port=0, local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        # Tests count who joins.
        assert eventually(lambda: manager.stats.workers_joined == 1)
        yield manager


@pytest.fixture(autouse=True)
def still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the shared manager, it goes on with its one good worker."""
    yield
    if "m" in request.fixturenames:
        manager = request.getfixturevalue("m")
        assert manager.engine.loop.died is None
        call = FunctionCall("lib", "add", b"x" * 300_000, b"y")
        manager.submit(call)
        assert manager.wait(LIMIT_S) is call and len(call.output) == 300_001
        assert eventually(lambda: manager.stats.workers_connected == 1)
        assert eventually(lambda: not manager.engine.loop.joining)


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def dial(manager: Manager) -> socket.socket:
    return kit.dial(manager.port)[0]


class Rogue(kit.Rogue):
    """Somebody who knows the secret of a manager."""

    def __init__(self, manager: Manager, kind: str = "worker") -> None:
        super().__init__(manager.port, manager.engine.secret, kind)


# ---------------------------------------------------------------- before the handshake is done


def opening(kind: str = "worker", version: int = messages.PROTOCOL_VERSION) -> bytes:
    return hello.encode(hello.Opening(kind, "", True, b"n" * 32), version)


def framed(*payloads: bytes) -> bytes:
    writer = FrameWriter()
    return b"".join(map(writer.write, payloads))


HOSTILE = {
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "letters": b"hello, is anybody there?\n" * 10,
    "length above the limit": (BEFORE_AUTH_LIMIT_BYTES + 1).to_bytes(4, "little"),
    "largest length": b"\xff\xff\xff\xff",
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + bytes(100),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "empty frame": framed(b""),
    "magic only": framed(hello.MAGIC),
    "other magic": framed(b"daskwine" + opening()[8:]),
    "no message": framed(opening()[:12] + b"\xc1"),
    "another message": framed(opening()[:12] + messages.encode(messages.Ping())),
    "deep nesting": framed(opening()[:12] + b"\x91" * 4000),
    "proof first": framed(hello.encode(hello.Proof(b"m" * 32))),
    "two openings": framed(opening(), opening()),
    "challenge from the dialler": framed(hello.encode(hello.Challenge(True, b"n" * 32))),
    "wrong proof": framed(opening(), hello.encode(hello.Proof(b"m" * 32))),
    "empty proof": framed(opening(), hello.encode(hello.Proof(b""))),
    "no wish for a secret": framed(hello.encode(hello.Opening("worker", "", False, b"n" * 32))),
    "older version": framed(opening(version=0)),
    "newer version": framed(opening(version=77)),
    "hello without a proof": framed(opening(), messages.encode(HELLO)),
    "large frame behind the opening": framed(opening()) + (10**9).to_bytes(4, "little"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_end_their_connection_only(m: Manager, data: bytes) -> None:
    joined = m.stats.workers_joined
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(data)
        answer = rest_of(sock)
        # A refusal at most: never a byte of ours that would help a stranger.
        assert len(answer) < 300
    assert m.stats.workers_joined == joined


def test_http_gets_no_answer(m: Manager) -> None:
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(HOSTILE["http"])
        assert rest_of(sock) == b""


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 20, 60])
def test_closing_in_the_middle_of_a_frame(m: Manager, cut: int) -> None:
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(framed(opening())[:cut])
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(framed(opening())[:cut])
        sock.shutdown(socket.SHUT_WR)
        rest_of(sock)


@pytest.mark.parametrize("data", [b"", framed(opening())[:7], framed(opening())])
def test_silence_before_the_end_of_the_handshake(m: Manager, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(stream, "HANDSHAKE_TIMEOUT_S", 0.3)
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(data)
        rest_of(sock, 10.0)


def test_a_byte_now_and_then_does_not_extend_the_limit(m: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HANDSHAKE_TIMEOUT_S", 0.3)
    with contextlib.closing(dial(m)) as sock:
        sock.settimeout(0.05)
        until = time.monotonic() + 10
        ended = False
        for byte in itertools.cycle(framed(opening())[:40]):
            try:
                sock.sendall(bytes([byte]))
                ended = sock.recv(1) == b""
            except TimeoutError:
                assert time.monotonic() < until, "the manager still listens"
            except ConnectionError:
                ended = True
            if ended:
                break


def test_many_idle_connections_keep_nobody_out(m: Manager) -> None:
    """Far more than are allowed for one address; workers and transfers come from the same address."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(contextlib.closing(dial(m))) for _ in range(4 * PENDING_PER_ADDRESS)]
        assert eventually(lambda: len(m.engine.loop.joining) == PENDING_PER_ADDRESS)
        # A large argument travels over a link of its own.
        call = FunctionCall("lib", "add", b"x" * 1_000_000, b"y")
        m.submit(call)
        assert m.wait(5.0) is call and len(call.output) == 1_000_001
        with Rogue(m) as other:
            other.join()
        assert len(m.engine.loop.joining) <= PENDING_PER_ADDRESS
        # Those that were over the limit have been closed, oldest first.
        assert rest_of(idle[0], 5.0) == b""


# ---------------------------------------------------------------- replay


def test_replayed_session_is_refused(m: Manager) -> None:
    with Rogue(m) as first:
        first.join()
        session = first.sent
    joined = m.stats.workers_joined
    with contextlib.closing(dial(m)) as sock:
        sock.sendall(session)
        answer = rest_of(sock)
    assert m.stats.workers_joined == joined
    # It got a challenge, and a refusal instead of an acceptance.
    reader = FrameReader(BEFORE_AUTH_LIMIT_BYTES)
    frames = [hello.decode_from_listener(frame) for frame in reader.feed(answer)]
    assert [type(frame) for frame in frames] in ([hello.Challenge, hello.Refuse], [hello.Challenge])


def test_replayed_frame_ends_its_link(m: Manager) -> None:
    with Rogue(m) as rogue:
        rogue.join()
        frame = rogue.writer.write(messages.encode(messages.Pong()))
        rogue.raw(frame)
        rogue.raw(frame)
        rest_of(rogue.sock)


def test_injected_and_changed_frames_end_their_link(m: Manager) -> None:
    for change in (lambda data: data[:-16] + bytes(16), lambda data: data[:-1] + bytes([data[-1] ^ 1])):
        with Rogue(m) as rogue:
            rogue.join()
            rogue.raw(change(rogue.writer.write(messages.encode(messages.Pong()))))
            rest_of(rogue.sock)


def test_oversized_frame_after_the_handshake(m: Manager) -> None:
    with Rogue(m) as rogue:
        rogue.join()
        rogue.raw((messages.CONTROL_FRAME_LIMIT_BYTES + 1).to_bytes(4, "little") + b"x")
        rest_of(rogue.sock)


# ---------------------------------------------------------------- rogue workers


def changed(**fields: Any) -> messages.Hello:
    values = {name: getattr(HELLO, name) for name in HELLO.__struct_fields__}
    return messages.Hello(**{**values, **fields})


@pytest.mark.parametrize(
    "message",
    [
        messages.Done([]),
        messages.Ping(),
        messages.Goodbye("early"),
        messages.LibraryReady(1, 1),
        changed(cores=0),
        changed(cores=-3),
        changed(memory_mb=-1),
        changed(gpus=-1),
        changed(cores=2**40),
    ],
    ids=repr,
)
def test_wrong_first_message(m: Manager, message: object) -> None:
    joined = m.stats.workers_joined
    with Rogue(m) as rogue:
        rogue.send(message)
        rest_of(rogue.sock)
    assert m.stats.workers_joined == joined


ILLEGAL = {
    "no message": b"\xc1",
    "empty": b"",
    "unknown tag": b"\x91\xa6banana",
    "fields missing": b"\x91\xa4done",
    "wrong types": b"\x92\xa4done\xa4text",
    "deep nesting": b"\x91" * 100_000,
    "hello again": messages.encode(HELLO),
    "message of a manager": messages.encode(messages.Welcome(1, "run", 1.0, 1.0)),
    "message of a data link": messages.encode(messages.Get(1, "name")),
    "number above 64 bits": b"\x93\xa8libready\xcf" + b"\xff" * 8 + b"\xa1x",
}


@pytest.mark.parametrize("payload", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_message_ends_the_link(m: Manager, payload: bytes) -> None:
    with Rogue(m) as rogue:
        rogue.join()
        rogue.write(payload)
        rest_of(rogue.sock)


# Well-formed, about things that never were: the manager may ignore them or close the link, and goes on.
NONSENSE = [
    messages.Done([messages.Result(10**9, 1, messages.OK_INLINE, 5, b"x")]),
    messages.Done([messages.Result(10**9, 1, messages.OK_STORED, 5, b"", 10**15)]),
    messages.Done([messages.Result(-1, -1, 99, -5, b"x")]),
    messages.LibraryReady(10**6, 5),
    messages.LibraryReady(1, 0),
    messages.LibraryReady(1, -1),
    messages.LibraryReady(1, 10**9),
    messages.LibraryGone(10**6, "never was"),
    messages.Fetched("../../etc/passwd", 5),
    messages.FetchFailed("../../etc/passwd", "no"),
    messages.UploadFailed(10**6, "name", "no"),
    messages.Removed(["a", "../b", ""]),
    messages.Pong(),
    messages.Ping(),
]


@pytest.mark.parametrize("message", NONSENSE, ids=repr)
def test_nonsense_disturbs_nobody(m: Manager, message: object) -> None:
    with Rogue(m) as rogue:
        rogue.join()
        rogue.send(message)
        rogue.send(messages.Goodbye("that was all"))
        # Work goes on while the link may still be there.
        call = FunctionCall("lib", "add", 1)
        m.submit(call)
        if isinstance(message, messages.LibraryReady):
            rogue.sock.close()
        assert m.wait(LIMIT_S) is call and call.output == 2


def test_calls_of_a_rogue_worker_run_elsewhere(config: Path) -> None:
    """It takes a call, then breaks the rules: the call is not lost."""
    with Manager(port=0) as manager:
        manager.tune("no-worker-notice", 3600)
        manager.install_library(manager.create_library_from_functions("lib", add, exec_mode="direct"))
        call = FunctionCall("lib", "add", 41)
        manager.submit(call)
        with Rogue(manager) as rogue:
            rogue.join()
            library_id = 0
            while True:
                message = rogue.receive()
                if isinstance(message, messages.StartLibrary):
                    rogue.send(messages.LibraryReady(message.library_id, message.slots))
                    library_id = message.library_id
                if isinstance(message, messages.Run):
                    assert message.library_id == library_id or library_id
                    break
            rogue.write(b"\xc1")
            rest_of(rogue.sock)
        with worker_of(manager.port, config):
            assert manager.wait(LIMIT_S) is call and call.output == 42


def test_link_of_an_unknown_kind(m: Manager) -> None:
    for kind in ("", "banana", "Worker"):
        with Rogue(m, kind) as rogue:
            rogue.send(HELLO)
            rest_of(rogue.sock)


def test_data_links_give_nothing_away(m: Manager) -> None:
    for name in ("nothing", "../../etc/passwd", "", "\x00"):
        with Rogue(m, "data") as rogue:
            rogue.send(messages.Get(1, name))
            assert rogue.receive(messages.decode_on_data_link) == messages.Missing(name)
            rest_of(rogue.sock)
    for message in (
        messages.Put(1, 1, "name", 10**18, b""),
        messages.Put(1, 10**6, "../x", 5, b"d" * 16),
        messages.Missing("x"),
        HELLO,
    ):
        with Rogue(m, "data") as rogue:
            rogue.send(message)
            rest_of(rogue.sock)
    with Rogue(m, "data") as rogue:
        rogue.write(b"\xc1")
        rest_of(rogue.sock)


def test_silent_links_do_not_hold_the_end_up(config: Path) -> None:
    with (
        Manager(port=0) as manager,
        Rogue(manager, "data") as data,
        Rogue(manager) as control,
        contextlib.closing(dial(manager)) as idle,
    ):
        control.join()
        begin = time.monotonic()
        manager.close()
        assert time.monotonic() - begin < 4.0
        for sock in (data.sock, control.sock, idle):
            rest_of(sock, 5.0)


# ---------------------------------------------------------------- ports and options


def test_port_in_use(config: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} is in use or not allowed \(Address already in use\): choose another"):
            Manager(port=port)
        with pytest.raises(UsageError, match=f"every port from {port} to {port}|port {port} is in use"):
            DaskVine(port=(port, port))
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            FuturesExecutor(port=port)
        with Manager(port=(port, port + 40)) as manager:
            assert port < manager.port <= port + 40
    with Manager(port=port) as manager:
        assert manager.port == port
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            Manager(port=port)
    # Released, it can be used at once.
    with Manager(port=port) as manager:
        assert manager.port == port


@pytest.mark.parametrize(
    "port", ["9123", 1.5, True, -1, 65536, (1,), (1, 2, 3), (0, 5), ("a", "b"), (1, 70000), [5.0, 6], {}, (True, 9)]
)
def test_bad_ports(config: Path, port: Any) -> None:
    for make in (Manager, DaskVine):
        with pytest.raises(ValueError, match="port"):
            make(port=port)


def test_range_upside_down(config: Path) -> None:
    for kind in (UsageError, TypeError):
        with pytest.raises(kind, match="20 is above 10"):
            Manager(port=(20, 10))


def test_vine_port_beats_the_argument(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    monkeypatch.setenv("VINE_PORT", str(port))
    with Manager(port=0) as manager:
        assert manager.port == port
    for value in ("many", "-5", "1.5", "\N{FULLWIDTH DIGIT NINE}1"):
        monkeypatch.setenv("VINE_PORT", value)
        with pytest.raises(UsageError, match="VINE_PORT"):
            Manager(port=0)
    monkeypatch.setenv("VINE_PORT", "99999")
    with pytest.raises(UsageError, match="99999"):
        Manager(port=0)
    monkeypatch.setenv("VINE_PORT", "")
    with Manager(port=0) as manager:
        assert manager.port > 0


@pytest.mark.parametrize("cores", [0, -2, 1.5, "2", [1]])
def test_bad_local_cores(config: Path, cores: Any) -> None:
    with pytest.raises(UsageError, match="local_cores must be a number of cores above 0, True or None"):
        Manager(local_cores=cores)


def test_more_cores_than_any_machine_has(config: Path) -> None:
    with pytest.raises(UsageError, match="local_cores must be at most 2048, not 1000000000"):
        Manager(local_cores=10**9)
    with pytest.raises(UsageError, match="max_workers must be a whole number from 1 to 2048, not 2049"):
        FuturesExecutor(max_workers=2049)
    with Manager(port=0) as manager, pytest.raises(UsageError, match="function slots must be at most 2048, not 2049"):
        manager.create_library_from_functions("lib", add).set_function_slots(2049)


@pytest.mark.parametrize("workers", [0, -2, 1.5, "2"])
def test_bad_max_workers(config: Path, workers: Any) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        FuturesExecutor(max_workers=workers)


def test_unknown_options_are_named(m: Manager, config: Path) -> None:
    for make in (Manager, DaskVine, FuturesExecutor):
        with pytest.raises(TypeError, match="local_core"):
            make(local_core=2)
    for auth in ("password", True, ""):
        with pytest.raises(UsageError, match="auth must be 'secret'"):
            Manager(port=0, auth=auth)  # type: ignore[arg-type]
    with DaskVine(port=0) as other:
        with pytest.raises(UsageError, match="no option 'retrys'; did you mean 'retries'"):
            other.get({"a": 1}, "a", retrys=1)
        with pytest.raises(MissingKeyError, match="'b'"):
            other.get({"a": 1}, "b")
        with pytest.raises(UsageError, match="cycle"):
            other.get({"a": (add, "b"), "b": (add, "a")}, "a")


# ---------------------------------------------------------------- secrets of the manager


def test_secret_that_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with Manager(port=0):
        pass
    secret = tmp_path / "vine" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o640)
    with pytest.raises(AuthenticationError, match=rf"{secret} can be used by other users \(mode 0640\).*chmod 600 {secret}"):
        Manager(port=0)
    secret.chmod(0o600)
    secret.write_text("vine-secret-1 abc\n")
    with pytest.raises(AuthenticationError, match="is a damaged secret file"):
        Manager(port=0)
    with pytest.raises(AuthenticationError, match=f"there is no password file {tmp_path}/nothing: create it"):
        Manager(port=0, password_file=str(tmp_path / "nothing"))


SCRIPT_EMBEDDED = """
from daskvine import DaskVine, FuturesExecutor
from vinecore import Manager
with FuturesExecutor(max_workers=1) as ex:
    assert ex.submit(pow, 2, 5).result(30) == 32
with DaskVine(local_cores=1) as m:
    assert m.get({"a": (pow, 2, 5)}, "a") == 32
print("fine")
"""


def test_embedded_manager_leaves_home_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "VINE_PORT", "VINE_PASS"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    (tmp_path / "script.py").write_text(SCRIPT_EMBEDDED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
    assert list(home.iterdir()) == []

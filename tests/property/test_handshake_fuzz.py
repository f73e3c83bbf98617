"""The handshake against strangers: any bytes, any change of an honest exchange."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vinecore.errors import PeerError, ProtocolError
from vinecore.wire import hello
from vinecore.wire.handshake import Dialer, Listener, refusal_of
from vinecore.wire.messages import PROTOCOL_VERSION, encode

SECRET = b"correct horse battery staple 123"
NONCE_D = bytes(range(32))
NONCE_L = bytes(range(100, 132))
PREFIX = hello.MAGIC + PROTOCOL_VERSION.to_bytes(4, "little")

TAGS = st.sampled_from(["opening", "challenge", "proof", "accept", "refuse", "ping", ""])
VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([NONCE_D, NONCE_L, bytes(32)]),
    st.text(max_size=40),
    st.booleans(),
    st.none(),
    st.integers(0, 9),
)
NEARLY_FRAMES = st.builds(lambda tag, values: PREFIX + encode([tag, *values]), TAGS, st.lists(VALUES, max_size=5))
PAYLOADS = st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda rest: PREFIX + rest), NEARLY_FRAMES)

bounded = settings(max_examples=120, deadline=None, database=None)


@bounded
@given(payloads=st.lists(PAYLOADS, max_size=4), honest_start=st.booleans())
def test_a_stranger_never_gets_in(payloads: list[bytes], honest_start: bool) -> None:
    listener = Listener(SECRET, NONCE_L)
    if honest_start:
        listener.receive(Dialer(SECRET, NONCE_D, "control").start())
    for payload in payloads:
        try:
            listener.receive(payload)
        except PeerError as error:
            # What is sent back is always a refusal that any dialler of this version can read.
            assert isinstance(hello.decode_from_listener(refusal_of(error)), hello.Refuse)
        assert not listener.done
        assert listener.send_key is None
        assert listener.kind == ""


@bounded
@given(payloads=st.lists(PAYLOADS, max_size=4), honest_start=st.booleans())
def test_a_stranger_never_passes_for_a_manager(payloads: list[bytes], honest_start: bool) -> None:
    dialer = Dialer(SECRET, NONCE_D, "control")
    if honest_start:
        dialer.receive(Listener(SECRET, NONCE_L).receive(dialer.start()))
    for payload in payloads:
        try:
            dialer.receive(payload)
        except PeerError:
            pass
        assert not dialer.done
        assert dialer.receive_key is None


def exchange(dialer: Dialer, listener: Listener, changed: int, change: bytes | None, position: int) -> int:
    """Run both sides with frame number ``changed`` replaced, or one of its bytes flipped; return the frames passed on."""
    payload: bytes | None = dialer.start()
    number = 0
    while payload is not None:
        if number == changed:
            if change is not None:
                payload = change
            else:
                place = position % len(payload)
                payload = payload[:place] + bytes([payload[place] ^ (1 << position % 8)]) + payload[place + 1 :]
        payload = (listener if number % 2 == 0 else dialer).receive(payload)
        number += 1
    return number


@bounded
@given(
    changed=st.integers(0, 3), change=st.one_of(st.none(), PAYLOADS), position=st.integers(0, 400), binding=st.binary(max_size=8)
)
def test_an_exchange_that_was_tampered_with_does_not_end_well(
    changed: int, change: bytes | None, position: int, binding: bytes
) -> None:
    dialer = Dialer(SECRET, NONCE_D, "control", binding, "detail")
    listener = Listener(SECRET, NONCE_L, binding)
    try:
        exchange(dialer, listener, changed, change, position)
    except PeerError:
        pass
    else:
        raise AssertionError("nobody noticed")
    assert not dialer.done
    # The listener was right to accept where only its own answer was changed on the way.
    assert listener.done == (changed == 3)


@bounded
@given(
    secret=st.binary(min_size=1, max_size=64),
    nonces=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=2, unique=True),
    kind=st.text(st.characters(codec="utf-8"), max_size=32),
    detail=st.text(st.characters(codec="utf-8"), max_size=512),
    binding=st.binary(max_size=40),
    with_auth=st.booleans(),
)
def test_honest_sides_always_agree(
    secret: bytes, nonces: list[bytes], kind: str, detail: str, binding: bytes, with_auth: bool
) -> None:
    dialer = Dialer(secret if with_auth else None, nonces[0], kind, binding, detail)
    listener = Listener(secret if with_auth else None, nonces[1], binding)
    assert exchange(dialer, listener, -1, None, 0) == 4
    assert dialer.done
    assert listener.done
    assert (listener.kind, listener.detail) == (kind, detail)
    assert dialer.send_key == listener.receive_key
    assert dialer.receive_key == listener.send_key
    assert (dialer.send_key is not None) == with_auth


@bounded
@given(payload=st.binary(max_size=200))
def test_prefix_is_judged_before_anything_is_decoded(payload: bytes) -> None:
    if payload.startswith(hello.MAGIC):
        return
    for side in (Listener(SECRET, NONCE_L), Dialer(SECRET, NONCE_D, "control")):
        try:
            side.receive(payload)
        except ProtocolError as error:
            assert "does not speak daskvine's protocol" in str(error)
        else:
            raise AssertionError("it was read")

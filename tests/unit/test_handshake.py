"""Both sides of the handshake: who gets in, who does not, and what each of them is told."""

from __future__ import annotations

import pickle

import pytest

from vinecore.errors import AuthenticationError, PeerError, ProtocolError, UsageError, VersionError
from vinecore.wire import handshake, hello
from vinecore.wire.framing import FrameReader, FrameWriter
from vinecore.wire.handshake import Dialer, Listener, is_in_the_clear, refusal_of
from vinecore.wire.messages import PROTOCOL_VERSION

SECRET = b"correct horse battery staple 123"
OTHER_SECRET = b"incorrect horse battery staple 1"
NONCE_D = bytes(range(32))
NONCE_L = bytes(range(100, 132))


def dialer(secret: bytes | None = SECRET, nonce: bytes = NONCE_D, **more: bytes) -> Dialer:
    return Dialer(secret, nonce, "control", detail="of tests", **more)


def listener(secret: bytes | None = SECRET, nonce: bytes = NONCE_L, **more: bytes) -> Listener:
    return Listener(secret, nonce, **more)


def transcript(one: Dialer, other: Listener) -> list[bytes]:
    """The four payloads of a handshake that succeeds."""
    opening = one.start()
    challenge = other.receive(opening)
    proof = one.receive(challenge)
    assert proof is not None
    accept = other.receive(proof)
    assert one.receive(accept) is None
    return [opening, challenge, proof, accept]


def refused(side: Listener, payload: bytes, kind: type[PeerError]) -> tuple[str, bytes]:
    """What the listener says to itself, and the payload that it sends."""
    with pytest.raises(PeerError) as caught:
        side.receive(payload)
    assert type(caught.value) is kind
    assert not side.done
    assert side.send_key is None
    assert side.receive_key is None
    assert side.kind == ""
    return str(caught.value), refusal_of(caught.value)


def rejected(side: Dialer, payload: bytes, kind: type[PeerError]) -> str:
    with pytest.raises(PeerError) as caught:
        side.receive(payload)
    assert type(caught.value) is kind
    assert not side.done
    assert side.send_key is None
    assert side.receive_key is None
    return str(caught.value)


def test_same_secret_gets_in_and_keys_agree() -> None:
    one, other = dialer(), listener()
    assert other.start() is None
    transcript(one, other)
    assert one.done
    assert other.done
    assert (other.kind, other.detail) == ("control", "of tests")
    assert one.send_key is not None
    assert one.receive_key is not None
    assert one.send_key == other.receive_key
    assert one.receive_key == other.send_key
    assert one.send_key != one.receive_key
    assert len(one.send_key) == len(one.receive_key) == 32
    assert SECRET not in (one.send_key, one.receive_key)


def test_nothing_is_known_before_the_proof() -> None:
    one, other = dialer(), listener()
    proof = one.receive(other.receive(one.start()))
    assert proof is not None
    assert not one.done
    assert not other.done
    assert other.kind == other.detail == ""
    assert one.send_key is None
    assert other.send_key is None


def test_without_secrets_there_are_no_keys() -> None:
    one, other = dialer(None), listener(None)
    transcript(one, other)
    assert one.done
    assert other.done
    assert (one.send_key, one.receive_key, other.send_key, other.receive_key) == (None, None, None, None)
    assert other.kind == "control"


def test_keys_differ_for_each_link() -> None:
    keys = set()
    for number in range(3):
        one = dialer(nonce=bytes([number]) * 32)
        transcript(one, listener())
        keys |= {one.send_key, one.receive_key}
    assert len(keys) == 6


def test_bytes_of_the_frames_are_pinned() -> None:
    """An older or newer build must understand them: see PROTOCOL_VERSION before changing one."""
    assert [payload.hex() for payload in transcript(dialer(), listener())] == [
        "6461736b76696e650100000095a76f70656e696e67a7636f6e74726f6ca86f66207465737473c3c420000102030405060708"
        "090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "6461736b76696e650100000093a96368616c6c656e6765c3c4206465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283",
        "6461736b76696e650100000092a570726f6f66c42035e7f8f4456150f679602fc7fa8b0c5ccba8c3fff2124e71a739f7a6d30efb4b",
        "6461736b76696e650100000092a6616363657074c420afc184ab4d5fe628458546fd6ec0f09aeef58d76e31ad74892d1e63bdca418fc",
    ]
    assert (
        hello.encode(hello.Refuse(handshake.WRONG_PROOF)).hex()
        == "6461736b76696e650100000092a6726566757365ab77726f6e672d70726f6f66"
    )


def test_the_largest_frames_fit_before_authentication() -> None:
    one = Dialer(SECRET, NONCE_D, "\U0001f347" * 32, detail="\U0001f347" * 512)
    other = listener()
    assert max(len(payload) for payload in transcript(one, other)) < handshake.BEFORE_AUTH_LIMIT_BYTES
    assert other.detail == "\U0001f347" * 512


def test_wrong_secret_is_refused_on_both_sides() -> None:
    one, other = dialer(OTHER_SECRET), listener()
    proof = one.receive(other.receive(one.start()))
    assert proof is not None
    text, refusal = refused(other, proof, AuthenticationError)
    assert "secret is another one" in text
    told = rejected(one, refusal, AuthenticationError)
    assert "the manager's secret is another one than this worker's" in told
    assert "--password FILE" in told
    assert "certificate" not in told + text


def test_dialer_without_a_secret_is_told_the_flag() -> None:
    one, other = dialer(None), listener()
    text, refusal = refused(other, one.start(), AuthenticationError)
    assert "without a secret" in text
    told = rejected(one, refusal, AuthenticationError)
    assert "manager wants a secret" in told
    assert "--password FILE" in told


def test_dialer_without_a_secret_never_answers_a_challenge() -> None:
    told = rejected(dialer(None), hello.encode(hello.Challenge(True, NONCE_L)), AuthenticationError)
    assert "--password FILE" in told


def test_dialer_with_a_secret_refuses_a_listener_without() -> None:
    one, other = dialer(), listener(None)
    told = rejected(one, other.receive(one.start()), AuthenticationError)
    assert "the manager uses none" in told


def test_listener_without_a_secret_refuses_a_dialer_that_wanted_one() -> None:
    other = listener(None)
    other.receive(dialer().start())
    text, refusal = refused(other, hello.encode(hello.Proof(b"")), AuthenticationError)
    assert "wants a secret" in text
    assert "refused" in rejected(dialer(), refusal, AuthenticationError)


def test_a_listener_knows_why_a_worker_with_a_secret_left() -> None:
    other = listener(None)
    assert other.left_for() == "", "nobody has said anything"
    one = Dialer(SECRET, NONCE_D, "worker")
    rejected(one, other.receive(one.start()), AuthenticationError)
    assert "this manager uses none" in other.left_for()
    for ours, theirs, kind in ((SECRET, SECRET, "worker"), (None, None, "worker"), (None, SECRET, "data")):
        other = listener(ours)
        other.receive(Dialer(theirs, NONCE_D, kind).start())
        assert other.left_for() == "", "it may have had any reason"


def test_an_opening_is_known_in_the_clear() -> None:
    opening = FrameWriter().write(dialer().start())
    assert is_in_the_clear(opening) and is_in_the_clear(opening[:12])
    for other in (opening[:11], opening[4:], b"VTC1", b"GET / HTTP/1.0\r\n\r\n"):
        assert not is_in_the_clear(other)


def test_stripping_the_wish_for_authentication_is_refused() -> None:
    """Downgrade: somebody between the two rewrites wants_auth or has_auth."""
    stripped = hello.encode(hello.Opening("control", "of tests", False, NONCE_D))
    refused(listener(), stripped, AuthenticationError)
    one, other = dialer(), listener()
    other.receive(one.start())
    rejected(one, hello.encode(hello.Challenge(False, NONCE_L)), AuthenticationError)


@pytest.mark.parametrize("field", ["kind", "detail", "nonce"])
def test_a_changed_opening_is_refused(field: str) -> None:
    values = {"kind": "control", "detail": "of tests", "wants_auth": True, "nonce": NONCE_D}
    values[field] = bytes(32) if field == "nonce" else "other"
    one, other = dialer(), listener()
    proof = one.receive(other.receive(hello.encode(hello.Opening(**values))))  # type: ignore[arg-type]
    assert proof is not None
    refused(other, proof, AuthenticationError)


def test_reflected_frames_are_refused() -> None:
    """A listener that knows nothing sends back what it gets, or hides the proof in the frame that is due."""
    rejected(dialer(), dialer().start(), ProtocolError)
    one = dialer()
    proof = one.receive(hello.encode(hello.Challenge(True, NONCE_L)))
    assert proof is not None
    rejected(one, proof, ProtocolError)
    one = dialer()
    assert one.receive(hello.encode(hello.Challenge(True, NONCE_L))) == proof
    mac = hello.decode_from_dialer(proof)
    assert isinstance(mac, hello.Proof)
    told = rejected(one, hello.encode(hello.Accept(mac.mac)), AuthenticationError)
    assert "could not prove" in told


def test_same_nonce_is_refused_on_both_sides() -> None:
    rejected(dialer(), hello.encode(hello.Challenge(True, NONCE_D)), AuthenticationError)
    rejected(dialer(None), hello.encode(hello.Challenge(False, NONCE_D)), AuthenticationError)
    refused(listener(nonce=NONCE_D), dialer().start(), AuthenticationError)


def test_replayed_transcripts_are_refused() -> None:
    opening, challenge, proof, accept = transcript(dialer(), listener())
    other = listener(nonce=bytes(32))
    other.receive(opening)
    refused(other, proof, AuthenticationError)
    one = dialer(nonce=bytes(32))
    assert one.receive(challenge) not in (None, proof)
    rejected(one, accept, AuthenticationError)


@pytest.mark.parametrize("mac", [b"", b"x", bytes(32)], ids=["empty", "short", "zero"])
def test_wrong_macs_are_refused(mac: bytes) -> None:
    one, other = dialer(), listener()
    one.receive(other.receive(one.start()))
    refused(other, hello.encode(hello.Proof(mac)), AuthenticationError)
    rejected(one, hello.encode(hello.Accept(mac)), AuthenticationError)


def test_macs_without_secrets_are_refused() -> None:
    one, other = dialer(None), listener(None)
    one.receive(other.receive(one.start()))
    refused(other, hello.encode(hello.Proof(bytes(32))), ProtocolError)
    rejected(one, hello.encode(hello.Accept(bytes(32))), ProtocolError)


def test_binding_is_inside_the_proof() -> None:
    transcript(dialer(binding=b"certificate"), listener(binding=b"certificate"))
    for mine, theirs in ((b"certificate", b"of somebody between"), (b"", b"certificate"), (b"certificate", b"")):
        one, other = dialer(binding=mine), listener(binding=theirs)
        proof = one.receive(other.receive(one.start()))
        assert proof is not None
        text, refusal = refused(other, proof, AuthenticationError)
        assert ("TLS certificate" in text) == bool(theirs)
        assert ("TLS certificate" in rejected(one, refusal, AuthenticationError)) == bool(mine)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 2**32 - 1])
def test_other_versions_are_told_apart_whatever_follows(version: int) -> None:
    unreadable = hello.MAGIC + version.to_bytes(4, "little") + b"\xc1 what a later version may write"
    text, refusal = refused(listener(), unreadable, VersionError)
    assert f"the worker speaks protocol {version}, this manager {PROTOCOL_VERSION}" in text
    assert "install the same version of daskvine on both" in text
    assert refusal == hello.encode(hello.Refuse(handshake.OTHER_VERSION))
    told = rejected(dialer(), unreadable, VersionError)
    assert f"the manager speaks protocol {version}, this worker {PROTOCOL_VERSION}" in told
    # What an older dialler sees of our refusal.
    assert hello.version_of(refusal) == PROTOCOL_VERSION


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        hello.MAGIC,
        hello.MAGIC + b"\x01\x00",
        hello.encode(hello.Proof(bytes(32))),
        hello.encode(hello.Challenge(True, NONCE_L)),
        hello.encode(hello.Opening("control", "", True, NONCE_D))[:-1],
        hello.encode(hello.Opening("control", "", True, NONCE_D[:-1])),
        hello.encode(hello.Opening("control", "", True, NONCE_D + b"x")),
        hello.encode(hello.Opening("c" * 33, "", True, NONCE_D)),
        hello.encode(hello.Opening("control", "d" * 513, True, NONCE_D)),
    ],
)
def test_listener_refuses_what_is_no_opening(payload: bytes) -> None:
    side = listener()
    _, refusal = refused(side, payload, ProtocolError)
    rejected(dialer(), refusal, ProtocolError)
    # Once failed, for ever failed.
    refused(side, dialer().start(), ProtocolError)


def test_frames_after_the_end_or_out_of_order_are_refused() -> None:
    one, other = dialer(), listener()
    opening, challenge, proof, accept = transcript(one, other)
    for payload in (opening, proof):
        with pytest.raises(ProtocolError, match="had ended"):
            other.receive(payload)
    for payload in (challenge, accept):
        with pytest.raises(ProtocolError, match="had ended"):
            one.receive(payload)
    other = listener()
    other.receive(opening)
    refused(other, opening, ProtocolError)
    one = dialer()
    one.receive(challenge)
    rejected(one, challenge, ProtocolError)
    rejected(dialer(), accept, ProtocolError)


def test_a_failed_dialer_stays_failed() -> None:
    one, other = dialer(), listener()
    challenge = other.receive(one.start())
    rejected(one, b"nonsense", ProtocolError)
    rejected(one, challenge, ProtocolError)


def test_unknown_reasons_are_not_shown() -> None:
    told = rejected(dialer(), hello.encode(hello.Refuse("\x1b[2J pay here")), ProtocolError)
    assert "pay here" not in told


def test_no_text_shows_secret_material() -> None:
    one, other = dialer(OTHER_SECRET), listener()
    challenge = other.receive(one.start())
    proof = one.receive(challenge)
    assert proof is not None
    text, refusal = refused(other, proof, AuthenticationError)
    told = rejected(one, refusal, AuthenticationError)
    mac = hello.decode_from_dialer(proof)
    assert isinstance(mac, hello.Proof)
    for shown in (text, told, repr(one), repr(other), repr(one._secret)):
        for hidden in (SECRET, OTHER_SECRET, mac.mac, NONCE_D, NONCE_L):
            assert hidden.hex() not in shown
            assert repr(hidden)[2:-1] not in shown


def test_refusal_survives_pickling_and_is_empty_elsewhere() -> None:
    with pytest.raises(ProtocolError) as caught:
        listener().receive(b"")
    assert refusal_of(pickle.loads(pickle.dumps(caught.value))) == refusal_of(caught.value) != b""
    assert refusal_of(ProtocolError("x")) == b""
    with pytest.raises(ProtocolError) as caught:
        dialer().receive(b"")
    assert refusal_of(caught.value) == b""


def test_unsafe_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="31 bytes"):
        Dialer(SECRET, bytes(31), "control")
    with pytest.raises(UsageError, match="31 bytes"):
        Listener(SECRET, bytes(31))
    with pytest.raises(UsageError, match="secret is empty"):
        Dialer(b"", NONCE_D, "control")
    with pytest.raises(UsageError, match="secret is empty"):
        Listener(b"", NONCE_L)
    with pytest.raises(UsageError, match="33 and 0"):
        Dialer(SECRET, NONCE_D, "k" * 33)
    with pytest.raises(UsageError, match="7 and 513"):
        Dialer(SECRET, NONCE_D, "control", detail="d" * 513)
    with pytest.raises(UsageError, match="surrogate"):
        Dialer(SECRET, NONCE_D, "control", detail="\udc80")


def test_keys_take_over_exactly_behind_the_last_frame() -> None:
    """As a shell uses it: the manager's first message rides in the same segment as Accept."""
    one, other = dialer(), listener()
    to_one, to_other = FrameWriter(), FrameWriter()
    at_one = FrameReader(handshake.BEFORE_AUTH_LIMIT_BYTES)
    at_other = FrameReader(handshake.BEFORE_AUTH_LIMIT_BYTES)
    (opening,) = at_other.feed(to_other.write(one.start()))
    (challenge,) = at_one.feed(to_one.write(other.receive(opening)))
    answer = one.receive(challenge)
    assert answer is not None
    (proof,) = at_other.feed(to_other.write(answer))
    segment = to_one.write(other.receive(proof))
    to_one.rekey(other.send_key)
    at_other.rekey(other.receive_key, 10_000)
    segment += to_one.write(b"welcome" * 1000)
    at_one.push(segment)
    accept = at_one.next_frame()
    assert accept is not None
    one.receive(accept)
    at_one.rekey(one.receive_key, 10_000)
    to_other.rekey(one.send_key)
    assert at_one.next_frame() == b"welcome" * 1000
    assert at_other.feed(to_other.write(b"hello")) == [b"hello"]
    # A frame that is sent back to where it came from has the other direction's key.
    with pytest.raises(ProtocolError, match="tag"):
        at_one.feed(to_other.write(b"hello"))

"""Who is there: the first four frames of every link, and the keys that come out of them.

    dialler                                     listener
       | -- Opening(kind, detail, wants, nonce) --> |
       | <-- Challenge(has, nonce) ---------------- |      or Refuse, and the link ends
       | -- Proof(mac) ---------------------------> |      the dialling side proves first
       | <-- Accept(mac) -------------------------- |      or Refuse

A mac is HMAC-SHA256 under the shared secret over a role's label, the two first frames byte by byte (so magic, version,
kind, detail, what each side wants, both nonces) and the channel's binding (the hash of a TLS certificate). The keys of the
two directions are made from the same text under labels of their own. A replayed transcript meets a fresh nonce, a
reflected proof meets another label, a changed frame or a stripped wish meets another text.

Sans-IO: payloads enter by ``receive`` and leave as its result; nonces are handed in. This room never decodes anything
but handshake frames, never puts secrets, nonces or macs into a text, and shows nobody a text that a peer wrote.
Whoever listens at an address can record a Proof and guess at a *password* offline; therefore passwords go through scrypt.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import sha256

from vinecore.errors import AuthenticationError, PeerError, ProtocolError, UsageError, VersionError
from vinecore.wire import hello
from vinecore.wire.framing import HEADER_BYTES
from vinecore.wire.messages import PROTOCOL_VERSION

# The largest frame that a stranger can make us hold; the handshake's longest has about 2,200 bytes.
BEFORE_AUTH_LIMIT_BYTES = 4096
# Ten seconds cover a lost packet's retries over a wide network; a stranger holds a descriptor no longer than this.
HANDSHAKE_TIMEOUT_S = 10.0
# A node's worker opens a few links at once, also behind one address of a gateway; a stranger gets no more descriptors.
PENDING_PER_ADDRESS = 32

# Refuse.reason: words of the wire, so they never change their meaning.
NEEDS_SECRET = "needs-secret"
NO_SECRET_HERE = "no-secret-here"
WRONG_PROOF = "wrong-proof"
OTHER_VERSION = "other-version"
MALFORMED = "malformed"
NEEDS_TLS = "needs-tls"

_DIALER_LABEL = b"daskvine dialler proves"
_LISTENER_LABEL = b"daskvine listener proves"
_TO_LISTENER_LABEL = b"daskvine key of frames to the listener"
_TO_DIALER_LABEL = b"daskvine key of frames to the dialler"

_part_length = struct.Struct("<I")

_SAME_FILE = "give both sides the same file with --password FILE"
_INTERCEPTED = ", or the TLS certificate that this side sees is not the one that the other side shows (interception)"


def refusal_of(error: PeerError) -> bytes:
    """Return the payload to send before closing the link on ``error``; empty when there is none."""
    payload = vars(error).get("refusal", b"")
    return payload if isinstance(payload, bytes) else b""


def needs_tls() -> bytes:
    """The payload that refuses a dialler which began without TLS."""
    return hello.encode(hello.Refuse(NEEDS_TLS))


def is_in_the_clear(begin: bytes) -> bool:
    """Whether a connection that begins with these bytes is a dialler's of this protocol, of any version, without TLS."""
    return begin.startswith(hello.MAGIC, HEADER_BYTES)


class _Secret:
    """What both sides compute from the secret and the two first frames."""

    __slots__ = ("_binding", "_secret")

    def __init__(self, secret: bytes, binding: bytes) -> None:
        self._secret = secret
        self._binding = binding

    def mac(self, label: bytes, opening: bytes, challenge: bytes) -> bytes:
        hasher = hmac.new(self._secret, digestmod=sha256)
        # Lengths in front: no two different lists of parts give the same text.
        for part in (label, opening, challenge, self._binding):
            hasher.update(_part_length.pack(len(part)))
            hasher.update(part)
        return hasher.digest()


def _checked(secret: bytes | None, nonce: bytes, binding: bytes) -> _Secret | None:
    if len(nonce) != hello.NONCE_BYTES:
        raise UsageError(f"a handshake's nonce has {len(nonce)} bytes: give {hello.NONCE_BYTES} fresh random ones")
    # An empty secret is one that everybody knows; only None asks for a link without authentication.
    if secret is None:
        return None
    if not secret:
        raise UsageError("the secret is empty: give a file with --password FILE, or ask for auth=None in words")
    return _Secret(secret, binding)


class Dialer:
    """The side that dialled, for one link. Proves first.

    Parameters:
        secret: None talks only to a listener that has none either.
        nonce: 32 fresh random bytes.
        kind: a word for the kind of link (at most 32 characters).
        binding: hash of the certificate that the TLS channel showed; empty without TLS.
        detail: more about the link (at most 512 characters); readable on the way without TLS.

    Attributes:
        done: the listener has proved itself, or neither side has a secret.
        send_key, receive_key: 32 bytes each once done, None without a secret.

    Raises:
        UsageError: an argument that cannot be sent or would not be safe.
    """

    __slots__ = ("_challenge", "_failed", "_has_binding", "_nonce", "_opening", "_secret", "done", "receive_key", "send_key")

    def __init__(self, secret: bytes | None, nonce: bytes, kind: str, binding: bytes = b"", detail: str = "") -> None:
        self._secret = _checked(secret, nonce, binding)
        if len(kind) > hello.KIND_LIMIT_CHARS or len(detail) > hello.DETAIL_LIMIT_CHARS:
            raise UsageError(
                f"a link's kind has at most {hello.KIND_LIMIT_CHARS} characters and its detail {hello.DETAIL_LIMIT_CHARS}: "
                f"these have {len(kind)} and {len(detail)}"
            )
        try:
            self._opening = hello.encode(hello.Opening(kind, detail, secret is not None, nonce))
        except UnicodeEncodeError:
            raise UsageError("a link's kind and detail must be plain Unicode text, without halves of surrogate pairs") from None
        self._nonce = nonce
        self._challenge = b""
        self._has_binding = bool(binding)
        self._failed = False
        self.done = False
        self.send_key: bytes | None = None
        self.receive_key: bytes | None = None

    def start(self) -> bytes:
        """Return the first payload to send."""
        return self._opening

    def receive(self, payload: bytes) -> bytes | None:
        """Take the listener's next payload; return the answer to send, or None once done.

        Raises:
            AuthenticationError: one side wants a secret and the other has none, or the two secrets differ.
            VersionError: the listener speaks another protocol version.
            ProtocolError: not a legal frame at this point; also every call after done or after an error.
        """
        if self.done or self._failed:
            raise ProtocolError("a handshake frame arrived after the handshake had ended")
        # Set first and taken back at the end: no way out of the steps below can leave it usable by mistake.
        self._failed = True
        version = hello.version_of(payload)
        if version != PROTOCOL_VERSION:
            raise VersionError(
                f"the manager speaks protocol {version}, this worker {PROTOCOL_VERSION}: "
                "install the same version of daskvine on both"
            )
        message = hello.decode_from_listener(payload)
        if isinstance(message, hello.Refuse):
            raise self._refused(message.reason)
        if isinstance(message, hello.Challenge) and not self._challenge:
            answer: bytes | None = self._on_challenge(message, payload)
        elif isinstance(message, hello.Accept) and self._challenge:
            self._on_accept(message)
            answer = None
        else:
            raise ProtocolError("the manager's handshake frames are out of order")
        self._failed = False
        return answer

    def _on_challenge(self, message: hello.Challenge, payload: bytes) -> bytes:
        if message.has_auth and self._secret is None:
            raise self._refused(NEEDS_SECRET)
        if self._secret is not None and not message.has_auth:
            raise AuthenticationError(
                "this worker has a secret and the manager uses none: refusing to work for whoever answers there. "
                "Start the manager with authentication, or the worker without it"
            )
        if hmac.compare_digest(message.nonce, self._nonce):
            raise AuthenticationError("the other side sent this worker's own nonce back: it is no manager")
        self._challenge = payload
        if self._secret is None:
            return hello.encode(hello.Proof(b""))
        return hello.encode(hello.Proof(self._secret.mac(_DIALER_LABEL, self._opening, payload)))

    def _on_accept(self, message: hello.Accept) -> None:
        if self._secret is not None:
            frames = (self._opening, self._challenge)
            if not hmac.compare_digest(message.mac, self._secret.mac(_LISTENER_LABEL, *frames)):
                raise AuthenticationError(
                    "the manager took this worker's proof but could not prove that it knows the secret itself: "
                    "something else answers at that address"
                )
            self.send_key = self._secret.mac(_TO_LISTENER_LABEL, *frames)
            self.receive_key = self._secret.mac(_TO_DIALER_LABEL, *frames)
        elif message.mac:
            raise ProtocolError("the manager sent a proof on a link without secrets")
        self.done = True

    def _refused(self, reason: str) -> PeerError:
        if reason == NEEDS_SECRET:
            return AuthenticationError(
                "the manager wants a secret and this worker has none: start vine_worker with --password FILE, "
                "where FILE is the manager's secret or password file"
            )
        if reason == WRONG_PROOF:
            return AuthenticationError(
                f"the manager's secret is another one than this worker's: {_SAME_FILE}{_INTERCEPTED if self._has_binding else ''}"
            )
        if reason == NO_SECRET_HERE:
            return AuthenticationError("the manager uses no secret and refused a worker that wants one")
        if reason == NEEDS_TLS:
            return AuthenticationError("the manager wants TLS: start vine_worker with --ssl")
        if reason == MALFORMED:
            return ProtocolError("the manager could not read this worker's handshake: install the same daskvine on both")
        return ProtocolError("the manager refused this worker for a reason that this version of daskvine does not know")


class Listener:
    """The side that accepted the connection, for one link.

    Parameters:
        secret: None takes only diallers that want no authentication.
        nonce: 32 fresh random bytes.
        binding: hash of our own TLS certificate; empty without TLS.

    Attributes:
        done: the dialler has proved itself, or neither side has a secret.
        kind, detail: what the dialler said of the link; empty until done.
        send_key, receive_key: 32 bytes each once done, None without a secret.

    Raises:
        UsageError: an argument that would not be safe.
    """

    __slots__ = (
        "_challenge",
        "_failed",
        "_has_binding",
        "_hello",
        "_nonce",
        "_opening",
        "_secret",
        "detail",
        "done",
        "kind",
        "receive_key",
        "send_key",
    )

    def __init__(self, secret: bytes | None, nonce: bytes, binding: bytes = b"") -> None:
        self._secret = _checked(secret, nonce, binding)
        self._nonce = nonce
        self._has_binding = bool(binding)
        self._hello: hello.Opening | None = None
        self._opening = b""
        self._challenge = b""
        self._failed = False
        self.done = False
        self.kind = ""
        self.detail = ""
        self.send_key: bytes | None = None
        self.receive_key: bytes | None = None

    def start(self) -> bytes | None:
        """Return None: the dialling side speaks first."""
        return None

    def receive(self, payload: bytes) -> bytes:
        """Take the dialler's next payload and return the answer to send; look at ``done`` after sending it.

        The answer that makes it done still goes out without a tag; keys apply from the next frame on.

        Raises:
            AuthenticationError: one side wants a secret and the other has none, or the two secrets differ.
            VersionError: the dialler speaks another protocol version.
            ProtocolError: not a legal frame at this point; also every call after done or after an error.
            The attribute ``refusal`` of each is the payload to send before closing (see ``refusal_of``).
        """
        try:
            if self.done or self._failed:
                raise ProtocolError("a handshake frame arrived after the handshake had ended")
            # Set first and taken back at the end: no way out of the steps below can leave it usable by mistake.
            self._failed = True
            version = hello.version_of(payload)
            if version != PROTOCOL_VERSION:
                text = f"the worker speaks protocol {version}, this manager {PROTOCOL_VERSION}"
                raise _with_refusal(VersionError(f"{text}: install the same version of daskvine on both"), OTHER_VERSION)
            message = hello.decode_from_dialer(payload)
            if isinstance(message, hello.Opening) and self._hello is None:
                answer = self._on_opening(message, payload)
            elif isinstance(message, hello.Proof) and self._hello is not None:
                answer = self._on_proof(message, self._hello)
            else:
                raise ProtocolError("the worker's handshake frames are out of order")
        except PeerError as error:
            vars(error).setdefault("refusal", hello.encode(hello.Refuse(MALFORMED)))
            raise
        self._failed = False
        return answer

    def left_for(self) -> str:
        """Why a worker that ended the link before it was done must have done so, for people; empty when that is not sure.

        An honest one that has a secret ends the link at a Challenge that has none.
        """
        opening = self._hello
        if opening is None or opening.kind != "worker" or not opening.wants_auth or self._secret is not None or self.done:
            return ""
        return (
            "a worker that has a secret left, because this manager uses none: start the manager with authentication, "
            "or vine_worker with --no-authentication"
        )

    def _on_opening(self, message: hello.Opening, payload: bytes) -> bytes:
        if self._secret is not None and not message.wants_auth:
            text = "a worker without a secret dialled, and this manager wants one: start vine_worker with --password FILE"
            raise _with_refusal(AuthenticationError(text), NEEDS_SECRET)
        if hmac.compare_digest(message.nonce, self._nonce):
            text = "the other side sent this manager's own nonce: it is no worker"
            raise _with_refusal(AuthenticationError(text), WRONG_PROOF)
        self._hello = message
        self._opening = payload
        self._challenge = hello.encode(hello.Challenge(self._secret is not None, self._nonce))
        return self._challenge

    def _on_proof(self, message: hello.Proof, opening: hello.Opening) -> bytes:
        accept = b""
        if self._secret is not None:
            frames = (self._opening, self._challenge)
            if not hmac.compare_digest(message.mac, self._secret.mac(_DIALER_LABEL, *frames)):
                text = f"a worker's secret is another one than this manager's: {_SAME_FILE}"
                raise _with_refusal(AuthenticationError(text + (_INTERCEPTED if self._has_binding else "")), WRONG_PROOF)
            accept = self._secret.mac(_LISTENER_LABEL, *frames)
            self.send_key = self._secret.mac(_TO_DIALER_LABEL, *frames)
            self.receive_key = self._secret.mac(_TO_LISTENER_LABEL, *frames)
        elif opening.wants_auth:
            # An honest dialler ended the link at our Challenge: this one was talked out of its own wish.
            text = "a worker that wants a secret went on without one: start the manager with authentication"
            raise _with_refusal(AuthenticationError(text), NO_SECRET_HERE)
        elif message.mac:
            raise ProtocolError("the worker sent a proof on a link without secrets")
        self.kind = opening.kind
        self.detail = opening.detail
        self.done = True
        return hello.encode(hello.Accept(accept))


def _with_refusal(error: PeerError, reason: str) -> PeerError:
    vars(error)["refusal"] = hello.encode(hello.Refuse(reason))
    return error

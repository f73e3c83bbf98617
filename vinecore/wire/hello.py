"""The frames of the handshake, and the only ones that are read before a peer has proved itself.

Every payload opens with the same twelve bytes in every version for ever: eight of magic and four of protocol version.
So two versions can always tell each other apart, whatever else changes. Behind them is one tagged msgspec array.

This room knows the form of these frames only; what they must prove is ``handshake``'s. Nothing of a user's payload is
ever carried here.
"""

from __future__ import annotations

import struct
from typing import Annotated

from msgspec import Meta, Struct

from vinecore.errors import ProtocolError
from vinecore.wire import messages

MAGIC = b"daskvine"
NONCE_BYTES = 32
MAC_BYTES = 32
# Control links, data links and peers need a word each; a longer one is no kind of ours.
KIND_LIMIT_CHARS = 32
# Four bytes for each character at most, and the frame must stay below the limit before authentication.
DETAIL_LIMIT_CHARS = 512

_prefix = struct.Struct("<8sI")

Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Mac = Annotated[bytes, Meta(max_length=MAC_BYTES)]


class Opening(Struct, array_like=True, tag="opening", frozen=True):
    """Dialler, first frame. ``kind`` names the link, ``detail`` says more about it; answered by Challenge or Refuse."""

    kind: Annotated[str, Meta(max_length=KIND_LIMIT_CHARS)]
    detail: Annotated[str, Meta(max_length=DETAIL_LIMIT_CHARS)]
    wants_auth: bool
    nonce: Nonce


class Challenge(Struct, array_like=True, tag="challenge", frozen=True):
    """Listener, after Opening. Answered by Proof. A second one is a ProtocolError."""

    has_auth: bool
    nonce: Nonce


class Proof(Struct, array_like=True, tag="proof", frozen=True):
    """Dialler, after Challenge. ``mac`` is empty on a link without secrets. Answered by Accept or Refuse."""

    mac: Mac


class Accept(Struct, array_like=True, tag="accept", frozen=True):
    """Listener, after a right Proof. ``mac`` is empty on a link without secrets. The link's own messages follow."""

    mac: Mac


class Refuse(Struct, array_like=True, tag="refuse", frozen=True):
    """Listener, in place of Challenge or Accept; it closes next. ``reason`` is a word of ``handshake``, not for people.

    Texts for people are made at the side that shows them: nobody who is not authenticated writes to a terminal.
    """

    reason: Annotated[str, Meta(max_length=KIND_LIMIT_CHARS)]


Handshake = Opening | Challenge | Proof | Accept | Refuse

_decode_from_dialer = messages.Decoder(Opening | Proof, "of a dialling side's handshake")
_decode_from_listener = messages.Decoder(Challenge | Accept | Refuse, "of a listening side's handshake")


def encode(message: Handshake, version: int = messages.PROTOCOL_VERSION) -> bytes:
    """Return the payload of one frame of the handshake."""
    return _prefix.pack(MAGIC, version) + messages.encode(message)


def version_of(payload: bytes) -> int:
    """Return the protocol version that a payload is written in.

    Raises:
        ProtocolError: these are not the first bytes of a handshake of any version.
    """
    if len(payload) < _prefix.size or not payload.startswith(MAGIC):
        raise ProtocolError("the other side does not speak daskvine's protocol: is that the right address and port?")
    return int.from_bytes(payload[len(MAGIC) : _prefix.size], "little")


def decode_from_dialer(payload: bytes) -> object:
    """Return Opening or Proof from a payload of our version. Raises ProtocolError for anything else."""
    return _decode_from_dialer(payload[_prefix.size :])


def decode_from_listener(payload: bytes) -> object:
    """Return Challenge, Accept or Refuse from a payload of our version. Raises ProtocolError for anything else."""
    return _decode_from_listener(payload[_prefix.size :])

"""Tickets: a worker lets a peer have an object when the manager said so, without asking it (DESIGN 8).

A ticket is a keyed BLAKE2b over the object's name, the worker that may have it and the time until which it holds. Manager and
workers of a run share the key, which workers get with their welcome; a peer that was not given the ticket cannot make one.
"""

from __future__ import annotations

import hashlib
import hmac

from vinecore.errors import AuthenticationError

TICKET_BYTES = 16
# How long a ticket holds, seconds: transfers wait for limits and slow disks. Clocks of workers may be wrong by about as much.
LIFETIME_S = 600


def make_ticket(key: bytes, name: str, worker_id: int, expires_s: int) -> bytes:
    """The ticket with which ``worker_id`` may have the object until ``expires_s`` (seconds since the epoch)."""
    text = f"{worker_id} {expires_s} {name}".encode()
    return hashlib.blake2b(text, key=key, digest_size=TICKET_BYTES, person=b"vine ticket").digest()


def check_ticket(key: bytes, name: str, worker_id: int, expires_s: int, ticket: bytes, now_s: float) -> None:
    """Do nothing if the ticket is good.

    Raises:
        AuthenticationError: it is for something or somebody else, was not made with this key, or has expired.
    """
    if not hmac.compare_digest(make_ticket(key, name, worker_id, expires_s), ticket):
        raise AuthenticationError("the ticket of a peer is not for this object")
    if now_s > expires_s:
        raise AuthenticationError("the ticket of a peer has expired (are the clocks of the workers right?)")

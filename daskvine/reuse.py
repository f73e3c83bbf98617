"""Results of graphs that were computed before, for a second ``get`` of the same graph.

Two gets are of the same graph when they ask for the same keys, the vertices have the same keys, and every packed piece
(functions as interned, literals as pickled, structure) has the same bytes. So an array that was changed in place, or a
function that captures something mutable, computes anew. A graph with a requested value of None is never remembered: it may
have been run for what it does, nor is one that calls the clock or a source of chance itself (``time.time``, ``random.random``).
"""

from __future__ import annotations

import marshal
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import xxhash

from daskvine.graph import Plan
from vinecore.api.engine import Engine
from vinecore.api.graphs import GraphSubmission, Piece
from vinecore.errors import LostError

# Graphs remembered, and bytes of their values; higher: more reuse, more held on workers.
KEEP_COUNT = 64
KEEP_BYTES = 256 * 1024 * 1024

Signature = tuple[tuple[Any, ...], bytes]


# A function that is pickled by its name is this short; a name of one of these modules gives another value each time.
_NAMED_BYTES = 160
_CHANCE = tuple(bytes((0x8C, len(name))) + name.encode() + b"\x94" for name in ("time", "random", "secrets", "uuid"))


def _is_chance(payload: bytes) -> bool:
    """Whether a pickled function is the clock's or a source of chance, by its name."""
    return len(payload) <= _NAMED_BYTES and any(name in payload for name in _CHANCE)


class Results:
    """A bounded memory of results, by signature; for any threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: OrderedDict[Signature, dict[int, Any]] = OrderedDict()
        self._requested: dict[tuple[Any, ...], int] = {}
        self._bytes = 0

    def looked_up(self, plan: Plan, pieces: Iterator[Piece], setting: bytes = b"") -> tuple[Iterator[Piece], Signature | None]:
        """Sign a plan if one that asked for the same keys is remembered; else only watch its pieces go by.

        Parameters:
            setting: what else the values depend on.
        """
        requested = tuple(plan.order[number] for number in plan.requested)
        plan_digest = xxhash.xxh3_128(setting)
        if requested not in self._requested:
            return self._watched(plan, plan_digest, pieces), None
        packed = list(self._watched(plan, plan_digest, pieces))
        return iter(packed), None if plan.digest is None else (requested, plan.digest)

    def _watched(self, plan: Plan, digest: Any, pieces: Iterator[Piece]) -> Iterator[Piece]:
        is_sure = True
        for piece in pieces:
            is_sure = is_sure and not any(_is_chance(code.payload) for code in piece.functions)
            digest.update(len(piece.payload).to_bytes(8, "little"))
            digest.update(piece.payload)
            digest.update(_canonical([plan.inputs[number] for number in piece.numbers]))
            yield piece
        digest.update(_canonical(plan.all_keys))
        plan.digest = digest.digest() if is_sure else None

    def values(self, signature: Signature) -> dict[int, Any] | None:
        """The remembered values, decoded afresh; None when there are none or a worker took them along."""
        with self._lock:
            files = self._kept.get(signature)
            if files is None:
                return None
            self._kept.move_to_end(signature)
        try:
            return {number: self._engine.read_value(file) for number, file in files.items()}
        except LostError:
            with self._lock:
                lost = self._drop(signature) if self._kept.get(signature) is files else []
            self._engine.release(lost)
            return None

    def keep(self, plan: Plan, graph: GraphSubmission, values: dict[int, Any]) -> bool:
        """Remember what a get computed, for as long as it is not the least recently used; False when it is not worth it.

        The caller leaves the references to the files to this object, if True.
        """
        if plan.digest is None or any(value is None for value in values.values()):
            return False
        files = graph.files()
        size = sum(file.size_bytes for file in files.values())
        if size > KEEP_BYTES:
            return False
        requested = tuple(plan.order[number] for number in plan.requested)
        signature = (requested, plan.digest)
        dropped: list[Any] = []
        with self._lock:
            if signature in self._kept:
                return False
            self._kept[signature] = files
            self._requested[requested] = self._requested.get(requested, 0) + 1
            self._bytes += size
            while len(self._kept) > KEEP_COUNT or self._bytes > KEEP_BYTES:
                dropped += self._drop(next(iter(self._kept)))
        if dropped:
            self._engine.release(dropped)
        return True

    def _drop(self, signature: Signature) -> list[Any]:
        """Forget one; returns its files, which are to be released."""
        gone = self._kept.pop(signature)
        requested = signature[0]
        self._requested[requested] -= 1
        if not self._requested[requested]:
            del self._requested[requested]
        self._bytes -= sum(file.size_bytes for file in gone.values())
        return list(gone.values())


def _canonical(value: Any) -> bytes:
    """Equal bytes for equal keys and numbers, whichever of them are one object."""
    try:
        # Version 0 writes no references. Several times faster than repr.
        return marshal.dumps(value, 0)
    except ValueError:  # keys of other types
        return repr(value).encode()

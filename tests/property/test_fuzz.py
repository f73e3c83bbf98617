"""The fuzzer at a small size; ``python -m tests.fuzz`` gives it a million inputs. And that it notices what it is there for."""

from __future__ import annotations

import hmac
import tracemalloc
from typing import Any

import pytest

from tests.fuzz import fuzz
from tests.fuzz.targets import all_targets
from vinecore.shell.stream import Link
from vinecore.wire import framing, messages
from vinecore.wire.framing import FrameReader

TARGETS = list(all_targets())


def test_every_decoder_is_fuzzed() -> None:
    decoders = {name for name, value in vars(messages).items() if isinstance(value, messages.Decoder)}
    assert len(decoders) == 7 and decoders <= set(TARGETS)


def test_a_few_thousand_inputs_break_nothing() -> None:
    outcome = fuzz.run(7000)
    assert outcome.failures == []
    assert outcome.inputs == 7000
    # Each target was both refused something and given something that it takes.
    for name in TARGETS:
        assert len([1 for target, _ in outcome.results if target == name]) >= 2, outcome.results


def test_memory_stays_bounded() -> None:
    fuzz.run(700)
    tracemalloc.start()
    try:
        outcome = fuzz.run(700, seed=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome.failures == []
    # The largest input has some ten kilobytes, a link's buffer four.
    assert peak < 1 << 20


def broken_by(only: str, inputs: int = 600) -> str:
    return "\n".join(fuzz.run(inputs, only=only).failures)


def test_a_decoder_that_lets_other_errors_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(decoder: messages.Decoder, data: bytes | memoryview) -> object:
        return decoder._decode(data)

    monkeypatch.setattr(messages.Decoder, "__call__", call)
    for name in ("decode_from_manager", "decode_on_data_link", "hello.decode_from_dialer"):
        assert "ValidationError" in broken_by(name)


def test_a_reader_without_a_limit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rekey = FrameReader.rekey
    monkeypatch.setattr(FrameReader, "rekey", lambda reader, key, limit: rekey(reader, key, 1 << 31))
    assert "bytes are kept" in broken_by("frames without a key")
    assert "bytes are kept" in broken_by("frames with a key")
    assert "makes a link keep" in broken_by("link before the proof", 6000)


def test_tags_and_proofs_that_are_not_compared_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hmac, "compare_digest", lambda mine, theirs: True)
    assert framing.hmac is hmac
    assert "was not sent" in broken_by("frames with a key")
    monkeypatch.setattr(hmac, "compare_digest", _proofs_only)
    assert "got in" in broken_by("handshake, listener", 6000)
    assert "passed for a manager" in broken_by("handshake, dialler", 6000)
    assert "got in" in broken_by("link before the proof")


def _proofs_only(mine: bytes, theirs: bytes) -> bool:
    """Nonces are compared, proofs are believed: those are the ones that differ in every byte here."""
    return mine == theirs if theirs[:4] in (bytes(range(4)), bytes(range(100, 104))) else True


def test_a_link_that_decodes_too_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shake = Link._shake

    def early(link: Link) -> bool:
        held: Any = link.reader._buffer
        try:
            messages.decode_from_worker(held)
        except messages.ProtocolError:
            pass
        return shake(link)

    monkeypatch.setattr(Link, "_shake", early)
    assert "decoders were asked before the proof" in broken_by("link before the proof")

"""A slot without its socket: what it reports of single calls."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import pytest

from vinecore.runtime import payload as payloads
from vinecore.runtime import program_slot
from vinecore.runtime.slot import Slot
from vinecore.wire import messages


def slot_in(store: Path, function: Any) -> Slot:
    begin = messages.Begin(1, "library", b"", [], str(store), "r", 1000)
    return Slot(None, memoryview(bytearray(16)), begin, {7: function})  # type: ignore[arg-type]


def call(uses: int = 0) -> messages.Call:
    return messages.Call(1, 3, 7, -1, pickle.dumps(((), {})), [], uses, True)


@pytest.mark.parametrize("uses", [0, 2])
def test_a_result_that_the_disk_does_not_take_is_no_fault_of_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses: int
) -> None:
    """It was raised as the function's own OSError, and not tried anywhere else."""

    def full(path: str, encoded: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(payloads, "write_file", full)
    slot = slot_in(tmp_path, lambda: b"x" * 5000)
    result = slot.execute(call(uses))
    assert result.status == messages.LOST and b"No space left" in result.value
    assert not slot.kept and not slot.stored
    assert list(tmp_path.iterdir()) == []


def test_an_oserror_of_the_function_is_its_own(tmp_path: Path) -> None:
    def fails() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert slot_in(tmp_path, fails).execute(call()).status == messages.RAISED


class Program:
    """Stands for one that answers, and leaves no result."""

    name = "library"
    received = b""

    def __init__(self, begin: messages.Begin) -> None:
        pass

    def why_unfit(self) -> str:
        return ""

    def call(self, *_: object) -> int:
        return 0


def program_slot_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Program]) -> program_slot.ProgramSlot:
    monkeypatch.setattr(program_slot, "Program", kind)
    monkeypatch.setattr(program_slot, "Guard", lambda path: None)
    (tmp_path / "store").mkdir()
    begin = messages.Begin(1, "library", b"", [], str(tmp_path / "store"), "r", 1000)
    slot = program_slot.ProgramSlot(None, memoryview(bytearray(16)), begin, {})  # type: ignore[arg-type]
    slot.learn(messages.SlotCode(7, b"double", False))
    return slot


def test_a_program_is_given_up_whatever_goes_wrong_with_asking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept, its answer to this call would be the next one's."""

    class Broken(Program):
        def call(self, *_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

    slot = program_slot_in(tmp_path, monkeypatch, Broken)
    with pytest.raises(program_slot.ProgramFailed, match=r"talking to the program raised OSError: .*Too many open files"):
        slot.execute(call())
    assert list(slot.sandboxes.path.iterdir()) == []


@pytest.mark.parametrize("where", ["mkdtemp", "write_bytes"])
def test_a_full_disk_is_no_fault_of_a_call_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It was raised as the function's own OSError, and not tried anywhere else."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    slot = program_slot_in(tmp_path, monkeypatch, Program)
    monkeypatch.setattr(program_slot.tempfile if where == "mkdtemp" else Path, where, full)
    result = slot.execute(call())
    assert result.status == messages.LOST and b"No space left" in result.value
    assert list(slot.sandboxes.path.iterdir()) == []


class Sink(Slot):
    """One whose results are looked at instead of being sent; the first task makes a value that is kept."""

    value = b""

    def execute(self, call: messages.Call) -> messages.Result:
        if call.task_id != 1:
            return super().execute(call)
        result = messages.Result(1, 1, messages.OK_KEPT, 0)
        self.keep(call, self.value, result)
        return result

    def flush(self) -> None:
        pass

    def report(self, result: messages.Result, at_once: bool = True) -> None:
        self.out.append(result)


@pytest.mark.parametrize("order", [["made", "gone"], ["gone", "made"]])
@pytest.mark.parametrize("size", [10, 200_000], ids=["inline", "stored"])
def test_what_a_vertex_reads_beside_an_input_that_is_gone_is_written(tmp_path: Path, order: list[str], size: int) -> None:
    """It was kept for that vertex alone, and was made again with all that it was made from."""
    begin = messages.Begin(1, "library", b"", [], str(tmp_path), "r", 1000)
    claims = memoryview(bytearray(16)).cast("Q")
    claims[1] = 2**63
    slot = Sink(None, claims, begin, {})  # type: ignore[arg-type]
    slot.value = b"x" * size
    slot.pieces[7] = [None, None]
    refs: list[int | str] = [{"made": 1, "gone": "r-9.1"}[name] for name in order]
    group = [messages.Call(1, 1, 7, 0, b"", [], 2, False)]
    group += [messages.Call(number, 1, 7, 1, b"", refs, 0, True) for number in (2, 3)]
    slot.run_batch(messages.Batch(0, [group], []))
    told = [(result.task_id, result.status) for result in slot.out]
    assert told == [(1, messages.OK_KEPT), (1, messages.WRITTEN_LATER), (2, messages.NO_INPUT), (3, messages.NO_INPUT)]
    assert payloads.decode(slot.out[1].value) == slot.value if size < 1000 else (tmp_path / "r-1.1").exists()

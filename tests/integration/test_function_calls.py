"""``Manager`` with ``FunctionCall`` on real processes: submitting, waiting, cancelling, files, exceptions, the end.

Libraries, their contexts and modes are in ``test_libraries.py``. A call that must last blocks on a file: nothing depends on how
long anything takes.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.calls import LIMIT_S, add, block, eventually, fails, finish, note, started
from vinecore import FunctionCall, Manager, PythonTask
from vinecore.errors import LoopDied, RemoteError, UnpicklableError, UsageError

# ---------------------------------------------------------------- submit and wait


@pytest.mark.parametrize("timeout", [30, 30.5, None, "wait_forever", -1])
def test_wait_takes_every_kind_of_timeout(m: Manager, install: Callable[..., str], timeout: Any) -> None:
    call = FunctionCall(install(add), "add", 1, y=2)
    assert (call.state, call.result, call.id, call.output) == ("INITIAL", "unknown", None, None)
    number = m.submit(call)
    assert m.wait(timeout) is call
    assert (call.id, call.output, call.result, call.exit_code, call.state) == (number, 3, "success", 0, "DONE")
    assert call.completed() and call.successful() and call.std_output == "" and call.command == "add"


@pytest.mark.parametrize("timeout", ["soon", True, [1], b"1"])
def test_wait_refuses_what_is_no_timeout(m: Manager, timeout: Any) -> None:
    with pytest.raises(UsageError, match="a timeout is a number of seconds"):
        m.wait(timeout)


def test_wait_ends_when_nothing_is_there(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    assert m.empty() and m.wait(0) is None and m.wait("wait_forever") is None and m.wait(None) is None
    call = FunctionCall(install(block), "block", str(tmp_path / "gate"))
    m.submit(call)
    assert m.wait(0) is None and m.wait(0.05) is None and not m.empty()
    assert started(tmp_path / "gate", 1)
    assert eventually(lambda: call.state == "RUNNING")
    (tmp_path / "gate").touch()
    # 0 looks without waiting, and finds it once it is there.
    assert eventually(lambda: call.state == "RETRIEVED")
    assert m.wait(0) is call and call.state == "DONE" and m.empty() and m.wait(0) is None


def test_ids_grow_and_every_call_comes_back_once(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    calls = [FunctionCall(library, "add", i) for i in range(300)]
    ids = [m.submit(call) for call in calls]
    assert ids == sorted(set(ids))
    back = [m.wait(LIMIT_S) for _ in calls]
    assert sorted(task.id for task in back) == ids and m.empty()
    assert [call.output for call in calls] == list(range(1, 301))


def test_wait_for_tag_and_for_id(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    calls = [FunctionCall(library, "add", i) for i in range(6)]
    for call in calls:
        call.set_tag("even" if call.args[0] % 2 == 0 else "odd")
        m.submit(call)
    assert m.wait_for_tag("nobody", None) is None
    assert m.wait_for_task_id(10**9, None) is None
    assert m.wait_for_tag("nobody", 0) is None
    assert m.wait_for_task_id(calls[5].id or 0, LIMIT_S) is calls[5]
    assert m.wait_for_task_id(calls[5].id or 0, LIMIT_S) is None
    assert {m.wait_for_tag("even", LIMIT_S) for _ in range(3)} == {calls[0], calls[2], calls[4]}
    assert m.wait_for_tag("even") is None
    assert {m.wait_for_tag(None, LIMIT_S), m.wait_for_task_id(-1, LIMIT_S)} == {calls[1], calls[3]}
    assert m.empty() and m.wait(0) is None


def test_returned_task_can_be_submitted_again(m: Manager, install: Callable[..., str]) -> None:
    call = FunctionCall(install(add), "add", 1)
    assert finish(m, call) == [2]
    first = call.id
    call.set_fn_args([5], {"y": 5})
    assert call.output == 2
    assert finish(m, call) == [10]
    assert call.id != first and call.result == "success"


@pytest.mark.parametrize("taken_by", ["tag", "id"])
def test_a_task_taken_by_tag_or_id_can_be_submitted_again(
    m: Manager, install: Callable[..., str], tmp_path: Path, taken_by: str
) -> None:
    """Its first end, which wait had not met, was handed out as that of the second run: before that had run."""
    library = install(block, add, slots=2)
    (tmp_path / "open").touch()
    call = FunctionCall(library, "block", str(tmp_path / "open"))
    call.set_tag("mine")
    for _ in range(2):
        m.submit(call)
        taken = m.wait_for_tag("mine", LIMIT_S) if taken_by == "tag" else m.wait_for_task_id(call.id or 0, LIMIT_S)
        assert taken is call
    call.set_fn_args([str(tmp_path / "gate")])
    m.submit(call)
    other = FunctionCall(library, "add", 1)
    m.submit(other)
    assert started(tmp_path / "gate", 1)
    assert m.wait(LIMIT_S) is other and m.wait(0) is None
    assert m.stats.tasks_with_results == 0 and call.result == "unknown" and not m.empty()
    (tmp_path / "gate").touch()
    assert m.wait(LIMIT_S) is call and call.output > 0 and m.empty()


@pytest.mark.parametrize("taken_by", ["wait", "tag", "id"])
def test_a_task_that_was_taken_is_let_go_of(m: Manager, install: Callable[..., str], taken_by: str) -> None:
    library = install(add)
    numbers, left = [], []
    for number in range(20):
        call = FunctionCall(library, "add", number, y=1)
        call.set_tag("mine")
        numbers.append(m.submit(call))
        left.append(weakref.ref(call))
    del call
    for number in numbers:
        if taken_by == "id":
            taken = m.wait_for_task_id(number, LIMIT_S)
        else:
            taken = m.wait_for_tag("mine", LIMIT_S) if taken_by == "tag" else m.wait(LIMIT_S)
        assert taken.successful()
    del taken
    # The batch of outcomes that woke this thread may be held by the loop's thread for a moment.
    assert eventually(lambda: gc.collect() >= 0 and not any(reference() for reference in left))
    assert m.stats.tasks_with_results == 0


def test_threads_that_take_by_id_tag_and_turn_get_each_task_once(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    calls = [FunctionCall(library, "add", number, y=1) for number in range(600)]
    for call in calls:
        call.set_tag("mine")
        m.submit(call)
    taken: list[Any] = []
    numbers = [call.id or 0 for call in calls]
    takers: list[Callable[[], Any]] = [
        lambda: [m.wait_for_task_id(number, LIMIT_S) for number in reversed(numbers)],  # at once where another took it
        lambda: [m.wait_for_tag("mine", None) for _ in numbers],
        lambda: [m.wait(None) for _ in numbers],
    ]
    threads = [threading.Thread(target=lambda take=take: taken.extend(take()), daemon=True) for take in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    found = [task for task in taken if task is not None]
    assert len(found) == len(calls) and set(found) == set(calls)


def test_it_can_be_submitted_to_another_manager() -> None:
    """The end of the first one is no business of the second, and concerns that task no more."""
    task = PythonTask(bytes, 1_000_000)
    with Manager(local_cores=1) as other:
        with Manager(local_cores=1) as m:
            m.submit(task)
            assert m.wait_for_task_id(task.id or 0, LIMIT_S) is task
            other.submit(task)
            assert m.wait(0) is None and m.empty()
            assert eventually(lambda: other.stats.tasks_with_results == 1)
        assert other.wait(LIMIT_S) is task and other.wait(0) is None and other.empty()
        assert len(task.output) == 1_000_000


def test_submitting_a_task_that_is_under_way_is_refused(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    call = FunctionCall(install(block), "block", str(tmp_path / "gate"))
    m.submit(call)
    with pytest.raises(UsageError, match=f"task {call.id} is under way already"):
        m.submit(call)
    (tmp_path / "gate").touch()
    assert m.wait(LIMIT_S) is call


def test_submit_refuses_what_is_no_task(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    with pytest.raises(TypeError, match="submit takes a task"):
        m.submit(add)
    with pytest.raises(ValueError, match=r"invalid library name 'nowhere' \(installed: .*lib-"):
        m.submit(FunctionCall("nowhere", "add", 1))
    with pytest.raises(ValueError, match=f"library '{library}' has no function 'sub'; it has: add"):
        m.submit(FunctionCall(library, "sub", 1))
    with pytest.raises(UnpicklableError, match="lock"):
        m.submit(FunctionCall(library, "add", threading.Lock()))
    # What was refused leaves nothing behind, and its object can be put right.
    assert m.empty()
    call = FunctionCall("nowhere", "add", 1)
    with pytest.raises(UsageError):
        m.submit(call)
    call.library = library
    assert finish(m, call) == [2]


def test_several_threads_submit_and_wait(m: Manager, install: Callable[..., str]) -> None:
    library = install(add, slots=2)
    got: list[int] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(50):
                call = FunctionCall(library, "add", 1000 * number, i)
                call.set_tag(f"thread-{number}")
                m.submit(call)
            for _ in range(50):
                task = m.wait_for_tag(f"thread-{number}", LIMIT_S)
                got.append(task.output)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_S)
        assert not thread.is_alive()
    assert errors == []
    assert sorted(got) == sorted(1000 * number + i for number in range(4) for i in range(50))


def test_hungry_follows_the_documented_values() -> None:
    with Manager(port=0, auth=None) as manager:
        manager.tune("no-worker-notice", 3600)
        manager.tune("hungry-minimum", 11)
        assert manager.hungry() == 11
        manager.tune("hungry-minimum", 2)
        assert manager.hungry() == 2
        manager.install_library(manager.create_library_from_functions("lib", add))
        manager.submit(FunctionCall("lib", "add", 1))
        assert manager.hungry() == 1
        manager.submit(FunctionCall("lib", "add", 1))
        assert manager.hungry() == 0


def test_hungry_with_a_worker_of_twelve_cores(tmp_path: Path) -> None:
    with Manager(local_cores=12) as manager:
        assert eventually(lambda: manager.stats.total_cores == 12)
        assert manager.hungry() == 24
        manager.install_library(manager.create_library_from_functions("lib", block, exec_mode="direct"))
        manager.submit(FunctionCall("lib", "block", str(tmp_path / "gate")))
        assert started(tmp_path / "gate", 1)
        assert manager.hungry() == 23
        manager.tune("hungry-minimum-factor", 3)
        assert manager.hungry() == 35
        (tmp_path / "gate").touch()
        assert manager.wait(LIMIT_S).result == "success"


# ---------------------------------------------------------------- cancelling


def test_cancel_by_id_tag_category_and_all(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block)
    calls = [FunctionCall(library, "block", str(tmp_path / "gate")) for _ in range(8)]
    for number, call in enumerate(calls):
        call.set_tag("tagged" if number in (1, 2, 3) else "other")
        call.set_category("cold" if number in (4, 5) else "default")
        m.submit(call)
    assert started(tmp_path / "gate", 1)
    # The first one is running.
    assert m.cancel_by_task_id(calls[0].id or 0) == 1
    assert m.wait(LIMIT_S) is calls[0]
    assert m.cancel_by_task_id(calls[0].id or 0) == 0 and m.cancel_by_task_id(10**9) == 0
    assert m.cancel_by_task_tag("tagged") == 1 and m.cancel_by_task_tag("nobody") == 0
    assert m.wait_for_tag("tagged", LIMIT_S).result == "cancelled"
    assert m.cancel_all_by_tag("tagged") == 2 and m.cancel_all_by_tag("nobody") == 0
    assert m.cancel_by_category("cold") == 2 and m.cancel_by_category("nothing") == 0
    assert m.cancel_all() == 2
    back = {m.wait(LIMIT_S) for _ in range(6)}
    assert None not in back and m.empty() and m.wait(0) is None
    for call in calls:
        assert (call.result, call.exit_code, call.std_output, call.state) == ("cancelled", -1, None, "DONE")
        assert not call.completed() and not call.successful() and type(call.output).__name__ == "CancelledError"
    assert m.cancel_all() == 0
    # The slot that was stuck is free again, and a cancelled call can be tried again.
    (tmp_path / "gate").touch()
    assert isinstance(finish(m, calls[0])[0], int)


def test_cancelling_is_counted(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block)
    before = m.stats
    for _ in range(3):
        m.submit(FunctionCall(library, "block", str(tmp_path / "gate")))
    assert m.cancel_all() == 3
    assert [m.wait(LIMIT_S).result for _ in range(3)] == ["cancelled"] * 3
    after = m.stats
    assert (after.tasks_cancelled, after.tasks_failed) == (before.tasks_cancelled + 3, before.tasks_failed)


# ---------------------------------------------------------------- files


def test_buffers_as_arguments(m: Manager, install: Callable[..., str]) -> None:
    library = install(len, add)
    small, large = m.declare_buffer(b"ab\x00cd"), m.declare_buffer(os.urandom(1 << 20), cache=True, peer_transfer=False)
    text = m.declare_buffer("hällo")
    assert finish(m, *(FunctionCall(library, "len", f) for f in (small, large, text))) == [5, 1 << 20, 6]
    assert finish(m, FunctionCall(library, "add", small, y=text)) == [b"ab\x00cd" + "hällo".encode()]
    assert small.contents() == b"ab\x00cd" and m.fetch_file(text) == "hällo" and len(large) == 1 << 20
    assert small.contents(lambda file: file.read(2)) == b"ab"
    m.undeclare_file(large)
    m.undeclare_file(large)


def test_a_changed_bytearray_is_sent_as_it_was_declared(m: Manager, install: Callable[..., str]) -> None:
    data = bytearray(b"before")
    file = m.declare_buffer(data)
    data[:] = b"after!"
    assert finish(m, FunctionCall(install(bytes), "bytes", file)) == [b"before"]


def make_array(size: int, path: str = "") -> Any:
    if path:
        note(path)
    return np.arange(size)


def total(*arrays: Any) -> int:
    return int(sum(a.sum() for a in arrays))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_temp_stays_in_the_cluster_and_feeds_calls(m: Manager, install: Callable[..., str], size: int) -> None:
    library = install(make_array, total)
    temp = m.declare_temp()
    assert m.fetch_file(temp) is None and m.get_file_replica_count(temp) == 0
    maker = FunctionCall(library, "make_array", size)
    maker.set_output(temp)
    m.submit(maker)
    # Submitted before its input exists: it waits for the file.
    user = FunctionCall(library, "total", temp, temp)
    m.submit(user)
    assert m.wait_for_task_id(user.id or 0, LIMIT_S).output == size * (size - 1)
    assert m.wait(LIMIT_S) is maker and maker.result == "success" and maker.output_file is temp
    with pytest.raises(UsageError, match="the value was left in the cluster"):
        _ = maker.output
    assert m.fetch_file(temp, timeout=LIMIT_S) is not None
    assert isinstance(temp.contents(), bytes)
    if size == 10:
        assert temp.contents(pickle.load).tolist() == list(range(10))
    else:
        assert m.get_file_replica_count(temp) == 1 and len(temp) >= 8 * size


def test_output_file_without_a_declared_temp(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    first = FunctionCall(library, "add", 1)
    first.enable_temp_output()
    assert first.output_file is None
    m.submit(first)
    assert first.output_file is not None
    second = FunctionCall(library, "add", first.output_file, y=40)
    m.submit(second)
    assert m.wait_for_task_id(second.id or 0, LIMIT_S).output == 42
    assert m.wait(LIMIT_S) is first


def test_pruned_temp_is_made_again(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(make_array, total)
    temp = m.declare_temp()
    maker = FunctionCall(library, "make_array", 200_000, str(tmp_path))
    maker.set_output(temp)
    m.submit(maker)
    assert m.wait(LIMIT_S) is maker
    assert m.get_file_replica_count(temp) == 1 and len(list(tmp_path.iterdir())) == 1
    m.prune_file(temp)
    assert eventually(lambda: m.get_file_replica_count(temp) == 0)
    assert finish(m, FunctionCall(library, "total", temp)) == [200_000 * 199_999 // 2]
    assert len(list(tmp_path.iterdir())) == 2 and m.get_file_replica_count(temp) == 1
    m.prune_file(temp)
    assert m.fetch_file(temp, timeout=LIMIT_S) is not None
    assert len(list(tmp_path.iterdir())) == 3
    m.undeclare_file(temp)
    assert eventually(lambda: m.get_file_replica_count(temp) == 0)


def test_a_temp_whose_call_raised(m: Manager, install: Callable[..., str]) -> None:
    library = install(fails, add)
    temp = m.declare_temp()
    maker = FunctionCall(library, "fails", "broken")
    maker.set_output(temp)
    user = FunctionCall(library, "add", temp)
    outputs = finish(m, maker, user)
    assert [type(output) for output in outputs] == [KeyError, KeyError]
    assert m.fetch_file(temp, timeout=LIMIT_S) is None


def test_files_are_refused_clearly(m: Manager, install: Callable[..., str]) -> None:
    library = install(add)
    with pytest.raises(UsageError, match="declare_buffer takes bytes or a str, not int"):
        m.declare_buffer(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no option 'cash'"):
        m.declare_buffer(b"", cash=True)
    call = FunctionCall(library, "add", 1)
    with pytest.raises(UsageError, match="set_output takes a temp"):
        call.set_output(m.declare_buffer(b"x"))
    with pytest.raises(UsageError, match="this takes a File"):
        m.prune_file("name")  # type: ignore[arg-type]
    temp = m.declare_temp()
    call.set_output(temp)
    assert finish_without_output(m, call) == "success"
    with pytest.raises(UsageError, match="another call makes this temp"):
        FunctionCall(library, "add", 1).set_output(temp)
    with Manager(port=0, auth=None) as other:
        theirs = other.declare_buffer(b"theirs")
        with pytest.raises(UsageError, match="belongs to another manager"):
            m.fetch_file(theirs)
        with pytest.raises(UsageError, match="belongs to another"):
            m.submit(FunctionCall(library, "add", theirs))
    assert m.empty()


def finish_without_output(manager: Manager, call: FunctionCall) -> str:
    manager.submit(call)
    assert manager.wait(LIMIT_S) is call
    return call.result


# ---------------------------------------------------------------- exceptions, retries, large values


class Unrebuildable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("made of two", threading.Lock())


class Own(Exception):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


def raise_own() -> None:
    try:
        raise ValueError("inner")
    except ValueError as inner:
        raise Own("outer", 5) from inner


def raise_unrebuildable() -> None:
    raise Unrebuildable(1, 2)


def test_exceptions_come_back_as_themselves(m: Manager, install: Callable[..., str]) -> None:
    library = install(fails, raise_own, raise_unrebuildable)
    calls = [
        FunctionCall(library, "fails", "k"),
        FunctionCall(library, "raise_own"),
        FunctionCall(library, "raise_unrebuildable"),
    ]
    key, own, other = finish(m, *calls)
    assert isinstance(key, KeyError) and key.args == ("k",)
    assert isinstance(own, Own) and own.code == 5 and own.args == ("outer", 5)
    text = "".join(traceback.format_exception(own))
    assert "in raise_own" in text and "inner" in text
    assert isinstance(other, RemoteError) and "made of two" in str(other) and "Unrebuildable" in str(other)
    for call in calls:
        assert (call.result, call.exit_code, call.successful(), call.completed()) == ("success", 1, False, True)
        assert call.std_output is not None and "Traceback" in call.std_output
        # Asked twice, it is the same object.
        assert call.output is call.output


def unpicklable() -> Any:
    return threading.Lock()


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_unpicklable_result(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    error = finish(m, FunctionCall(install(unpicklable, exec_mode=exec_mode), "unpicklable"))[0]
    assert isinstance(error, UnpicklableError) and "lock" in str(error) and "unpicklable" in str(error)


def second_time(directory: str) -> str:
    first = not any(Path(directory).iterdir())
    note(directory)
    if first:
        raise OSError("not yet")
    return "done"


def test_retries(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(second_time, fails)
    call = FunctionCall(library, "second_time", str(tmp_path))
    call.set_retries(1)
    assert finish(m, call) == ["done"]
    hopeless = FunctionCall(library, "fails", "k")
    hopeless.set_retries(3)
    assert isinstance(finish(m, hopeless)[0], KeyError)


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_large_arguments_and_results(m: Manager, install: Callable[..., str], exec_mode: str) -> None:
    library = install(add, make_array, exec_mode=exec_mode)
    array, text = np.arange(2_000_000), b"x" * 20_000_000
    results = finish(
        m,
        FunctionCall(library, "add", array),
        FunctionCall(library, "add", text, b"y"),
        FunctionCall(library, "make_array", 1_000_000),
        FunctionCall(library, "make_array", 8_000),
    )
    assert np.array_equal(results[0], array + 1) and results[1] == text + b"y"
    assert results[2].sum() == 999_999 * 500_000 and results[3].shape == (8000,)
    # Results are the caller's own: they can be written.
    results[2][0] = 5
    assert results[2][0] == 5


def test_large_results_are_dropped_with_their_tasks(m: Manager, install: Callable[..., str]) -> None:
    library = install(make_array)
    call = FunctionCall(library, "make_array", 500_000)
    objects = lambda: m.engine.call_in_loop(lambda: len(m.engine.machine.state.held))  # noqa: E731
    before = objects()
    for _ in range(3):
        # Submitted again, the value of the time before is nobody's.
        assert len(finish(m, call)[0]) == 500_000
    assert eventually(lambda: objects() <= before + 1), objects()
    del call
    assert eventually(lambda: objects() <= before), objects()


# ---------------------------------------------------------------- stats, tune, the end


def test_stats(m: Manager, install: Callable[..., str], tmp_path: Path) -> None:
    library = install(block, add, fails)
    before = m.stats
    assert (before.workers_connected, before.workers_joined, before.total_cores, before.total_gpus) == (1, 1, 2, 0)
    assert before.total_memory > 100 and before.total_disk > 1
    gate = str(tmp_path / "gate")
    for _ in range(3):
        m.submit(FunctionCall(library, "block", gate))
    assert started(tmp_path / "gate", 1)
    during = m.stats
    assert during.tasks_running + during.tasks_waiting == 3 and during.tasks_running >= 1
    assert during.workers_busy == 1 and during.workers_idle == 0 and during.tasks_on_workers == during.tasks_running
    Path(gate).touch()
    assert eventually(lambda: m.stats.tasks_with_results == 3)
    m.submit(FunctionCall(library, "fails", "x"))
    for _ in range(4):
        m.wait(LIMIT_S)
    after = m.stats
    assert after.tasks_submitted == before.tasks_submitted + 4
    assert after.tasks_done == before.tasks_done + 3 and after.tasks_failed == before.tasks_failed + 1
    assert after.tasks_dispatched >= before.tasks_dispatched + 4
    assert (after.tasks_waiting, after.tasks_running, after.tasks_with_results) == (0, 0, 0)
    assert after.workers_idle == 1 and after.time_workers_execute > before.time_workers_execute


def test_tune(m: Manager, capfd: pytest.CaptureFixture[str]) -> None:
    assert m.tune("pipeline-ms", 30) == 0 and m.tune("pipeline_ms", 20) == 0
    assert m.tune("no-such-thing", 1) == -1
    assert capfd.readouterr().err == "vine: tune: there is no tunable 'no-such-thing'\n"
    with pytest.raises(UsageError, match="takes a number"):
        m.tune("pipeline-ms", "fast")  # type: ignore[arg-type]


def test_close_while_work_is_running(tmp_path: Path) -> None:
    manager = Manager(local_cores=2)
    manager.install_library(manager.create_library_from_functions("lib", block, exec_mode="direct"))
    calls = [FunctionCall("lib", "block", str(tmp_path / "gate")) for _ in range(3)]
    for call in calls:
        manager.submit(call)
    assert started(tmp_path / "gate", 1)
    told: list[Any] = []

    def wait() -> None:
        try:
            told.append(manager.wait_for_tag("never", "wait_forever"))
            while (task := manager.wait()) is not None:
                told.append(task)
        except LoopDied as error:
            told.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    manager.close()
    waiter.join(LIMIT_S)
    assert not waiter.is_alive() and told
    for call in calls:
        assert call.result == "forsaken" and isinstance(call.output, LoopDied)


def test_use_after_close() -> None:
    with Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", add))
        done = FunctionCall("lib", "add", 1)
        assert finish(manager, done) == [2]
        temp = manager.declare_temp()
    manager.close()
    assert "closed" in repr(manager) and manager.empty()
    for use in (
        lambda: manager.submit(FunctionCall("lib", "add", 1)),
        lambda: manager.submit(done),
        lambda: manager.stats,
        lambda: manager.hungry(),
        lambda: manager.get_file_replica_count(temp),
        lambda: manager.install_library(manager.create_library_from_functions("other", add)),
        lambda: manager.remove_library("lib"),
    ):
        begin = time.monotonic()
        with pytest.raises((LoopDied, UsageError), match=r"closed|ended"):
            use()
        assert time.monotonic() - begin < LIMIT_S / 2
    assert manager.wait(0) is None
    with pytest.raises(LoopDied, match="has been closed"):
        manager.wait(5)
    # A refused submit leaves nothing that one could wait for.
    assert manager.empty() and manager.wait() is None
    assert done.output == 2
    manager.undeclare_file(temp)


def test_leaving_the_block_by_an_exception_ends_everything(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Manager(local_cores=1) as manager:
        manager.install_library(manager.create_library_from_functions("lib", block))
        manager.submit(FunctionCall("lib", "block", str(tmp_path / "gate")))
        assert started(tmp_path / "gate", 1)
        1 / 0  # noqa: B018
    assert manager.engine.closed


def fork_and_come_back(number: int) -> tuple[str, int]:
    """The child returns too, late: its value must not be taken for the parent's, nor for that of a later call."""
    if os.fork() == 0:
        time.sleep(0.02)
        return "child", number
    return "parent", number


def fork_with_a_large_value(directory: str) -> bytes:
    child = os.fork()
    if child == 0:
        time.sleep(0.05)
        return b"c" * 300_000
    Path(directory, str(child)).touch()
    return b"p" * 200_000


def _is_alive(pid: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("mode", ["fork", "direct"])
def test_a_child_that_comes_back_from_a_call_answers_for_nobody(
    m: Manager, install: Callable[..., str], tmp_path: Path, mode: str
) -> None:
    library = install(fork_and_come_back, fork_with_a_large_value, add, exec_mode=mode, slots=1)
    mixed = [FunctionCall(library, "fork_and_come_back" if i % 5 == 0 else "add", i) for i in range(60)]
    assert finish(m, *mixed) == [("parent", i) if i % 5 == 0 else i + 1 for i in range(60)]
    large = [FunctionCall(library, "fork_with_a_large_value", str(tmp_path)) for _ in range(3)]
    for call in large:
        call.enable_temp_output()
        m.submit(call)
    while not m.empty():
        assert m.wait(LIMIT_S) is not None
    children = [path.name for path in tmp_path.iterdir()]
    assert len(children) == 3 and eventually(lambda: not any(_is_alive(child) for child in children))
    assert finish(m, *[FunctionCall(library, "add", call.output_file, b"") for call in large]) == [b"p" * 200_000] * 3

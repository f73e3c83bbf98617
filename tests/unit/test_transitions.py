"""The tables of states: closed, and every state can be reached and left."""

from __future__ import annotations

from vinecore.manager import transitions as t


def test_every_task_state_can_be_reached_from_new() -> None:
    reached = {t.NEW}
    for _ in t.TASK:
        reached |= {after for (before, _), after in t.TASK.items() if before in reached}
    assert reached == {t.NEW, t.WAITING, t.READY, t.PLACED, t.FINISHED}


def test_every_unfinished_state_can_finish() -> None:
    for state in (t.WAITING, t.READY, t.PLACED):
        assert t.TASK[state, "cancelled"] is t.FINISHED
        assert t.TASK[state, "failed"] is t.FINISHED


def test_only_a_lost_output_leaves_finished() -> None:
    assert [cause for (before, cause) in t.TASK if before is t.FINISHED] == ["output lost"]


def test_states_are_single_objects() -> None:
    # They are compared by identity on the hot path.
    known = {id(s) for s in (t.NEW, t.WAITING, t.READY, t.PLACED, t.FINISHED)}
    assert {id(after) for after in t.TASK.values()} <= known


def test_an_instance_that_is_gone_stays_gone() -> None:
    assert all(before is not t.GONE for before, _ in t.INSTANCE)
    assert {after for after in t.INSTANCE.values()} == {t.UP, t.GONE}

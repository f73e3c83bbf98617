"""Who is ended when there are too many connections that have not proved themselves."""

from __future__ import annotations

from vinecore.shell.strangers import Strangers, group_of


def taken(strangers: Strangers, ended: list[str], *names: str) -> dict[str, object]:
    """Take these in; the part before the dash is the address."""
    return {name: strangers.take_in(name.partition("-")[0], lambda name=name: ended.append(name)) for name in names}  # type: ignore[misc]


def test_one_too_many_of_an_address_ends_its_oldest() -> None:
    strangers, ended = Strangers(per_address=2), []
    taken(strangers, ended, "b-1", "a-1", "a-2", "a-3", "a-4")
    assert ended == ["a-1", "a-2"]
    assert (len(strangers), strangers.ended_count) == (3, 2)


def test_one_too_many_in_all_ends_the_oldest_of_the_address_that_has_most() -> None:
    strangers, ended = Strangers(per_address=3, in_all=5), []
    taken(strangers, ended, "a-1", "b-1", "b-2", "b-3", "c-1", "d-1", "e-1")
    assert ended[:2] == ["b-1", "b-2"]
    # One of each address now: the oldest of all.
    assert len(strangers) == 5
    taken(strangers, ended, "f-1")
    assert ended[2:] == ["a-1"]


def test_a_limit_of_one() -> None:
    strangers, ended = Strangers(per_address=1), []
    taken(strangers, ended, "a-1", "a-2", "a-3")
    assert ended == ["a-1", "a-2"]
    assert len(strangers) == 1


def test_who_has_settled_is_neither_counted_nor_ended() -> None:
    strangers, ended = Strangers(per_address=2), []
    found = taken(strangers, ended, "a-1", "a-2")
    for _ in range(2):
        strangers.settled(found["a-1"])  # type: ignore[arg-type]
    assert len(strangers) == 1
    taken(strangers, ended, "a-3")
    assert ended == []
    strangers.end_all()
    assert sorted(ended) == ["a-2", "a-3"]
    assert len(strangers) == 0


def test_ending_may_settle_again() -> None:
    strangers = Strangers(per_address=1)
    first = strangers.take_in("a", lambda: strangers.settled(first))
    strangers.take_in("a", lambda: None)
    assert len(strangers) == 1
    strangers.end_all()
    assert len(strangers) == 0


def test_what_counts_as_one_address() -> None:
    assert group_of("10.0.0.1") == "10.0.0.1"
    assert group_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert group_of("2001:db8:1:2:3:4:5:6") == group_of("2001:db8:1:2::1") != group_of("2001:db8:1:3::1")
    assert group_of("fe80::1%eth0") == group_of("fe80::2") == "fe80::"
    assert group_of("") == ""

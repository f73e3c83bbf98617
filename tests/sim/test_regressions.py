"""Lives that broke a promise once. Each must stay well; the docstring says what went wrong.

The first ones are plain lives, from before there were sandboxes, peers, drains and disks in them.
"""

from __future__ import annotations

from tests.sim.simulate import simulate


def test_wanted_and_released_is_answered() -> None:
    """A file was wanted, then released; when its worker left, it was made again for ever to answer the request."""
    simulate(41, plain=True)


def test_relay_of_a_failed_graph_is_answered() -> None:
    """A requested value was lost, its rerun was given up with its graph, and whoever wanted its bytes waited for ever."""
    simulate(17, plain=True)


def test_kept_value_of_a_revoked_bundle() -> None:
    """A bundle ended because its graph failed: its kept value stayed "kept", so a later rerun of its reader waited for it."""
    simulate(372, plain=True)


def test_one_input_twice_in_a_drawn_bundle() -> None:
    """A consumer that names one input twice drew its producer into a bundle twice."""
    for seed in (405, 648):
        simulate(seed, plain=True)


def test_run_sent_before_its_code_failed() -> None:
    """A call reached the worker after the fetch of its code had failed, and a slot was given code that was not there."""
    for seed in (1148, 2182):
        simulate(seed, plain=True)


def test_lost_value_of_a_removed_library() -> None:
    """A value made by a library that had been removed was lost: its rerun stayed ready and no worker could take it."""
    for seed in (10164, 10493, 11429):
        simulate(seed, plain=True)


def test_library_failed_where_a_value_must_be_made_again() -> None:
    """A library failed on every worker while calls of it waited; those that became ready later waited for ever."""
    for seed in (27, 116, 21065):
        simulate(seed, plain=True)


def test_stale_missing_input_of_a_copy_that_came() -> None:
    """A slot had found an input missing, a new copy came before the manager heard of that: the copy stayed and had no owner."""
    simulate(107727)


def test_end_of_a_bundle_that_had_lost_an_entry() -> None:
    """A vertex taken out of a bundle had its value kept by another one: the end of the first made that value again."""
    simulate(407926)


def test_vanished_copy_on_the_machine_of_the_manager() -> None:
    """A copy that the reader was sent to and that was not there was named again and again, while another worker had one."""
    simulate(510335)


def test_workers_that_leave_together() -> None:
    """Two draining workers held the only copies; each was released because the other had one too."""
    for seed in (507683, 600831):
        simulate(seed)


def test_parent_that_ends_before_its_first_slot_is_ready() -> None:
    """The parent that was started in its place never said that it was ready: the worker got no work of that library."""
    simulate(20710)


def test_value_that_came_home_while_it_was_made_again() -> None:
    """Made again inside a bundle that was cut, it got the name of the new object, while the manager held the old one for ever."""
    simulate(53373)


def test_pruned_value_of_a_removed_library() -> None:
    """A reader of a pruned value, whose library was removed, was told that it is gone: the simulation did not expect that."""
    simulate(2007140)

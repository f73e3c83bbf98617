"""A ticket is good for one object, one worker, one run, and for a while."""

from __future__ import annotations

import pytest

from vinecore.errors import AuthenticationError
from vinecore.model.ticket import check_ticket, make_ticket

KEY = bytes(range(32))


def test_the_ticket_that_was_made_is_good() -> None:
    check_ticket(KEY, "r1-7.1", 4, 1000, make_ticket(KEY, "r1-7.1", 4, 1000), now_s=1000)


@pytest.mark.parametrize(
    ("key", "name", "worker_id", "expires_s"),
    [
        (bytes(32), "r1-7.1", 4, 1000),
        (KEY, "r1-7.2", 4, 1000),
        (KEY, "r1-7.1", 5, 1000),
        (KEY, "r1-7.1", 4, 1001),
        (KEY, "0 r1-7.1", 4, 1000),
    ],
)
def test_a_ticket_for_anything_else_is_refused(key: bytes, name: str, worker_id: int, expires_s: int) -> None:
    with pytest.raises(AuthenticationError, match="not for this object"):
        check_ticket(KEY, "r1-7.1", 4, 1000, make_ticket(key, name, worker_id, expires_s), now_s=10)


def test_an_expired_ticket_is_refused() -> None:
    with pytest.raises(AuthenticationError, match="expired"):
        check_ticket(KEY, "r1-7.1", 4, 1000, make_ticket(KEY, "r1-7.1", 4, 1000), now_s=1000.5)

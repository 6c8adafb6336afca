"""Nodes whose clocks differ: what is compared with what another has written goes by the database's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flaskchat import forget
from flaskchat.errors import TooMany
from flaskchat.store.usage import Quota
from tests.rooms import Rooms

pytestmark = pytest.mark.backends("postgres")


@contextmanager
def ahead(seconds: float) -> Iterator[None]:
    """What is called within goes by a clock that is so far ahead."""
    now = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: now() + seconds)
        yield


@pytest.mark.parametrize("seconds", [90, -90])
def test_messages_are_counted_over_the_same_minute_by_all_nodes(two: tuple[Rooms, Rooms], seconds: float) -> None:
    mine, other = two
    for rooms in two:
        rooms.store._quota = Quota(messages_per_minute=2)
    mine.begin()
    with ahead(seconds):
        other.begin()
    with pytest.raises(TooMany) as refused:
        mine.begin()
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 60
    with ahead(seconds), pytest.raises(TooMany):
        other.begin()


def test_a_node_that_lives_in_the_future_deletes_nothing_that_is_new(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    mine.run(mine.begin(), "Hello")
    with ahead(40 * forget.DAY):
        assert forget.older_than(other.database, 30) == (0, False)


def test_what_a_node_begins_that_lives_in_the_past_is_not_deleted_for_that(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    with ahead(-40 * forget.DAY):
        mine.run(mine.begin(), "Hello")
    assert forget.older_than(other.database, 30) == (0, False)

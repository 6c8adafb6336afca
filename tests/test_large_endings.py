"""Replies whose end takes the database long: megabytes that go into the search's index (P3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flaskchat.log.base import LogUnavailable
from flaskchat.log.postgres import PATIENCE
from tests.rooms import Rooms

SLOW = f"""
CREATE FUNCTION slowly() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep({PATIENCE + 0.5}); RETURN NEW; END $$
LANGUAGE plpgsql;
CREATE TRIGGER slowly BEFORE INSERT ON flaskchat_run_events FOR EACH ROW EXECUTE FUNCTION slowly();
"""


def slow_down(rooms: Rooms) -> None:
    """Let each end take longer than a tick's statement has."""
    rooms.database.write(lambda c: c.exec_driver_sql(SLOW))


@pytest.mark.backends("postgres")
def test_an_end_that_takes_longer_than_a_tick_may_is_given_the_time_with_the_next_one(
    make: Callable[[], Rooms]
) -> None:
    rooms = make()
    large, other = rooms.begin(), rooms.begin()
    rooms.append(large, "Hello")
    rooms.append(other, "a")
    slow_down(rooms)
    with pytest.raises(LogUnavailable):
        rooms.finish(large, "Hello")
    rooms.append(other, "b")
    rooms.finish(large, "Hello")
    assert (rooms.state(large), rooms.text(large)) == ("done", "Hello")
    timeout = rooms.journal._open().execute("SHOW statement_timeout").fetchone()
    assert timeout == (f"{PATIENCE:g}s",), "what comes after it must not wait so long for a server that stands still"
    rooms.append(other, "c")
    assert [entry.seq for entry in rooms.journal.read(other.run_id)] == [1, 3, 4]


@pytest.mark.backends("postgres+redis")
def test_an_end_that_takes_long_is_waited_for_beside_the_ticks(make: Callable[[], Rooms]) -> None:
    rooms = make()
    large = rooms.begin()
    rooms.append(large, "Hello")
    slow_down(rooms)
    rooms.finish(large, "Hello")
    assert (rooms.state(large), rooms.text(large)) == ("done", "Hello")

"""Replies whose end takes the database long: megabytes that go into the search's index (P3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flaskchat.log.base import LogUnavailable
from flaskchat.log.endings import PATIENCE
from tests.rooms import Rooms
from tests.test_postgres import Beside

SLOW = f"""
CREATE TABLE gate (open int);
CREATE FUNCTION slowly() RETURNS trigger AS $$ BEGIN
    PERFORM pg_sleep({PATIENCE + 0.5});
    WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.05); END LOOP;
    RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER slowly BEFORE INSERT ON flaskchat_run_events FOR EACH ROW EXECUTE FUNCTION slowly();
"""


@pytest.mark.backends("postgres", "postgres+redis")
def test_an_end_that_takes_longer_than_a_tick_may_is_waited_for_beside_the_ticks(make: Callable[[], Rooms]) -> None:
    rooms = make()
    large, other = rooms.begin(), rooms.begin()
    rooms.append(large, "Hello")
    rooms.append(other, "a")
    rooms.database.write(lambda c: c.exec_driver_sql(SLOW))
    with pytest.raises(LogUnavailable):
        rooms.finish(large, "Hello")
    ending = Beside(lambda: rooms.finish(large, "Hello", patient=True))
    rooms.append(other, "b")
    rooms.append(other, "c")
    assert rooms.state(large) == "running", "they waited for its end"
    rooms.database.write(lambda c: c.exec_driver_sql("INSERT INTO gate VALUES (1)"))
    assert ending.end() is None
    assert (rooms.state(large), rooms.text(large)) == ("done", "Hello")
    assert [entry.seq for entry in rooms.journal.read(other.run_id)] == [1, 3, 4]

"""A PostgreSQL that lacks the log's last rows, as a replica does that took over before it had them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from flaskchat.log import postgres
from flaskchat.log.base import LogUnavailable
from flaskchat.store.schema import journal
from tests.rooms import Rooms, look

pytestmark = pytest.mark.backends("postgres")


def lose(rooms: Rooms, last: int) -> None:
    """All rows after `last`, and that their numbers were taken."""
    restart = sa.text("SELECT setval(pg_get_serial_sequence('flaskchat_journal', 'id'), greatest(1, :id), :id > 0)")

    def take_over(c: sa.Connection) -> None:
        c.execute(sa.delete(journal).where(journal.c.id > last))
        c.execute(restart, {"id": last})

    rooms.database.write(take_over)


def test_mending_that_is_cut_short_is_done_again_as_a_whole(
    make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = make()
    runs = [rooms.begin() for _ in range(2)]
    for begun in runs:
        rooms.append(begun, "Hello")
    lose(rooms, 0)
    rooms.journal.close()
    insert, inserted = rooms.journal._insert_row, []

    def cut(*args: Any) -> int:
        inserted.append(args)
        if len(inserted) == 2:
            raise psycopg.OperationalError("the server has gone once more")
        return int(insert(*args))

    monkeypatch.setattr(rooms.journal, "_insert_row", cut)
    with pytest.raises(LogUnavailable):
        rooms.journal.turn(rooms.holding.lease, [], [])
    rooms.append(runs[0], "there")
    assert rooms.journal.past([begun.run_id for begun in runs]) == rooms.live


@pytest.mark.parametrize("kept", [0, 2])
def test_a_server_that_lost_more_than_is_looked_back_at_is_followed_on(
    two: tuple[Rooms, Rooms], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(postgres, "LOOK_BACK", 3)
    mine, other = two
    begun = other.begin()
    mine.journal.follow()
    for number in range(10):
        other.append(begun, str(number))
    assert len(look(mine)) == 10
    lose(other, kept)
    mine.journal.close()
    after = other.begin()
    other.append(after, "news")
    assert after.run_id in [entry.run_id for entry in look(mine)]

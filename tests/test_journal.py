"""The log in SQLite: what it appends and refuses, what a follower reads, what happens when the database is locked."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from flaskchat import sse
from flaskchat.limits import Visitor
from flaskchat.log.base import Append, Leave, LogUnavailable, Stop
from flaskchat.log.rows import CONTROL, NEWS_ROWS, PRUNE_BYTES, VERSION, _delete, encode_row
from flaskchat.models import Done
from flaskchat.store.base import Fenced, Lease
from flaskchat.store.schema import conversations, journal
from tests.rooms import OWNER, Rooms, ending_of, look

EVERYWHERE = pytest.mark.backends("sqlite", "postgres")


class Statements:
    """The driver's connection, with a count of what is asked of it and a way to fail."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.asked: list[str] = []
        self.fail: Callable[[str], bool] = lambda statement: False

    def execute(self, statement: str, *values: Any) -> Any:
        self.asked.append(" ".join(statement.split()))
        if self.fail(statement):
            raise self.error("disk I/O error")
        return self.raw.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def spy(rooms: Rooms) -> Statements:
    rooms.journal._open()
    statements = Statements(rooms.journal._raw)
    statements.error = rooms.database.module.OperationalError  # type: ignore[attr-defined]
    rooms.journal._raw = statements
    return statements


def insert(rooms: Rooms, data: bytes, *, version: int = VERSION, worker_id: str = "w_other") -> None:
    values = sa.insert(journal).values(worker_id=worker_id, version=version, data=data)
    rooms.database.write(lambda c: c.execute(values))


@EVERYWHERE
def test_what_was_appended_is_read_back_in_its_order(two: tuple[Rooms, Rooms]) -> None:
    writer, reader = two
    first, second = writer.begin(), writer.begin()
    frames = [*writer.append(first, "a"), *writer.append(first, "b", "c")]
    writer.append(second, "x")
    found = reader.journal.read(first.run_id)
    assert [entry.seq for entry in found] == [1, 3]
    assert [frame for entry in found for frame in entry.frames] == frames
    assert reader.journal.follow() == [*found, *reader.journal.read(second.run_id)]


def test_a_tick_is_one_row_and_one_statement(make: Callable[[], Rooms]) -> None:
    rooms = make()
    begun = [rooms.begin() for _ in range(5)]
    statements = spy(rooms)
    entries = [Append(one.run_id, 1, [b"frame"]) for one in begun]
    rooms.journal.turn(rooms.holding.lease, entries, [])
    assert len(statements.asked) == 1
    assert len(rooms.journal_ids()) == 1


@EVERYWHERE
def test_a_follower_gets_what_others_append_once_and_nothing_of_its_own(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    own, theirs = mine.begin(), other.begin()
    other.append(theirs, "before")
    assert [entry.run_id for entry in mine.journal.follow()] == [theirs.run_id]
    lease = mine.holding.lease
    frame = Append(own.run_id, 1, [b"frame"])
    assert mine.journal.turn(lease, [frame], []) == []
    other.append(theirs, "after")
    (found,) = mine.journal.turn(lease, [frame], [])
    assert (found.run_id, found.seq) == (theirs.run_id, 3)
    assert look(mine) == []


@EVERYWHERE
def test_a_long_log_is_read_piece_by_piece(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    theirs = other.begin()
    for _ in range(NEWS_ROWS + 7):
        other.append(theirs, "word")
    pieces = [mine.journal.follow()]
    assert mine.journal.behind
    while mine.journal.behind:
        pieces.append(mine.journal.turn(mine.holding.lease, [], []))
    assert len(pieces) == 2
    assert [entry.seq for piece in pieces for entry in piece] == [1, *range(3, NEWS_ROWS + 9)]
    assert look(mine) == []


@EVERYWHERE
def test_what_is_read_of_one_run_is_not_all_that_its_log_holds(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    before, theirs = other.begin(), other.begin()
    other.append(before, "before")
    mine.append(mine.begin(), "mine")
    run = other.begin()
    other.append(run, "word")
    other.append(theirs, "after")
    assert [entry.run_id for entry in mine.journal.read(run.run_id)] == [run.run_id]
    assert mine.journal.read("run_none") == []


def test_looking_asks_for_rows_only_when_somebody_else_has_committed(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    theirs = other.begin()
    mine.journal.follow()
    look(mine)
    statements = spy(mine)
    look(mine)
    assert statements.asked == ["PRAGMA data_version"]
    other.append(theirs, "news")
    statements.asked.clear()
    assert len(look(mine)) == 1
    assert len(statements.asked) == 2
    statements.asked.clear()
    look(mine)
    assert len(statements.asked) == 1


def test_the_data_of_own_rows_is_not_brought_back(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    own, theirs = mine.begin(), other.begin()
    mine.append(own, "mine")
    mine.journal.follow()
    mine.append(own, "more of mine")
    other.append(theirs, "theirs")
    decoded: list[bytes] = []
    mine.journal._entries = lambda rows: decoded.extend(data for _, _, data in rows) or []  # type: ignore[method-assign]
    look(mine)
    assert [data is None for data in decoded] == [True, False]


@EVERYWHERE
def test_rows_for_everybody_reach_the_worker_that_wrote_them(make: Callable[[], Rooms]) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a")
    rooms.journal.follow()
    insert(rooms, encode_row([Stop(begun.run_id, 1.5)]), worker_id=CONTROL)
    assert look(rooms) == [Stop(begun.run_id, 1.5)]


@EVERYWHERE
def test_what_another_host_has_said_ends_no_stream_that_was_opened_since(two: tuple[Rooms, Rooms]) -> None:
    """Also where it is read late, by whoever begins to follow, or once more, over another connection."""
    mine, other = two
    now, streams = time.monotonic(), {}
    for ago in (120, 30):
        streams[ago] = Visitor(OWNER)
        streams[ago].since, streams[ago].entered = now - ago, True
    other.journal.announce(Leave(OWNER, "", now - 60, "another host's"))
    found = mine.journal.follow()
    mine.journal.close()
    found += look(mine)
    assert found
    for leave in found:
        assert [ago for ago, visitor in streams.items() if visitor.meant(leave, "run_a")] == [120]


@EVERYWHERE
def test_rows_of_an_unknown_version_are_passed_over(
    two: tuple[Rooms, Rooms], caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "a")
    mine.journal.follow()
    insert(other, encode_row([Append(begun.run_id, 3, [b"in another sense"])]), version=VERSION + 1)
    insert(other, b"from the future", version=VERSION + 2)
    other.append(begun, "b")
    assert [entry.seq for entry in look(mine)] == [3]
    assert [entry.seq for entry in mine.journal.read(begun.run_id)] == [1, 3]
    assert "damaged" not in caplog.text


@EVERYWHERE
def test_a_damaged_row_is_passed_over_and_told(two: tuple[Rooms, Rooms], caplog: pytest.LogCaptureFixture) -> None:
    mine, other = two
    begun, own = other.begin(), mine.begin()
    mine.journal.follow()
    insert(other, b"\xff no message pack")
    insert(other, b"\x91\x95\xa1a\xa2\xff\xfe\x01\x90\xc2")  # an append to a run whose name is no UTF-8
    other.append(begun, "a")
    found = mine.journal.turn(mine.holding.lease, [Append(own.run_id, 1, [b"frame"])], [])
    assert [entry.run_id for entry in found] == [begun.run_id]
    assert "damaged" in caplog.text
    assert len(mine.journal.read(own.run_id)) == 1


def test_an_error_of_reading_does_not_make_the_append_fail(two: tuple[Rooms, Rooms]) -> None:
    """It would be made again, and every event would be in the log twice."""
    mine, other = two
    own, theirs = mine.begin(), other.begin()
    mine.journal.follow()
    other.append(theirs, "news")
    statements = spy(mine)
    for broken in ("PRAGMA", "SELECT id"):
        statements.fail = lambda statement, broken=broken: statement.strip().startswith(broken)  # type: ignore[misc]
        assert mine.journal.turn(mine.holding.lease, [Append(own.run_id, 1, [b"frame"])], []) == []
    statements.fail = lambda statement: False
    assert [entry.run_id for entry in look(mine)] == [theirs.run_id], "the next turn looks again"
    assert len(mine.journal.read(own.run_id)) == 2


def test_a_locked_database_refuses_soon_and_the_same_append_succeeds_later(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    own = mine.begin()
    mine.append(own, "a")
    last = sse.encode(3, Done())
    ending = ending_of(own, "a", [*mine.live[own.run_id], last])
    with other.database.connect(write=True) as connection, connection.begin():
        for endings in ([], [ending]):
            with pytest.raises(LogUnavailable):
                mine.end([Append(own.run_id, 3, [last], bool(endings))], endings)
        assert [entry.seq for entry in mine.journal.read(own.run_id)] == [1], "reading goes on"
    mine.end([Append(own.run_id, 3, [last], True)], [ending])
    assert [entry.seq for entry in mine.journal.read(own.run_id)] == [1, 3]
    assert mine.state(own) == "done"


def test_a_connection_that_failed_is_opened_anew_and_goes_on_where_it_was(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    own, theirs = mine.begin(), other.begin()
    other.append(theirs, "a")
    mine.journal.follow()
    statements = spy(mine)
    statements.fail = lambda statement: "INSERT" in statement
    with pytest.raises(LogUnavailable):
        mine.journal.turn(mine.holding.lease, [Append(own.run_id, 1, [b"frame"])], [])
    other.append(theirs, "b")
    found = mine.journal.turn(mine.holding.lease, [Append(own.run_id, 1, [b"frame"])], [])
    assert [entry.seq for entry in found] == [3]
    assert len(mine.journal.read(own.run_id)) == 1


@pytest.mark.parametrize("nth", range(6))
def test_whatever_statement_of_an_ending_fails_all_of_it_or_nothing_is_written(
    make: Callable[[], Rooms], nth: int
) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "Hello")
    last = sse.encode(3, Done())
    ending = ending_of(begun, "Hello", [*rooms.live[begun.run_id], last])
    append = Append(begun.run_id, 3, [last], True)
    statements = spy(rooms)
    statements.fail = lambda statement: len(statements.asked) == nth + 1
    with pytest.raises(LogUnavailable):
        rooms.end([append], [ending])
    assert (rooms.state(begun), rooms.text(begun)) == ("running", "")
    assert [entry.seq for entry in rooms.journal.read(begun.run_id)] == [1]
    rooms.end([append], [ending])
    assert (rooms.state(begun), rooms.text(begun)) == ("done", "Hello")
    assert [entry.seq for entry in rooms.journal.read(begun.run_id)] == [1, 3]


@EVERYWHERE
@pytest.mark.parametrize("lease", [Lease("w_unknown", 1), None], ids=["another worker", "an earlier epoch"])
def test_nothing_is_appended_under_a_lease_that_is_not_held(make: Callable[[], Rooms], lease: Lease | None) -> None:
    rooms = make()
    begun = rooms.begin()
    lease = lease or Lease(rooms.holding.lease.worker_id, 0)
    last = sse.encode(1, Done())
    for endings in ([], [ending_of(begun, "x", [last])]):
        with pytest.raises(Fenced):
            rooms.end([Append(begun.run_id, 1, [last])], endings, lease)
    assert rooms.journal_ids() == []
    assert rooms.state(begun) == "running"


@EVERYWHERE
def test_a_run_that_somebody_else_has_ended_is_not_ended_again(make: Callable[[], Rooms]) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.run(begun, "Hello")
    last = sse.encode(4, Done())
    with pytest.raises(Fenced):
        rooms.end([Append(begun.run_id, 4, [last], True)], [ending_of(begun, "twice", [last])])
    assert rooms.text(begun) == "Hello"
    assert len(rooms.journal_ids()) == 2


@EVERYWHERE
def test_the_end_of_a_run_whose_conversation_was_deleted_leaves_nothing(make: Callable[[], Rooms]) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "Hello")
    rooms.database.write(lambda c: c.execute(sa.delete(conversations)))
    rooms.finish(begun, "Hello")
    assert rooms.store.run(begun.run_id, None) is None
    assert rooms.store.frames(begun.run_id) is None


def test_a_commit_is_seen_by_a_process_that_opens_the_file_after_a_crash(make: Callable[[], Rooms]) -> None:
    """Nothing is closed in order: what `turn` has returned from is in the file."""
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "Hello")
    with sqlite3.connect(f"file:{rooms.database.path}?mode=ro", uri=True) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM flaskchat_journal").fetchall()
    connection.close()
    assert count == 1


def test_no_more_is_removed_in_one_transaction_than_a_few_megabytes(make: Callable[[], Rooms]) -> None:
    """Else the write-ahead log grows at once by all that the rows held: what is deleted is overwritten."""
    rooms = make()
    row = {"version": VERSION, "worker_id": "w_other", "data": b"x" * (PRUNE_BYTES // 2)}
    rooms.database.write(lambda c: c.execute(sa.insert(journal), [row] * 5))

    def left() -> int:
        count = sa.select(sa.func.count()).select_from(journal)
        return int(rooms.database.read(lambda c: c.execute(count).scalar_one()))

    newest = rooms.database.read(lambda c: c.execute(sa.select(sa.func.max(journal.c.id))).scalar())
    found = []
    more = True
    while more:
        more = rooms.database.write(lambda c: _delete(c, newest))
        found.append(left())
    assert found == [3, 1, 0]

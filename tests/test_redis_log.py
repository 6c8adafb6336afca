"""The log in Redis: what it appends and refuses, who may append when a run is taken over, and how a run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flaskchat import forget, sse, sweep
from flaskchat.log import redis as redis_log
from flaskchat.log import rows, streams
from flaskchat.log.base import Append, Leave, LogUnavailable, Stop, clock
from flaskchat.models import Delta, Done
from flaskchat.store.base import Fenced
from flaskchat.store.schema import workers
from tests.redis_rooms import delta, events, key, redis, watch
from tests.rooms import OWNER, Rooms, ending_of, look, rounds
from tests.server.client import deadline

pytestmark = pytest.mark.backends("sqlite+redis")

Make = Callable[[], Rooms]


# -- appending and following -------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_back_in_its_order(two: tuple[Rooms, Rooms]) -> None:
    writer, reader = two
    first, second = writer.begin(), writer.begin()
    frames = [*writer.append(first, "a"), *writer.append(first, "b", "c")]
    writer.append(second, "x")
    found = reader.journal.read(first.run_id)
    assert [entry.seq for entry in found] == [1, 3]
    assert [frame for entry in found for frame in entry.frames] == frames


def test_an_entry_has_the_id_of_its_last_event_and_a_tick_is_one_entry(make: Make) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a", "b")
    rooms.append(begun, "c", "d", "e")
    found = redis(rooms, "XRANGE", key(rooms, begun), "-", "+")
    assert [row[0] for row in found] == [b"3-0", b"6-0"]


def test_a_follower_gets_only_the_runs_that_are_watched_here_and_each_event_once(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    watched, unwatched = other.begin(), other.begin()
    other.append(watched, "before")
    other.append(unwatched, "before")
    assert mine.journal.follow() == []
    run = watch(mine, watched)
    frames = other.append(watched, "after")
    other.append(unwatched, "after")
    got: list[Any] = []
    for _ in deadline(60, "the tail to read it"):
        got += mine.journal.turn(mine.holding.lease, [], [])
        if got:
            break
    assert [(entry.run_id, entry.frames) for entry in got] == [(watched.run_id, frames)]
    for entry in got:
        mine.memory.apply(entry)
    assert run.frames == other.live[watched.run_id]
    assert look(mine) == []


def test_one_connection_reads_all_runs_that_are_followed(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    begun = [other.begin() for _ in range(50)]
    for one in begun:
        other.append(one, "before")
    mine.journal.follow()
    followed = [watch(mine, one) for one in begun]
    for word in ("one", "two"):
        for one in begun:
            other.append(one, word)
        for _ in deadline(60, "the tail to read it"):
            for entry in mine.journal.turn(mine.holding.lease, [], []):
                mine.memory.apply(entry)
            if [run.frames for run in followed] == [other.live[one.run_id] for one in begun]:
                break
        clients = redis(other, "CLIENT", "LIST").split(b"\n")
        assert sum(b" cmd=xread " in client for client in clients) == 1


def test_a_live_run_is_never_trimmed(make: Make) -> None:
    rooms = make()
    begun = rooms.begin()
    for number in range(3000):
        rooms.append(begun, str(number))
    rooms.journal.prune()
    assert redis(rooms, "XLEN", key(rooms, begun)) == 3000
    assert events(rooms, begun) == rooms.live[begun.run_id]


def test_whoever_waits_for_what_others_have_appended_gets_it_with_one_look(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "a")
    mine.journal.follow()
    watch(mine, begun)
    for number in range(20):
        frames = other.append(begun, str(number))
        assert [frame for entry in look(mine) for frame in entry.frames][-1] == frames[-1]


def test_control_reaches_everybody_once_also_who_wrote_it_and_who_follows_a_moment_later(
    two: tuple[Rooms, Rooms],
) -> None:
    mine, other = two
    stop = Stop("run_x", 1.5, clock())
    mine.journal.announce(stop)
    assert other.journal.follow() == [stop]
    mine.journal.follow()
    mine.journal.announce(stop)
    for rooms in two:
        got: list[Any] = []
        for _ in deadline(60, "control"):
            got += look(rooms)
            if got:
                break
        got += look(rooms)
        assert got == [stop]


def test_control_of_another_host_is_given_this_hosts_time(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    mine.journal.announce(Leave("user:1", "", 1e12, "another-boot"))
    (found,) = other.journal.follow()
    assert found.clock == clock()
    assert found.asked_at < 1e12


def test_entries_of_an_unknown_version_are_passed_over(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "a")
    redis(other, "XADD", key(other, begun), "3-0", "v", "99", "d", b"from the future", "more", "fields")
    assert [entry.seq for entry in mine.journal.read(begun.run_id)] == [1]


# -- an answer that was lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [False, True], ids=["the same again", "and more by then"])
def test_an_append_whose_answer_was_lost_is_repeated_and_stands_once(make: Make, more: bool) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a")
    entry = delta(rooms, begun, "b")
    rooms.journal.turn(rooms.holding.lease, [entry], [])  # stands, and nobody was told
    if more:
        entry = Append(begun.run_id, entry.seq, [*entry.frames, sse.encode(entry.seq + 1, Delta("c"))])
    rooms.journal.turn(rooms.holding.lease, [entry], [])
    assert events(rooms, begun) == [*rooms.live[begun.run_id], *entry.frames]


@pytest.mark.parametrize("how", ["at an append", "over a new connection"])
def test_what_redis_lost_of_many_runs_is_written_again_in_a_few_requests(
    make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rooms = make()
    log, lease = rooms.journal, rooms.holding.lease
    runs = [rooms.begin() for _ in range(20)]
    for begun in runs:
        rooms.append(begun, "Hello")
    log.turn(lease, [], [])
    redis(rooms, "FLUSHALL")
    entries = [delta(rooms, begun, "more") for begun in runs] if how == "at an append" else []
    if not entries:
        log._link.close()
        log._open()
    asked: list[Any] = []
    ask, holds = log._link.ask, log._holds
    monkeypatch.setattr(log._link, "ask", lambda *commands, **how: asked.append("Redis") or ask(*commands, **how))
    monkeypatch.setattr(log, "_holds", lambda lease: asked.append("store") or holds(lease))
    log.turn(lease, entries, [])
    assert asked == ["Redis", "Redis", "store", "Redis"]  # the first is the append, or finds a cluster's right node
    for begun in runs:
        more = [entry.frames[0] for entry in entries if entry.run_id == begun.run_id]
        assert events(rooms, begun) == [*rooms.live[begun.run_id], *more]
        assert redis(rooms, "TTL", key(rooms, begun)) > streams.ENDED_SECONDS


def test_so_much_that_was_lost_is_written_again_in_several_requests(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = make()
    log = rooms.journal
    runs = [rooms.begin() for _ in range(6)]
    for begun in runs:
        rooms.append(begun, "x" * 1000)
    redis(rooms, "FLUSHALL")
    monkeypatch.setattr(redis_log, "AT_ONCE", 1500)
    asked: list[int] = []
    ask = log._link.ask
    monkeypatch.setattr(log._link, "ask", lambda *commands, **how: asked.append(len(commands)) or ask(*commands, **how))
    log._mended = 0
    log.turn(rooms.holding.lease, [], [])
    assert asked == [1, 6, 4, 4, 4]
    for begun in runs:
        assert events(rooms, begun) == rooms.live[begun.run_id]


def test_nothing_of_a_deleted_conversation_comes_back_into_redis(two: tuple[Rooms, Rooms]) -> None:
    """Its worker finds the stream gone, as it would where Redis had lost it, and has all of its text."""
    writer, other = two
    begun, lost = writer.begin(), writer.begin()
    for one in (begun, lost):
        writer.append(one, "a")
    forget.conversation(other.database, other.journal, begun.conversation_id, OWNER, [begun.run_id])
    redis(other, "DEL", key(other, lost))
    for one in (begun, lost):
        writer.append(one, "b")
    assert redis(writer, "EXISTS", key(writer, begun)) == 0
    assert events(writer, lost) == writer.live[lost.run_id]


def test_the_end_of_an_orphan_does_not_come_back_either(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "a")
    past = other.journal.past([begun.run_id])
    orphans = other.database.read(lambda c: sweep.orphaned(c, past))
    redis(other, "DEL", key(other, begun))  # as a delete does that comes between the store's end and the stream's
    assert other.journal.end(orphans) == [begun.run_id]
    assert redis(other, "EXISTS", key(other, begun)) == 0


# -- takeovers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the reading", "after the reading", "after the end"])
def test_what_a_stale_owner_appends_is_in_the_runs_end_or_refused(two: tuple[Rooms, Rooms], when: str) -> None:
    stale, other = two
    begun = stale.begin()
    stale.append(begun, "Hel")
    lease, late = stale.holding.lease, delta(stale, begun, "lo")
    past = other.journal.past

    def reading(run_ids: Any) -> Any:
        if when == "before the reading":
            stale.journal.turn(lease, [late], [])
        found = past(run_ids)
        if when == "after the reading":
            with pytest.raises(Fenced):
                stale.journal.turn(lease, [late], [])
        return found

    other.journal.past = reading
    watched = watch(other, begun)
    other.journal.follow()
    rounds(other, 6)
    if when == "after the end":
        with pytest.raises(Fenced):
            stale.journal.turn(lease, [late], [])
    assert other.state(begun) == "interrupted"
    assert other.text(begun) == ("Hello" if when == "before the reading" else "Hel")
    for _ in deadline(60, "the end to come over Redis"):
        for entry in look(other):
            other.memory.apply(entry)
        if watched.ended:
            break
    assert watched.joined == other.store.frames(begun.run_id)


def test_two_that_take_a_run_over_at_once_read_the_same_and_one_of_them_ends_it(make: Make) -> None:
    lost, one, two = make(), make(), make()
    begun = lost.begin()
    lost.append(begun, "Hello")
    first, second = one.journal.past([begun.run_id]), two.journal.past([begun.run_id])
    assert first == second == {begun.run_id: lost.live[begun.run_id]}


def test_the_terminal_event_follows_a_seal_and_is_read_by_whoever_had_read_the_seal(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "Hello")
    other.journal.follow()
    run = watch(other, begun)
    other.journal.past([begun.run_id])
    assert look(other) == []
    rounds(other, 6)
    for _ in deadline(60, "the end"):
        for entry in look(other):
            other.memory.apply(entry)
        if run.ended:
            break
    assert run.joined == other.store.frames(begun.run_id)


def test_a_run_of_the_databases_own_log_keeps_its_text_when_redis_is_chosen_and_its_rows_go(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "KEEP", 0.0)
    before = Rooms(tmp_path / "chat.sqlite3")
    begun = before.begin()
    before.append(begun, "Hello")
    before.close()
    after = make()
    rounds(after, 6)
    assert (after.state(begun), after.text(begun)) == ("interrupted", "Hello")
    rounds(after, 3)
    assert after.journal_ids() == []


# -- endings -----------------------------------------------------------------------------------------------------------


def test_a_run_that_the_store_refuses_to_end_is_not_ended_in_redis_either(two: tuple[Rooms, Rooms]) -> None:
    rooms, other = two
    begun = rooms.begin()
    rooms.append(begun, "Hello")
    last = sse.encode(3, Done())
    ending = ending_of(begun, "Hello", [*rooms.live[begun.run_id], last])
    append = Append(begun.run_id, 3, [last], True)
    with other.database.connect(write=True) as connection, connection.begin():
        with pytest.raises(LogUnavailable) as refused:
            rooms.end([append], [ending])
        assert not refused.value.finished
    assert events(rooms, begun) == rooms.live[begun.run_id]
    rooms.end([append], [ending])
    assert (rooms.state(begun), rooms.text(begun)) == ("done", "Hello")
    assert events(rooms, begun)[-1] == last
    assert 0 < redis(rooms, "TTL", key(rooms, begun)) <= streams.ENDED_SECONDS


def test_an_end_whose_commit_was_not_answered_is_written_once_and_fences_nobody(make: Make) -> None:
    rooms = make()
    begun, other = rooms.begin(), rooms.begin()
    for run in (begun, other):
        rooms.append(run, "Hello")
    last = sse.encode(3, Done())
    ending = ending_of(begun, "Hello", [*rooms.live[begun.run_id], last])
    for _ in range(2):
        rooms.end([Append(begun.run_id, 3, [last], True)], [ending])
    assert (rooms.state(begun), rooms.text(begun)) == ("done", "Hello")
    assert events(rooms, begun)[-1] == last


def test_a_stale_owner_ends_nothing(two: tuple[Rooms, Rooms]) -> None:
    stale, other = two
    begun = stale.begin()
    stale.append(begun, "Hello")
    last = sse.encode(3, Done())
    ending = ending_of(begun, "Hello", [*stale.live[begun.run_id], last])
    other.database.write(lambda c: c.execute(sa.delete(workers)))
    with pytest.raises(Fenced):
        stale.end([Append(begun.run_id, 3, [last], True)], [ending])
    assert stale.state(begun) == "running"


def test_a_run_of_others_that_nobody_watches_any_more_is_let_go_of(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "a")
    run = watch(mine, begun)
    for _ in range(3):
        mine.journal.prune()
    assert mine.memory.get(begun.run_id) is run
    for bell in tuple(run.bells):
        mine.memory.unwatch(run, bell)
    for _ in range(2):
        mine.journal.prune()
    assert mine.memory.get(begun.run_id) is None
    assert run.closed

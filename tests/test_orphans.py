"""Runs whose worker is gone: each ends once, with its text, and soon, however many there are (P1, P3)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from flaskchat import forget, sse, sweep
from flaskchat.errors import Unavailable
from flaskchat.log import rows
from flaskchat.log.base import Append
from flaskchat.models import Delta
from flaskchat.store.schema import conversations, journal
from tests.rooms import OWNER, Rooms, rounds
from tests.server.client import deadline, seqs, text
from tests.test_sweep import count_out

pytestmark = pytest.mark.backends("sqlite", "postgres")


def test_an_orphan_keeps_its_text_and_gets_one_terminal_event(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "Hel")
    lost.append(begun, "lo ", "ü€😀")
    count_out(other)
    assert lost.text(begun) == "Hello ü€😀"
    frames = other.frames(begun)
    assert seqs(frames) == [1, 2, 3, 4, 5]
    assert [frame.event for frame in frames] == ["start", "delta", "delta", "delta", "interrupted"]
    assert text(frames) == "Hello ü€😀"


def test_an_orphan_without_events_gets_its_start_and_its_end(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    count_out(other)
    frames = other.frames(begun)
    assert seqs(frames) == [1, 2]
    assert [frame.event for frame in frames] == ["start", "interrupted"]
    assert begun.run_id.encode() in frames[0].data
    assert (lost.state(begun), lost.text(begun)) == ("interrupted", "")


def test_an_orphan_keeps_what_came_before_a_damaged_row(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    damaged, sound = lost.begin(), lost.begin()
    lost.append(damaged, "Hel")
    lost.append(damaged, "lo ")
    lost.append(damaged, "you")
    lost.append(sound, "fine")
    second = sa.update(journal).where(journal.c.id == lost.journal_ids()[1]).values(data=b"\xff no message pack")
    lost.database.write(lambda c: c.execute(second))
    count_out(other)
    frames = other.frames(damaged)
    assert seqs(frames) == [1, 2, 3]
    assert [frame.event for frame in frames] == ["start", "delta", "interrupted"]
    assert lost.text(damaged) == "Hel"
    assert (lost.state(sound), lost.text(sound)) == ("interrupted", "fine")


def test_followers_read_the_end_of_an_orphan_in_the_log(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "Hello")
    follower = other.journal
    follower.follow()
    count_out(other)
    (end,) = follower.turn(None, [], [])
    assert isinstance(end, Append)
    assert (end.run_id, end.seq, end.ended) == (begun.run_id, 3, True)
    assert sse.Decoder().feed(end.frames[0])[0].event == "interrupted"


def test_two_sweeps_at_once_end_an_orphan_once(make: Callable[[], Rooms]) -> None:
    lost, *others = make(), make(), make(), make()
    begun = [lost.begin() for _ in range(5)]
    for one in begun:
        lost.append(one, "Hello")
    for other in others:
        rounds(other, sweep.GONE_AFTER)
    failures: list[Exception] = []

    def last_round(other: Rooms) -> None:
        try:
            rounds(other, 2)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=last_round, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ends = [entry for entry in lost.journal.follow() if isinstance(entry, Append) and entry.ended]
    assert sorted(end.run_id for end in ends) == sorted(one.run_id for one in begun)
    for one in begun:
        assert [frame.event for frame in lost.frames(one)].count("interrupted") == 1
        assert lost.text(one) == "Hello"


def test_the_log_is_read_once_for_all_orphans(two: tuple[Rooms, Rooms], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read for each of a killed worker's hundreds of runs, it would take longer than the 15 seconds."""
    lost, other = two
    begun = [lost.begin() for _ in range(20)]
    for one in begun:
        lost.append(one)
    for tick in range(50):
        entries = []
        for one in begun:
            known = lost.live[one.run_id]
            frame = sse.encode(len(known) + 1, Delta(f"t{tick} "))
            entries.append(Append(one.run_id, len(known) + 1, [frame]))
            known.append(frame)
        lost.journal.turn(lost.holding.lease, entries, [])
    decoded: list[int] = []
    decode = rows.decode_row
    monkeypatch.setattr(rows, "decode_row", lambda version, data: decoded.append(1) or decode(version, data))
    count_out(other)
    assert len(decoded) == 20 + 50
    for one in begun:
        assert lost.state(one) == "interrupted"
        assert lost.text(one) == "".join(f"t{tick} " for tick in range(50))


def test_orphans_are_ended_many_at_a_time_and_the_rest_with_the_next_round(
    two: tuple[Rooms, Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction waits for its turn among all that the living ask for; and who ends runs for long does not renew
    its own lease meanwhile.
    """
    lost, other = two
    begun = [lost.begin() for _ in range(2 * sweep.TOGETHER + 5)]
    together: list[int] = []
    end = other.journal.end
    monkeypatch.setattr(other.journal, "end", lambda orphans: together.append(len(orphans)) or end(orphans))
    rounds(other, sweep.GONE_AFTER)
    monkeypatch.setattr(sweep, "ROUND", 0.0)
    other.sweeper.round()
    assert together == [sweep.TOGETHER]
    monkeypatch.setattr(sweep, "ROUND", 60.0)
    other.sweeper.round()
    assert together == [sweep.TOGETHER, sweep.TOGETHER, 5]
    assert {lost.state(one) for one in begun} == {"interrupted"}


def test_orphans_that_another_has_ended_meanwhile_do_not_keep_the_others_from_their_end(
    make: Callable[[], Rooms]
) -> None:
    lost, first, second = make(), make(), make()
    begun = [lost.begin() for _ in range(3)]
    for one in begun:
        lost.append(one, "Hello")
    past = second.journal.past([one.run_id for one in begun])
    orphans = second.database.read(lambda c: sweep.orphaned(c, past))
    taken = orphans[1].ending.run_id
    assert first.journal.end(orphans[1:2]) == [taken]
    assert set(second.journal.end(orphans)) == {one.run_id for one in begun} - {taken}
    for one in begun:
        assert (lost.state(one), lost.text(one)) == ("interrupted", "Hello")
        assert [entry.seq for entry in first.journal.read(one.run_id) if entry.ended] == [3]


@pytest.mark.backends("sqlite", "postgres", "postgres+redis")
def test_what_is_deleted_while_two_end_it_gets_no_second_end(make: Callable[[], Rooms]) -> None:
    """It would bring a part of what was deleted back into the log, and count one lost reply as two."""
    lost, first, second = make(), make(), make()
    gone, stays = lost.begin(), lost.begin()
    for one in (gone, stays):
        lost.append(one, "Hello")
    past = second.journal.past([gone.run_id, stays.run_id])
    orphans = second.database.read(lambda c: sweep.orphaned(c, past))
    both = {orphan.ending.run_id: orphan for orphan in orphans}
    assert first.journal.end([both[gone.run_id]]) == [gone.run_id]
    assert forget.conversation(first.database, first.journal, gone.conversation_id, OWNER) == []
    assert second.journal.end(orphans) == [stays.run_id]
    assert second.journal.read(gone.run_id) == []
    assert [entry.seq for entry in second.journal.read(stays.run_id) if entry.ended] == [3]


def test_an_orphan_whose_conversation_somebody_else_holds_is_ended_with_a_later_round(
    make: Callable[[], Rooms]
) -> None:
    """The refusal is the driver's own error, and neither a fault of the sweep nor of the connection's next user."""
    lost, other, beside = make(), make(), make()
    held, free = lost.begin(), lost.begin()
    for one in (held, free):
        lost.append(one, "Hello")
    rounds(other, sweep.GONE_AFTER)
    touch = sa.update(conversations).where(conversations.c.id == held.conversation_id).values(title="held")
    with beside.database.connect(write=True) as connection, connection.begin():
        past = other.journal.past([held.run_id])
        orphans = other.database.read(lambda c: sweep.orphaned(c, past))
        connection.execute(touch)
        with pytest.raises(Unavailable):
            other.journal.end(orphans)
    rounds(other, 2)
    assert [lost.state(one) for one in (held, free)] == ["interrupted", "interrupted"]


@pytest.mark.backends("postgres")
def test_one_orphan_that_cannot_be_ended_keeps_no_other_from_its_end(make: Callable[[], Rooms]) -> None:
    lost, other, beside = make(), make(), make()
    held, *free = (lost.begin() for _ in range(4))
    for one in (held, *free):
        lost.append(one, "Hello")
    touch = sa.update(conversations).where(conversations.c.id == held.conversation_id).values(title="held")
    rounds(other, sweep.GONE_AFTER)
    with beside.database.connect(write=True) as connection, connection.begin():
        connection.execute(touch)
        for _ in deadline(60, "the others' end"):
            other.sweeper.round()
            if [lost.state(one) for one in free] == ["interrupted"] * 3:
                break
        assert lost.state(held) == "running"

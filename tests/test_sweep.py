"""The sweep: leases counted out, the journal kept short; and fencing of who was counted out (P1-P3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from flaskchat import sweep
from flaskchat.errors import Unavailable
from flaskchat.log import rows
from flaskchat.store.base import Fenced
from flaskchat.store.schema import workers
from tests.rooms import Rooms, rounds
from tests.server.client import deadline

pytestmark = pytest.mark.backends("sqlite", "postgres")


def count_out(rooms: Rooms) -> None:
    """So many rounds that a lease which stands still is gone, and no more."""
    rounds(rooms, 1 + sweep.GONE_AFTER)


def test_a_lease_that_stands_still_is_gone_after_counting_and_not_a_round_before(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "Hel", "lo")
    rounds(other, sweep.GONE_AFTER)
    assert lost.state(begun) == "running"
    assert other.leases() == [lost.holding.lease.worker_id]
    other.sweeper.round()
    assert lost.state(begun) == "interrupted"
    assert other.leases() == []


def test_a_lease_that_counts_is_never_taken_over(two: tuple[Rooms, Rooms]) -> None:
    busy, other = two
    begun = busy.begin()
    for _ in range(3 * sweep.GONE_AFTER):
        busy.sweeper.round()
        other.sweeper.round()
    assert busy.state(begun) == "running"
    assert busy.fenced == []


def test_one_count_in_time_starts_the_counting_anew(two: tuple[Rooms, Rooms]) -> None:
    busy, other = two
    begun = busy.begin()
    rounds(other, sweep.GONE_AFTER)
    busy.sweeper.round()
    rounds(other, sweep.GONE_AFTER)
    assert other.state(begun) == "running"


def test_the_promised_15_seconds_hold_the_counting_and_a_late_first_look() -> None:
    assert sweep.ROUND * (sweep.GONE_AFTER + 1) <= 12


@pytest.mark.backends("sqlite")
def test_a_round_that_cannot_write_counts_nobody_out(two: tuple[Rooms, Rooms]) -> None:
    busy, other = two
    begun = busy.begin()
    other.database.timeout = 0.05
    with busy.database.connect(write=True) as connection, connection.begin():
        for _ in range(2 * sweep.GONE_AFTER):
            with pytest.raises(Unavailable):
                other.sweeper.round()
    other.sweeper.round()
    assert busy.state(begun) == "running"


def test_a_worker_that_was_counted_out_can_append_nothing_more(two: tuple[Rooms, Rooms]) -> None:
    stopped, other = two
    begun = stopped.begin()
    stopped.append(begun, "Hello")
    old = stopped.holding.lease
    count_out(other)
    before = other.journal_ids()
    with pytest.raises(Fenced):
        stopped.append(begun, " late")
    with pytest.raises(Fenced):
        stopped.finish(begun, "Hello late")
    assert other.journal_ids() == before
    assert other.text(begun) == "Hello"
    assert stopped.holding.renew(old)
    assert not stopped.holding.renew(old), "a lease is renewed once, however often the loss is noticed"
    again = stopped.begin()
    assert stopped.holding.lease.epoch == old.epoch + 1
    stopped.append(again, "new")
    rounds(other, 1)
    assert other.state(again) == "running"


def test_counting_up_does_not_wait_for_what_a_round_has_to_do_besides(
    make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take longer to sync than it takes the others to count a lease out."""
    rooms = make()
    rooms.begin()
    monkeypatch.setattr(sweep, "ROUND", 0.05)
    stuck, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(rooms.database, "checkpoint", lambda: (stuck.set(), go_on.wait(30)))

    def beats() -> int:
        return int(rooms.rows(sa.select(workers.c.beats))[0][0])

    rooms.sweeper.start()
    try:
        assert stuck.wait(20)
        before = beats()
        for _ in deadline(60, "the lease to be counted up"):
            if beats() >= before + 3:
                break
    finally:
        go_on.set()
        rooms.sweeper.close()


def test_the_sweep_notices_a_lost_lease(two: tuple[Rooms, Rooms]) -> None:
    stopped, other = two
    stopped.begin()
    count_out(other)
    stopped.sweeper.round()
    assert stopped.fenced == [stopped.holding.lease]


def test_a_lease_is_given_back_when_the_worker_is_idle(two: tuple[Rooms, Rooms]) -> None:
    worker, other = two
    worker.run(worker.begin(), "Hello")
    assert worker.leases() == [worker.holding.lease.worker_id]
    worker.sweeper.round()
    assert worker.leases() == []
    assert not worker.holding.registered
    begun = worker.begin()
    worker.append(begun, "again under the same lease")
    assert other.state(begun) == "running"


def test_short_runs_at_the_wrong_moments_do_not_make_a_worker_look_gone(two: tuple[Rooms, Rooms]) -> None:
    """Whenever the worker's own round comes it is idle, and whenever the other one looks it has a lease."""
    worker, other = two
    for _ in range(3 * sweep.GONE_AFTER):
        begun = worker.begin()
        worker.append(begun, "Hello")
        other.sweeper.round()
        assert worker.state(begun) == "running"
        worker.finish(begun, "Hello")
        worker.sweeper.round()


def test_a_refused_command_leaves_no_lease_behind_that_is_missed_later(
    make: Callable[[], Rooms], caplog: pytest.LogCaptureFixture
) -> None:
    worker = make()
    with pytest.raises(Exception, match="no such conversation"):
        worker.begin(conversation_id="c_unknown")
    begun = worker.begin()  # raises Fenced where the refusal is taken for a lease that somebody took over
    worker.append(begun, "Hello")
    worker.sweeper.round()
    assert worker.fenced == []


# -- the journal is kept short ---------------------------------------------------------------------------------------


@pytest.fixture
def no_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEEP", 0.0)


def prune(rooms: Rooms) -> None:
    """A round that sets a mark, and one that finds it old enough."""
    rooms.sweeper.round()
    time.sleep(0.001)
    rooms.sweeper.round()


@pytest.mark.usefixtures("no_keep")
def test_rows_of_runs_that_have_ended_leave_the_journal(two: tuple[Rooms, Rooms]) -> None:
    worker, other = two
    worker.run(worker.begin(), "Hel", "lo")
    assert len(worker.journal_ids()) == 2
    prune(other)
    assert worker.journal_ids() == []


def test_rows_stay_for_followers_that_were_held_up(two: tuple[Rooms, Rooms]) -> None:
    worker, other = two
    worker.run(worker.begin(), "Hello")
    prune(other)
    assert len(worker.journal_ids()) == 2


@pytest.mark.usefixtures("no_keep")
def test_no_row_of_a_running_run_is_pruned(two: tuple[Rooms, Rooms]) -> None:
    worker, other = two
    worker.run(worker.begin(), "before")
    long = worker.begin()
    worker.append(long, "Hel")
    worker.run(worker.begin(), "meanwhile")
    worker.append(long, "lo")
    prune(other)
    kept = other.journal.read(long.run_id)
    assert [entry.seq for entry in kept] == [1, 3]
    assert len(worker.journal_ids()) == 4, "what was before the running run is gone, what came after its start is not"
    worker.finish(long, "Hello")
    prune(other)
    assert worker.journal_ids() == []


@pytest.mark.usefixtures("no_keep")
def test_ids_go_on_growing_after_the_journal_was_emptied(two: tuple[Rooms, Rooms]) -> None:
    worker, other = two
    worker.run(worker.begin(), "Hello")
    last = worker.journal_ids()[-1]
    prune(other)
    begun = worker.begin()
    worker.append(begun, "again")
    assert worker.journal_ids() == [last + 1]
    prune(other)
    assert worker.journal_ids() == [last + 1]


@pytest.mark.backends("sqlite")
def test_the_journal_does_not_grow_for_ever_under_a_stream_of_short_runs(
    make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "KEEP", 0.05)
    worker = make()
    most = 0
    for number in range(60):
        worker.run(worker.begin(), "Hello")
        if number % 3 == 0:
            worker.sweeper.round()
        most = max(most, len(worker.journal_ids()))
        if number == 30:
            first_half = most
    assert most <= first_half + 20, "it still grows"
    assert worker.journal_ids()[0] > 20


@pytest.mark.usefixtures("no_keep")
def test_an_idle_worker_prunes_what_another_left(two: tuple[Rooms, Rooms]) -> None:
    gone, other = two
    gone.run(gone.begin(), "Hello")
    gone.sweeper.round()
    assert not other.holding.registered
    prune(other)
    assert other.journal_ids() == []


def test_only_leases_of_living_workers_are_left(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    lost.begin()
    other.begin()
    count_out(other)
    assert [row.id for row in other.rows(sa.select(workers.c.id))] == [other.holding.lease.worker_id]


def test_a_lease_whose_taking_back_failed_is_not_counted_out_under_the_next_run(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    mine.run(mine.begin(), "Hello")

    def fail(c: sa.Connection) -> None:
        mine.holding.release(c)
        raise Unavailable("The connection broke.", code="store_unavailable")

    with pytest.raises(Unavailable):
        mine.database.write(fail)
    rounds(other, sweep.GONE_AFTER)
    begun = mine.begin("And?")
    other.sweeper.round()
    assert mine.state(begun) == "running"

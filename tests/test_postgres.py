"""PostgreSQL as store and log: what SQLite's one writer gave for free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from flaskchat import forget, sweep
from flaskchat.errors import Unavailable
from flaskchat.log.base import Append, Stop
from flaskchat.log.rows import VERSION, _forget, decode_row, encode_row
from flaskchat.models import Done
from flaskchat.sse import encode
from flaskchat.store.base import Begun, Command
from flaskchat.store.kinds import open_database
from flaskchat.store.schema import conversations, journal, runs
from tests.backends import Backend
from tests.conftest import Server
from tests.rooms import OWNER, Rooms, count, ending_of, look
from tests.server.client import deadline

pytestmark = pytest.mark.backends("postgres")


def run_of(entries: list[Any]) -> list[str]:
    return [entry.run_id for entry in entries]


class Beside:
    """A call in a thread, which is expected to wait."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.found: Any = None
        self._function = function
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.found = self._function()
        except Exception as error:
            self.found = error

    def end(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.found


def until_locked(rooms: Rooms) -> None:
    """Wait until somebody waits for a lock in this database."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    for _ in deadline(30, "somebody to wait for a lock"):
        if rooms.rows(waiting)[0][0]:
            return


# -- the journal's order ---------------------------------------------------------------------------------------------


def insert(c: sa.Connection, name: str) -> None:
    data = encode_row([Append(name, 1, [b"frame"])])
    c.execute(sa.insert(journal).values(worker_id="w_other", version=VERSION, data=data))


@pytest.mark.parametrize("before", [True, False], ids=["to whoever follows", "to whoever begins to follow meanwhile"])
def test_a_row_that_is_committed_after_a_later_one_is_not_lost(two: tuple[Rooms, Rooms], before: bool) -> None:
    mine, other = two
    if before:
        mine.journal.follow()
    with other.database.connect(write=True) as slow, slow.begin() as transaction:
        insert(slow, "run_slow")
        other.database.write(lambda c: insert(c, "run_fast"))
        assert run_of(look(mine) if before else mine.journal.follow()) == ["run_fast"]
        assert look(mine) == []
        transaction.commit()
    assert run_of(look(mine)) == ["run_slow"]
    assert look(mine) == []
    assert mine.journal._holes.keys().isdisjoint(mine.journal_ids()), "what was seen is asked for no more"


def test_a_number_that_was_rolled_back_is_looked_for_no_longer_than_a_transaction_takes(
    two: tuple[Rooms, Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    monkeypatch.setattr("flaskchat.log.postgres.HOLES_FOR", 0.05)
    mine.journal.follow()
    with other.database.connect(write=True) as connection, connection.begin() as transaction:
        insert(connection, "run_never")
        transaction.rollback()
    other.database.write(lambda c: insert(c, "run_after"))
    assert run_of(look(mine)) == ["run_after"]
    assert len(mine.journal._holes) == 1
    for _ in deadline(30, "the hole to be given up"):
        look(mine)
        if not mine.journal._holes:
            break


def test_a_server_that_has_lost_its_newest_rows_is_followed_on_and_given_them_again(
    make: Callable[[], Rooms], two: tuple[Rooms, Rooms]
) -> None:
    mine, other = two
    begun, quiet = other.begin(), other.begin()
    other.append(begun, "a")
    mine.journal.follow()
    for word in ("b", "c", "d"):
        other.append(begun, word)
    other.append(quiet, "nothing more")
    assert run_of(look(mine)) == [begun.run_id] * 3 + [quiet.run_id]
    first, *lost = mine.journal_ids()

    def take_over(c: sa.Connection) -> None:  # as a replica that had no more
        c.execute(sa.delete(journal).where(journal.c.id.in_(lost)))
        c.execute(sa.text("SELECT setval(pg_get_serial_sequence('flaskchat_journal', 'id'), :id)"), {"id": first})

    other.database.write(take_over)
    for rooms in two:
        rooms.journal.close()  # its server has gone
    other.append(begun, "e")
    assert mine.journal_ids() == [first, *lost[:3]]
    assert look(mine)[-1].seq == 6
    late = make()
    for one in (begun, quiet):
        run = late.memory.loading(one.run_id)
        late.memory.loaded(run, late.journal.read(one.run_id))
        assert run.frames == other.live[one.run_id]
    assert late.journal.past([begun.run_id]) == {begun.run_id: other.live[begun.run_id]}
    other.journal.close()
    other.journal.turn(other.holding.lease, [], [])
    assert mine.journal_ids() == [first, *lost[:3]], "once"


def test_a_listener_is_told_of_what_others_append_and_not_of_its_own(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    rung: list[int] = []
    own, theirs = mine.begin(), other.begin()
    mine.append(own, "a")
    mine.journal.start()
    try:
        for _ in deadline(30, "somebody to listen"):
            if mine.journal.tells:
                break
        mine.journal.follow()
        mine.journal.on_news = lambda: rung.append(1)
        mine.append(own, "b")
        other.append(theirs, "news")
        for _ in deadline(30, "news"):
            if rung:
                break
        assert run_of(mine.journal.turn(mine.holding.lease, [], [])) == [theirs.run_id]
        other.journal.announce(Stop(theirs.run_id, 1.0))
        for _ in deadline(30, "control"):
            if mine.journal._told:
                break
        listening = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        ((first,),) = other.rows(sa.text(f"SELECT pid {listening}"))
        other.rows(sa.text(f"SELECT pg_terminate_backend(pid) {listening}"))
        for _ in deadline(30, "somebody else to listen"):  # who may be there before it was seen that nobody was
            pids = [pid for (pid,) in other.rows(sa.text(f"SELECT pid {listening}"))]
            if mine.journal.tells and pids and first not in pids:
                break
        rung.clear()
        other.append(theirs, "more news")
        for _ in deadline(30, "news again"):
            if rung:
                break
    finally:
        mine.journal.stop()


def test_others_are_told_once_a_tick_and_nothing_but_that_there_is_something(
    serve: Callable[..., Server], backend: Backend
) -> None:
    server = serve(workers=1)
    assert backend.postgres is not None
    url = backend.postgres.url(backend.database).replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as listening:
        listening.execute("LISTEN flaskchat")
        asking = [Beside(lambda: server.client().send("50 25").rest()) for _ in range(20)]
        replies = [one.end() for one in asking]
        assert [frames[-1].event for frames in replies] == ["done"] * 20
        (rows,) = listening.execute("SELECT last_value FROM flaskchat_journal_id_seq").fetchone() or (0,)
        told = list(listening.notifies(timeout=0))
    assert {one.payload for one in told} == {""}
    assert 0 < len(told) <= rows
    assert rows < 20 * 50, "a tick is one row, whatever it brought"


def test_two_deletions_at_once_take_their_runs_out_of_the_same_row(two: tuple[Rooms, Rooms]) -> None:
    """None puts back what the other has taken out."""
    mine, other = two
    first, second, kept = mine.begin(), mine.begin(), mine.begin()
    entries = [
        Append(begun.run_id, 1, [f"id: 1\ndata: {begun.run_id}\n\n".encode()]) for begun in (first, second, kept)
    ]
    mine.journal.turn(mine.holding.lease, entries, [])
    taken, go_on = threading.Event(), threading.Event()

    def forget_slowly(c: sa.Connection) -> None:
        _forget(c, {first.run_id.encode(): first.run_id}, 0)
        taken.set()
        go_on.wait(20)

    slow = Beside(lambda: mine.database.write(forget_slowly))
    assert taken.wait(20)
    quick = Beside(lambda: other.journal.forget([second.run_id], 0))
    until_locked(mine)
    go_on.set()
    assert (slow.end(), quick.end()) == (None, None)
    ((version, data),) = mine.rows(sa.select(journal.c.version, journal.c.data))
    assert run_of(decode_row(version, data)) == [kept.run_id]


# -- leases ----------------------------------------------------------------------------------------------------------


class Rings:
    """A connection on which somebody tells of something new while a query runs."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def cursor(self, binary: bool) -> Rings:
        return self

    def execute(self, *query: object) -> Rings:
        self._ring()
        return self

    def fetchall(self) -> list[Any]:
        return []


def test_what_is_told_of_during_a_look_is_looked_for_once_more(make: Callable[[], Rooms]) -> None:
    log = make().journal
    log._news(Rings(log._ring))
    assert log._told


def test_a_takeover_waits_for_a_run_that_is_just_being_begun_and_ends_it(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    lost.begin()
    for _ in range(sweep.GONE_AFTER):
        other.sweeper.round()
    with lost.database.connect(write=True) as c, c.begin() as transaction:
        lost.holding.ensure(c)
        takeover = Beside(other.sweeper.round)
        until_locked(other)
        c.execute(sa.update(runs).values(model="late"))
        transaction.commit()
    assert takeover.end() is None
    assert {row.state for row in other.rows(sa.select(runs.c.state))} == {"interrupted"}


def test_a_lease_is_not_taken_back_under_a_run_that_is_just_being_begun(make: Callable[[], Rooms]) -> None:
    rooms = make()
    rooms.run(rooms.begin(), "Hello")
    begun: list[Any] = []
    holding = rooms.holding
    ensure = holding.ensure

    def slowly(c: sa.Connection) -> Any:
        lease = ensure(c)
        begun.append(lease)
        until_locked(rooms)
        return lease

    holding.ensure = slowly  # type: ignore[method-assign]
    beginning = Beside(lambda: rooms.begin("And?"))
    for _ in deadline(30, "the run to be under way"):
        if begun:
            break
    rooms.database.write(holding.release)
    assert beginning.end().created
    assert rooms.leases() == [holding.lease.worker_id]
    assert holding.registered


# -- owners and locks ------------------------------------------------------------------------------------------------


def test_what_one_owner_does_comes_one_after_the_other_and_holds_nobody_else_up(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    mine.begin()
    with other.database.connect(write=True) as c, c.begin() as transaction:
        other.database.alone(c, OWNER)
        with pytest.raises(Unavailable) as caught:
            mine.begin()
        assert caught.value.problem_code == "store_unavailable"
        command = Command(action="send", client_id="x", body_hash="h", text="Hi")
        assert mine.store.begin("user:2", command, mine.holding, lambda before: "parrot").created
        waiting = Beside(mine.begin)
        until_locked(other)
        transaction.commit()
    assert waiting.end().created


def test_runs_that_end_while_their_conversations_are_deleted_fail_neither(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    failures: list[object] = []
    for _ in range(6):
        begun = [mine.begin() for _ in range(4)]
        for one in begun:
            mine.append(one, "Hello")

        def delete(begun: list[Any] = begun) -> None:
            for one in begun:
                forget.conversation(other.database, other.journal, one.conversation_id, OWNER, [one.run_id])

        deleting = Beside(delete)
        entries, endings = [], []
        for one in begun:
            last = encode(3, Done())
            entries.append(Append(one.run_id, 3, [last], True))
            endings.append(ending_of(one, "Hello", [*mine.live[one.run_id], last]))
        mine.end(entries, endings)
        mine.live.clear()
        failures.append(deleting.end())
    assert failures == [None] * 6
    assert count(mine, runs) == 0


@pytest.mark.parametrize("how_far", ["half written", "written"])
def test_an_old_conversation_that_somebody_is_just_going_on_with_is_not_deleted(
    two: tuple[Rooms, Rooms], how_far: str
) -> None:
    mine, other = two
    old, older = mine.begin(), mine.begin()
    for one in (old, older):
        mine.run(one, "Hello")
    mine.database.write(lambda c: c.execute(sa.update(conversations).values(updated_at=0.0)))
    ensure, deleting = mine.holding.ensure, []

    def delete() -> None:
        deleting.append(Beside(lambda: forget.older_than(other.database, 1.0)))
        until_locked(other)

    def half_way(c: sa.Connection) -> Any:
        lease = ensure(c)
        delete()
        return lease

    def go_on(c: sa.Connection) -> Begun:
        command = Command(
            action="send", client_id="x", body_hash="h", text="And?", conversation_id=old.conversation_id,
            parent_id=old.message_id,
        )  # fmt: skip
        begun = mine.store._begin(c, OWNER, command, mine.holding, lambda before: "parrot")
        if not deleting:
            delete()
        return begun

    if how_far == "half written":
        mine.holding.ensure = half_way  # type: ignore[method-assign]  # stands still there
    begun = mine.database.write(go_on)
    deleted = deleting[0].end()
    assert [row.id for row in mine.rows(sa.select(conversations.c.id))] == [old.conversation_id]
    assert mine.state(begun) == "running"
    assert deleted == (1, False)


@pytest.mark.backends("sqlite", "postgres")
def test_the_same_is_found_in_every_database(make: Callable[[], Rooms]) -> None:
    rooms = make()
    texts = ["Grüße aus KÖLN", "100% of it", "a_b", "ab", "back\\slash", 'O\'Hara said "yes"', "日本語のテキスト"]
    begun = {}
    for text in texts:
        begun[text] = rooms.begin(text)
        rooms.run(begun[text], "reply")

    def found(query: str) -> set[str]:
        page = rooms.store.conversations(OWNER, query=query, cursor=None, limit=50)
        ids = {one.conversation_id: text for text, one in begun.items()}
        return {ids[str(item["id"])] for item in page.items}

    expected = {
        "köln": {texts[0]}, "grüße aus": {texts[0]}, "100%": {texts[1]}, "0% of": {texts[1]}, "a_b": {"a_b"},
        "k\\sla": {texts[4]}, "o'hara": {texts[5]}, '"yes"': {texts[5]}, "本語の": {texts[6]}, "REPLY": set(texts),
        "nothing": set(), "ab": {"ab"},
    }  # fmt: skip
    assert {query: found(query) for query in expected} == expected


def test_what_the_driver_raises_is_told_apart() -> None:
    database = open_database("postgresql://u:p@h/d", timeout=1.0)
    assert database.again(psycopg.errors.DeadlockDetected())
    assert database.again(psycopg.OperationalError("server closed the connection unexpectedly"))
    assert not database.again(psycopg.errors.LockNotAvailable())
    assert not database.again(psycopg.errors.UniqueViolation())
    assert "p@" not in repr(database) + database.describe() + database.name
    database.close()

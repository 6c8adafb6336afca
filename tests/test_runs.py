"""The life of a run in one worker: what becomes of those whose start died."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flaskchat import runs, sse, tasks
from flaskchat.config import Settings
from flaskchat.errors import NotFound, Unavailable
from flaskchat.feed import Feed
from flaskchat.limits import Visitor
from flaskchat.providers.registry import Registry
from flaskchat.runtime import Runtime
from flaskchat.store.base import Begun, Command
from flaskchat.store.schema import journal, messages, run_events
from flaskchat.store.sql import Store
from tests.backends import Backend
from tests.server.client import deadline

OWNER = "user:1"


class Killed(BaseException):
    """As gevent's Timeout or GreenletExit: what a server or a host ends a request's greenlet with."""


@pytest.fixture
def runtime(tmp_path: Path, backend: Backend) -> Iterator[Runtime]:
    """A worker whose sweep the test makes round by round; its model says one word and waits for `told`."""
    told = threading.Event()

    def model(request: Any) -> Iterator[str]:
        yield "Hello"
        told.wait(60)

    settings = Settings(model="waits", drain=0.0, titles=False)
    if backend.redis is not None:
        settings = dataclasses.replace(settings, redis_url=backend.redis.url, redis_prefix=backend.prefix)
    runtime = Runtime(settings, f"sqlite:///{tmp_path}/chat.sqlite3", Registry(settings, {"waits": model}))
    runtime.pump.start()
    yield runtime
    told.set()
    runtime.close()


def command() -> Command:
    return Command(action="send", client_id=uuid.uuid4().hex, body_hash="h", text="Hi")


def dying(begin: Callable[..., Begun]) -> Callable[..., Begun]:
    """The store's `begin` whose caller is killed after its commit."""

    def begin_and_die(*args: Any) -> Begun:
        begin(*args)
        raise Killed

    return begin_and_die


def state(runtime: Runtime, run_id: str) -> str:
    row = runtime.store.run(run_id, OWNER)
    assert row is not None
    return row.state


def start_and_die(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, asked: Command) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "begin", dying(runtime.store.begin))
        with pytest.raises(Killed):
            runtime.runs.start(OWNER, asked)
    known = runtime.store.known(OWNER, asked)
    assert known is not None
    assert state(runtime, known.run_id) == "running"
    return known.run_id


def ended(runtime: Runtime, run_id: str, rounds: int = 2) -> None:
    for _ in range(rounds):
        runtime.sweeper.round()
    for _ in deadline(30, "the run's end"):
        if state(runtime, run_id) != "running":
            break


@pytest.mark.parametrize("busy", [False, True])
def test_a_run_whose_start_died_is_ended_by_the_worker_that_lives(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """It has a lease that counts, so no other worker may end it, and it needs no other to be there."""
    other = runtime.runs.start(OWNER, command())[0].run_id if busy else None
    asked = command()
    run_id = start_and_die(runtime, monkeypatch, asked)
    again, live = runtime.runs.start(OWNER, asked)
    assert (again.run_id, live) == (run_id, None)
    reader = runtime.readers.follow(run_id, Visitor(OWNER), None)  # waits for the run that nobody writes
    assert reader is not None
    ended(runtime, run_id)
    assert state(runtime, run_id) == "interrupted"
    told = sse.Decoder().feed(b"".join(itertools.islice(reader, 2)))
    assert [frame.event for frame in told] == ["start", "interrupted"], "who waited is told"
    found = runtime.readers.follow(run_id, Visitor(OWNER), None)
    assert found is not None
    frames = sse.Decoder().feed(b"".join(found))
    assert [(frame.id, frame.event) for frame in frames] == [("1", "start"), ("2", "interrupted")]
    runtime.sweeper.round()
    if other is not None:
        assert state(runtime, other) == "running"


def test_a_start_that_takes_its_time_is_not_taken_for_dead(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    committed, may_go_on = threading.Event(), threading.Event()
    begin = runtime.store.begin

    def slow(*args: Any) -> Begun:
        begun = begin(*args)
        committed.set()
        may_go_on.wait(60)
        return begun

    monkeypatch.setattr(runtime.store, "begin", slow)
    found: list[Begun] = []
    thread = threading.Thread(target=lambda: found.append(runtime.runs.start(OWNER, command())[0]))
    thread.start()
    assert committed.wait(30)
    monkeypatch.undo()
    for _ in range(4):
        runtime.sweeper.round()
    may_go_on.set()
    thread.join()
    runtime.sweeper.round()
    (begun,) = found
    for _ in deadline(30, "the first word"):
        if begun.run_id in runtime.pump.feeds and runtime.pump.feeds[begun.run_id].live.last_seq == 2:
            break
    assert state(runtime, begun.run_id) == "running"


def test_a_run_that_ends_while_it_is_looked_for_has_one_end(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, _ = runtime.runs.start(OWNER, command())
    under = runtime.store.running_under

    def ends_meanwhile(*args: Any) -> list[Begun]:
        found = under(*args)
        runtime.runs.stop(begun.run_id, OWNER)
        return found

    monkeypatch.setattr(runtime.store, "running_under", ends_meanwhile)
    runtime.sweeper.round()
    runtime.sweeper.round()
    assert state(runtime, begun.run_id) == "stopped"
    assert runtime.pump.feeds == {}


def test_a_stop_of_a_run_whose_start_died_is_answered(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = start_and_die(runtime, monkeypatch, command())
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(runtime.runs.stop(run_id, OWNER).state))
    thread.start()
    for _ in deadline(30, "the Stop in the log"):
        if runtime.database.read(lambda c: c.execute(sa.select(journal.c.id)).all()):
            break
    ended(runtime, run_id)
    thread.join(30)
    assert answers == ["interrupted"]


def test_a_stop_is_told_again_while_the_run_goes_on(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that fails over may have lost it; and that it cannot be told again is no reason to give up."""
    monkeypatch.setattr(runs, "STOP_AGAIN", 0.05)
    announce, told = runtime.pump.log.announce, 0

    def sometimes(entry: Any) -> None:
        nonlocal told
        told += 1
        if told == 2:
            raise Unavailable("away")
        announce(entry)

    monkeypatch.setattr(runtime.pump.log, "announce", sometimes)
    run_id = start_and_die(runtime, monkeypatch, command())
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(runtime.runs.stop(run_id, OWNER).state))
    thread.start()
    for _ in deadline(10, "it to be told a third time"):
        if told >= 3:
            break
    ended(runtime, run_id)
    thread.join(30)
    assert answers == ["interrupted"]


def test_a_run_begun_under_a_lease_that_was_lost_meanwhile_is_left_to_the_others(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Store.begin

    def overtaken(*args: Any) -> Begun:
        begun = begin(*args)
        runtime.runs.fenced(runtime.holding.lease)
        return begun

    monkeypatch.setattr(Store, "begin", overtaken)
    begun, live = runtime.runs.start(OWNER, command())
    assert begun.created
    assert live is None
    assert runtime.pump.feeds == {}


def test_a_run_ends_though_whoever_stops_it_is_killed_while_its_model_is_closed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, _ = runtime.runs.start(OWNER, command())
    feed = runtime.pump.feeds[begun.run_id]
    for _ in deadline(30, "the first word"):
        if feed.live.last_seq == 2:
            break

    def die() -> bool:
        raise Killed

    monkeypatch.setattr(feed.source, "close", die)
    with pytest.raises(Killed):
        runtime.runs.stop(begun.run_id, OWNER)
    for _ in deadline(30, "the run's end"):
        if state(runtime, begun.run_id) != "running":
            break
    assert state(runtime, begun.run_id) == "stopped"


def said(runtime: Runtime, run_id: str) -> Feed:
    """The run, once its model has said its word."""
    feed = runtime.pump.feeds[run_id]
    for _ in deadline(30, "the first word"):
        if feed.live.last_seq == 2:
            break
    return feed


def test_models_that_take_their_time_to_close_hold_up_no_other_reply(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = said(runtime, runtime.runs.start(OWNER, command())[0].run_id)
    closed = threading.Event()

    def close() -> bool:
        return closed.wait(60)

    monkeypatch.setattr(slow.source, "close", close)
    slow.started_at -= 10_000  # far beyond any reply's time
    for _ in deadline(30, "the verdict"):
        if slow.over():
            break
    said(runtime, runtime.runs.start(OWNER, command())[0].run_id)
    closed.set()
    for _ in deadline(30, "the run's end"):
        if state(runtime, slow.begun.run_id) != "running":
            break
    assert state(runtime, slow.begun.run_id) == "error"


def test_a_run_for_which_no_thread_is_to_be_had_ends_at_once(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = tasks.spawn

    def scarce(function: Any, *args: Any, **more: Any) -> Any:
        if more.get("name") == "flaskchat-open":
            raise RuntimeError("can't start new thread")
        return spawn(function, *args, **more)

    monkeypatch.setattr(tasks, "spawn", scarce)
    begun, live = runtime.runs.start(OWNER, command())
    assert live is not None
    for _ in deadline(30, "the run's end"):
        if state(runtime, begun.run_id) != "running":
            break
    assert state(runtime, begun.run_id) == "error"


def test_a_run_whose_start_cannot_be_told_goes_on(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    def fails(feed: Feed) -> None:
        raise RuntimeError("can't start new thread")

    runtime.runs.on_started = fails
    feed = said(runtime, runtime.runs.start(OWNER, command())[0].run_id)
    assert not feed.over()
    assert "its start could not be told" in caplog.text


@pytest.mark.parametrize("cursor", [None, "1", "99", "x"])
def test_a_reply_that_is_deleted_while_it_is_looked_for_is_not_found(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, cursor: str | None
) -> None:
    begun, _ = runtime.runs.start(OWNER, command())
    assert runtime.runs.stop(begun.run_id, OWNER).state == "stopped"
    locate = runtime.readers._locate

    def then_deleted(*args: Any) -> Any:
        found = locate(*args)
        runtime.database.write(lambda c: c.execute(sa.delete(run_events)))
        return found

    monkeypatch.setattr(runtime.readers, "_locate", then_deleted)
    with pytest.raises(NotFound):
        runtime.readers.follow(begun.run_id, Visitor(OWNER), cursor)
    assert len(runtime.readers) == 0


LOST = (
    "UPDATE flaskchat_runs SET state = 'running', last_seq = 0, ended_at = NULL WHERE id = :run",
    "UPDATE flaskchat_messages SET text = '', status = 'running', finish_reason = NULL WHERE run_id = :run",
    "DELETE FROM flaskchat_run_events WHERE run_id = :run",
)
"""As a database whose replica took over before it had heard of the end."""


@pytest.mark.backends("sqlite", "sqlite+redis")
def test_a_run_whose_end_the_database_has_lost_is_ended_once_more_as_the_log_has_it(runtime: Runtime) -> None:
    other = runtime.runs.start(OWNER, command())[0].run_id
    begun, live = runtime.runs.start(OWNER, command())
    assert live is not None
    for _ in deadline(30, "the first word"):
        if live.last_seq == 2:
            break
    runtime.runs.stop(begun.run_id, OWNER)
    for _ in deadline(30, "the end in the log, which comes after that in the store"):
        if begun.run_id not in runtime.pump.feeds:
            break
    frames = runtime.store.frames(begun.run_id)

    def lose(c: sa.Connection) -> None:
        for statement in LOST:
            c.execute(sa.text(statement), {"run": begun.run_id})

    runtime.database.write(lose)
    ended(runtime, begun.run_id)
    assert state(runtime, begun.run_id) == "stopped"
    assert runtime.store.frames(begun.run_id) == frames
    select = sa.select(messages.c.text, messages.c.status).where(messages.c.id == begun.message_id)
    assert runtime.database.read(lambda c: c.execute(select).all()) == [("Hello", "stopped")]
    assert runtime.pump.refresh()
    assert state(runtime, other) == "running"
    assert list(runtime.pump.feeds) == [other], "this worker was not taken for one that has lost its lease"


@pytest.mark.backends("sqlite", "sqlite+redis")
def test_stop_lets_the_model_go_before_it_asks_a_store_that_may_be_away(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, live = runtime.runs.start(OWNER, command())
    for _ in deadline(30, "the first word"):
        if live is not None and live.last_seq == 2:
            break
    feed = runtime.pump.feeds[begun.run_id]

    def away(run_id: str, owner: str) -> None:
        raise Unavailable("It is away.", code="store_unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "run", away)
        with pytest.raises(Unavailable):
            runtime.runs.stop(begun.run_id, "user:somebody else's")
        assert not feed.over()
        with pytest.raises(Unavailable):
            runtime.runs.stop(begun.run_id, OWNER)
        assert feed.source is None, "the model goes on writing"
    for _ in deadline(30, "the end in the store"):
        if state(runtime, begun.run_id) == "stopped":
            break

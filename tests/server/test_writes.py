"""The Nth write to the database kills the process, for every N: nothing seen is lost, every run has one end (P1, P3).

In the short form a sample of N, spread evenly over a short conversation and over the making of the database; in the
long form every N. The write is left out, or half of it is still done, in turn.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, database
from tests.server.client import deadline
from tests.server.dump import Tap
from tests.server.history import Event, History, Reading, Visitor
from tests.server.mortal import Mortal

Serve = Callable[..., Server]


@pytest.fixture
def mortal(tmp_path: Path) -> Mortal:
    return Mortal(tmp_path)


@pytest.fixture
def one(serve: Serve, mortal: Mortal, model: Running) -> Callable[[], Server]:
    """One worker, so that nobody but its successor finds what it left; every round of its sweep moves the
    write-ahead log into the database.
    """

    def start() -> Server:
        settings: dict[str, object] = {
            "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
            "TEST_SWEEP_ROUND": "0.15", "TEST_CHECKPOINT_BYTES": "1",
        }  # fmt: skip
        return serve({**settings, **mortal.settings}, workers=1, app=FAULTY)

    return start


def until_answered(what: Callable[[], Any], words: str) -> Any:
    """A client comes again when its connection broke off, and when it is asked to."""
    for _ in deadline(90, words):
        with contextlib.suppress(OSError, HTTPException):
            answer = what()
            if answer.status not in (0, 503):
                return answer
    raise AssertionError


def to_the_end(visitor: Visitor, reading: Reading) -> list[Event]:
    events = list(reading)
    if not reading.ended:
        events += visitor.to_the_end(reading.run_id, reading.last)
    return events


def ask(visitor: Visitor, conversation_id: str | None, **directive: Any) -> Reading:
    client_id, tag = str(uuid.uuid4()), uuid.uuid4().hex
    more = {"conversation_id": conversation_id} if conversation_id else {}
    found: Reading = until_answered(
        lambda: visitor.ask(client_id=client_id, more=more, tag=tag, **directive), "an answer to a question"
    )
    assert found.status == 200, found.stream.json()
    return found


def newcomer(history: History, server: Server, name: str) -> Visitor:
    """Somebody who has seen the page, and so the cookie: a question whose answer is lost is repeated by the same."""
    client = server.client()
    client.json("/conversations")
    return history.visitor(name, client)


def converse(visitor: Visitor) -> None:
    """A question, its reply continued where it was interrupted; a title; a second question, stopped."""
    first = ask(visitor, None, tokens=6, rate=60)
    events = to_the_end(visitor, first)
    start = events[0].json
    if events[-1].event == "interrupted":
        request_id = str(uuid.uuid4())
        again: Reading = until_answered(
            lambda: visitor.again("continue", start["message_id"], client_id=request_id), "an answer to continue"
        )
        assert again.status == 200
        to_the_end(visitor, again)
    path = f"/conversations/{start['conversation_id']}"
    assert until_answered(lambda: visitor.call("PATCH", path, {"title": "Named"}), "a title").status == 200
    second = ask(visitor, start["conversation_id"], tokens=400, rate=60)
    seen = second.take(4)
    assert until_answered(lambda: visitor.stop(second.run_id), "an answer to Stop").status == 200
    if not second.ended:
        seen += to_the_end(visitor, second)
    assert seen[-1].event in ("stopped", "interrupted")


def sound(server: Server) -> None:
    """The file is whole, its index too."""
    with contextlib.closing(sqlite3.connect(database(server), timeout=30)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def numbers(writes: int, sample: int, long: bool) -> Iterator[tuple[int, bool]]:
    """Which write it is, and whether half of it is done: so many of each kind, spread evenly over the first three
    quarters of the writes, as no two conversations make the same number of them; in the long form all, and on.
    """
    if long:
        for number in range(1, 3 * writes):
            yield number, bool(number % 2)
    else:
        for case in range(2 * sample):
            yield 1 + round(case * (writes * 0.75 - 1) / (2 * sample - 1)), bool(case % 2)


def test_a_worker_that_dies_with_the_nth_write_of_a_conversation_loses_nothing_that_was_seen(
    one: Callable[[], Server], mortal: Mortal, model: Running, long: bool
) -> None:
    server = one()
    history = History()
    with Tap(server) as tap:
        for name in ("first", "second"):  # the first conversation of a database writes more
            mortal.die_at(0)
            converse(newcomer(history, server, name))
            writes = mortal.live()
        assert writes > 30, "the database's files are not written by the calls that are counted"
        died, spared, took = 0, 0, 0.0
        for number, half in numbers(writes, 3, long):
            visitor = newcomer(history, server, f"{number} {half}")
            mortal.die_at(number, half=half)
            began = time.monotonic()
            converse(visitor)
            took = max(took, time.monotonic() - began)
            died, spared = (died + 1, 0) if mortal.dead else (died, spared + 1)
            mortal.live()
            if long:
                sound(server)
            if spared == 5:  # past the last write
                break
        print(f"{writes} writes; died {died} times; the slowest conversation took {took:.1f} s")
        assert died >= (writes * 0.75 if long else 5)
    judge(history, server, model, tap=tap)
    sound(server)


def test_a_worker_that_dies_with_the_nth_write_of_its_start_leaves_a_database_that_the_next_makes(
    one: Callable[[], Server], mortal: Mortal, model: Running, long: bool
) -> None:
    def start() -> Server:
        server = one()
        client = server.client()
        for _ in deadline(90, "a worker that is ready"):
            with contextlib.suppress(OSError, HTTPException):
                if client.get("/readyz").status == 200:
                    return server
        raise AssertionError

    def clear(server: Server) -> None:
        server.close()
        shutil.rmtree(server.folder / "instance")

    mortal.die_at(0)
    clear(start())
    writes = mortal.live()
    assert writes > 20
    died = 0
    for number, half in numbers(writes, 1, long):
        mortal.die_at(number, half=half)
        server = start()
        if number > writes and not mortal.dead:
            break
        died += mortal.dead
        history = History()
        visitor = history.visitor("somebody", server.client())
        reading = visitor.ask(tag=f"start {number} {half} {uuid.uuid4()}", tokens=3)
        assert reading.rest()[-1].event == "done"
        judge(history, server, model)
        sound(server)
        clear(server)
    print(f"{writes} writes; died {died} times")
    assert died >= (writes * 0.75 if long else 2)

"""A failover of Redis under load, as a sentinel makes it: the master is killed, and its replica, which lacks the last
of what was acknowledged, takes its place. Replies pause and go on; nothing is lost while their workers live (P1 to P4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection

import pytest

from flaskchat.log.link import TIMEOUT
from tests import sentinel
from tests.backends import Backend, Servers
from tests.conftest import Server
from tests.sentinel import Pair
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import Client, deadline
from tests.server.dump import Tap
from tests.server.history import History, Reading, Visitor
from tests.server.test_kill import KEPT, Beside, ask_at, newcomer, settings

Serve = Callable[..., Server]


@pytest.fixture
def backend(database_servers: Servers) -> Iterator[Backend]:
    with sentinel.opened(database_servers) as found:
        yield found


@pytest.fixture
def pair(backend: Backend) -> Pair:
    assert isinstance(backend.redis, Pair)
    return backend.redis


def crowd(server: Server, history: History, tokens: int) -> tuple[list[Reading], list[Callable[[], Reading]]]:
    """16 replies on both workers, each with a reader at its own.

    :returns: with half of them, a reader at the other worker; and what follows the others from there. They are not in
        that one's memory, so what it tells of them is what Redis has.
    """
    first, second = server.workers()
    readings, later = [], []
    for number in range(4):
        asker = newcomer(history, server, f"visitor {number}")
        for mine, other in ((first, second), (second, first)) * 2:
            tab = asker.tab()
            reading = ask_at(asker, mine, tokens=tokens, rate=40)
            assert reading.status == 200
            readings.append(reading)
            follow = partial(arrive, tab, reading.run_id, other)
            if number % 2:
                readings.append(follow())
            else:
                later.append(follow)
    return readings, later


def arrive(visitor: Visitor, run_id: str, worker: int) -> Reading:
    """Who comes while a worker is just finding its log again may be sent away, and comes back."""
    for _ in deadline(60, "the worker to tell of the run"):
        reading = visitor.follow(run_id, connection=visitor.client.connect_to(worker))
        if reading.take(1):
            return reading
        reading.leave()
    raise AssertionError


def readiness(client: Client, workers: list[HTTPConnection], status: int, words: str = "") -> None:
    """Wait until every worker says this of itself, and of its log."""
    for connection in workers:
        for _ in deadline(60, f"readiness to be {status}"):
            answer = client.get("/readyz", connection=connection)
            said = answer.json()
            if answer.status == status and words in str(said.get("wrong", {}).get("log")):
                break


def test_a_failover_under_load_is_a_pause_for_every_reply(serve: Serve, model: Running, pair: Pair) -> None:
    server = serve(settings(model), app=FAULTY, args=KEPT)
    history, client = History(), server.client()
    workers = [client.connect_to(pid) for pid in server.workers()]
    readiness(client, workers, 200)
    with Tap(server) as tap:
        readings, later = crowd(server, history, tokens=600)
        for reading in readings:
            reading.take(2)
        pair.cut()
        for reading in readings:  # what they see now, the replica has not
            reading.take(10)
        struck = history.fault("redis failover")
        pair.kill()
        reading_on = [Beside(reading.rest) for reading in readings]
        readiness(client, workers, 503, f"Redis: Error 111 connecting to 127.0.0.1:{pair.master.port}")
        pair.promote()
        history.healed(struck)
        readiness(client, workers, 200)
        readings += [follow() for follow in later]
        reading_on += [Beside(reading.rest) for reading in readings[-len(later) :]]
        for one in reading_on:
            one.join(60)
            assert not one.is_alive()
        assert client.send('{"tokens": 20}').rest()[-1].event == "done"
        pair.start()  # the old one is back, which nobody may take for the master any more
        assert client.send('{"tokens": 20}').rest()[-1].event == "done"
    for reading in readings:
        assert (reading.how, reading.events[-1].event) == ("end", "done")
        assert [event.seq for event in reading.events] == list(range(1, len(reading.events) + 1))
    assert "were written again" in server.log()
    judge(history, server, model, tap=tap)


def test_a_stop_does_not_go_to_a_master_of_before_that_stood_still(serve: Serve, model: Running, pair: Pair) -> None:
    """It still takes what it is told, until a sentinel has told it better; and who was connected then and silent has
    noticed nothing.
    """
    server = serve(settings(model), app=FAULTY, args=KEPT)
    history, client = History(), server.client()
    workers = [client.connect_to(pid) for pid in server.workers()]
    readiness(client, workers, 200)  # each has said something to the master
    asker = newcomer(history, server, "somebody")
    mine, other = server.workers()
    reading = ask_at(asker, mine, tokens=4000, rate=40)
    at_other = asker.client.connect_to(other)
    reading.take(2)
    pair.forget()
    old = pair.master
    struck = history.fault("redis failover")
    again, frozen_at = server.log().count("the log can be used again"), time.monotonic()
    pair.freeze()
    reading_on = Beside(reading.rest)
    pair.promote()
    for _ in deadline(60, "the worker to find the new master"):
        # What the owner had asked the old one must not be answered after all: it has left by then.
        left = time.monotonic() > frozen_at + TIMEOUT + 0.5
        if left and server.log().count("the log can be used again") > again:
            break
    history.healed(struck)
    old.thaw()
    assert old.ask("ROLE")[0] == pair.master.ask("ROLE")[0] == "master"
    stopped = asker.stop(reading.run_id, connection=at_other)
    assert (stopped.status, stopped.body["state"]) == (200, "stopped")
    reading_on.join(60)
    assert reading.events[-1].event == "stopped"
    judge(history, server, model)

"""Redis killed, frozen, emptied and away while replies are being written: nothing is lost while their worker lives, no
event comes twice, and nobody waits for ever (P1, P2, P3). And a worker that was taken over while it stood still.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.backends import Backend, RedisServer
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import deadline, seqs, text
from tests.server.history import History, Reading, Visitor
from tests.server.test_kill import Beside, ask_at, newcomer, settings

Serve = Callable[..., Server]

pytestmark = pytest.mark.backends("sqlite+redis")
ARGS = ["--keep-alive", "30"]


@pytest.fixture
def redis(backend: Backend) -> RedisServer:
    assert backend.redis is not None
    return backend.redis


@pytest.fixture
def forgetful() -> Iterator[RedisServer]:
    """As Redis comes: what it is given is in memory alone."""
    server = RedisServer(aof=False)
    server.start()
    yield server
    server.close()


def crowd(server: Server, history: History, tokens: int, asker: Visitor | None = None) -> list[Reading]:
    """Replies on both workers, each with a reader at its own worker and one at the other."""
    asker = asker or newcomer(history, server, "somebody")
    first, second = server.workers()
    readings = []
    for mine, other in ((first, second), (second, first)):
        for _ in range(2):
            reading = ask_at(asker, mine, tokens=tokens, rate=50)
            assert reading.status == 200
            reading.take(3)
            tab = asker.tab()
            followed = tab.follow(reading.run_id, connection=tab.client.connect_to(other))
            followed.take(3)
            readings += [reading, followed]
    return readings


def to_the_end(readings: list[Reading]) -> None:
    """Each reader reads on, until its stream ends."""
    reading = [Beside(one.rest) for one in readings]
    for one in reading:
        one.join(60)
        assert not one.is_alive()


def kill(server: RedisServer) -> None:
    server.kill()
    server.start()


def freeze(server: RedisServer) -> None:
    server.freeze()
    until = time.monotonic() + 3.0  # longer than anybody waits for an answer
    for _ in deadline(30, "the time to pass"):
        if time.monotonic() > until:
            break
    server.thaw()


def flush(server: RedisServer) -> None:
    server.command("FLUSHALL")


def sleep_within(server: RedisServer) -> None:
    server.command("DEBUG", "SLEEP", "1")


def test_whatever_befalls_redis_replies_go_on_and_nothing_is_lost(
    serve: Serve, model: Running, redis: RedisServer, long: bool
) -> None:
    server = serve(settings(model), app=FAULTY, args=ARGS)
    history = History()
    readings = crowd(server, history, tokens=900 if long else 300)
    for harm in (kill, flush, freeze, sleep_within) if long else (kill, flush):
        harm(redis)
        readings[0].take(20)
    to_the_end(readings)
    for reading in readings:
        assert reading.events[-1].event == "done", (reading.how, reading.events[-1])
    judge(history, server, model)


def test_a_restart_of_redis_is_a_pause_of_about_as_long(serve: Serve, redis: RedisServer) -> None:
    server = serve({}, app=FAULTY, workers=1)
    stream = server.client().send("400 50")
    stream.take(20)
    outage: list[float] = []

    def restart() -> None:
        began = time.monotonic()
        redis.restart()
        outage.append(time.monotonic() - began)

    restarting = threading.Thread(target=restart)
    restarting.start()
    at, pause = time.monotonic(), 0.0
    for _ in stream:
        now = time.monotonic()
        at, pause = now, max(pause, now - at)
    restarting.join()
    print(f"away for {outage[0]:.2f} s, the largest pause {pause:.2f} s")
    assert seqs(stream.frames) == list(range(1, len(stream.frames) + 1))
    assert stream.frames[-1].event == "done"
    assert text(stream.frames).split()[::2] == [f"word{number}" for number in range(400)]
    assert pause < outage[0] + 10


def test_a_redis_that_kept_nothing_is_given_the_live_replies_again(
    serve: Serve, model: Running, forgetful: RedisServer
) -> None:
    server = serve(settings(model, FLASKCHAT_REDIS_URL=forgetful.url), app=FAULTY, args=ARGS)
    history = History()
    readings = crowd(server, history, tokens=300)
    kill(forgetful)
    to_the_end(readings)
    for reading in readings:
        assert reading.events[-1].event == "done", (reading.how, reading.events[-1])
    assert "were written again" in server.log()
    assert "`appendonly` is no" in server.log()
    judge(history, server, model)


def test_readiness_is_red_while_redis_is_away_and_heals_by_itself(serve: Serve, redis: RedisServer) -> None:
    server = serve({}, app=FAULTY)
    client = server.client()
    assert client.get("/readyz").status == 200
    redis.stop()
    for _ in deadline(60, "readiness to be red"):
        answer = client.get("/readyz")
        if answer.status == 503:
            break
    assert "Redis" in answer.json()["wrong"]["log"]
    assert client.get("/healthz").status == 200
    redis.start()
    for _ in deadline(60, "readiness to heal"):
        if client.get("/readyz").status == 200:
            break
    assert client.send("20 100").rest()[-1].event == "done"


def test_while_redis_takes_nothing_no_question_is_taken_and_no_model_asked(
    serve: Serve, model: Running, redis: RedisServer
) -> None:
    server = serve(settings(model), app=FAULTY, workers=1)
    client = server.client()
    running = client.send('{"tokens": 4000, "rate": 50}')
    running.take(3)
    redis.command("CONFIG", "SET", "maxmemory", "1")
    try:
        assert running.rest()[-1].event == "error"
        for _ in range(20):
            ready = client.get("/readyz")
            assert ready.status == 503
            assert "maxmemory" in ready.json()["wrong"]["log"]
        refused = client.send('{"tag": "refused"}')
        assert (refused.status, refused.json()["code"]) == (503, "log_unavailable")
        assert model.stats("refused")["posts"] == 0
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")
    for _ in deadline(60, "readiness to heal"):
        if client.get("/readyz").status == 200:
            break
    assert client.send('{"tokens": 20, "tag": "taken"}').rest()[-1].event == "done"


def test_a_reply_ends_in_time_though_redis_stays_away(serve: Serve, model: Running, redis: RedisServer) -> None:
    """It is given up, kept with what had come, and its readers are told: from the store, where they come back to."""
    server = serve(settings(model), app=FAULTY, args=ARGS)
    history = History()
    readings = crowd(server, history, tokens=4000)
    redis.kill()
    began = time.monotonic()
    to_the_end(readings)
    assert time.monotonic() - began < 40
    for own in readings[::2]:
        assert own.events[-1].event == "error"
        assert b"log_unavailable" in own.events[-1].data
    redis.start()
    judge(history, server, model)


def test_a_worker_that_stood_still_for_too_long_is_refused_by_redis_and_starts_anew(
    serve: Serve, model: Running
) -> None:
    server = serve(settings(model, TEST_SWEEP_ROUND="0.6"), app=FAULTY, args=ARGS)
    history = History()
    asker = newcomer(history, server, "somebody")
    elsewhere = asker.tab()
    frozen, other = server.workers()
    mine = [ask_at(asker, frozen, tokens=4000, rate=rate) for rate in (30, 100)]
    for reading in mine:
        reading.take(2)
    history.fault("SIGSTOP", frozen)
    os.kill(frozen, signal.SIGSTOP)
    try:
        ended: dict[str, list[Any]] = {}
        for reading in mine:
            found = elsewhere.follow(reading.run_id, connection=elsewhere.client.connect_to(other))
            ended[reading.run_id] = found.rest()
            assert found.events[-1].event == "interrupted"
    finally:
        os.kill(frozen, signal.SIGCONT)
    for reading in mine:
        reading.rest()
        rest = [] if reading.ended else asker.to_the_end(reading.run_id, reading.last)
        assert [e.what for e in (*reading.events, *rest)] == [e.what for e in ended[reading.run_id]]
    for _ in deadline(60, "the worker to find that it was taken for dead"):
        if "was taken over while this worker was held up" in server.log():
            break
    fresh = ask_at(asker, frozen, tokens=20, rate=100)
    assert fresh.rest()[-1].event == "done"
    judge(history, server, model)

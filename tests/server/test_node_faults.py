"""Two nodes on one PostgreSQL, with the log in it or in Redis: a node that dies, and database servers that fail.

In the short form each server fails a few times; in the long form thirty, the log in PostgreSQL also where the short one
has it in Redis alone.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaskchat import sse
from tests.backends import Backend, RedisServer
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import deadline
from tests.server.crowd import Crowd
from tests.server.dump import Tap
from tests.server.history import History, Reading, Visitor
from tests.server.nodes import Nodes, kill, settings, starting
from tests.server.proxies import Front, deployed_nginx
from tests.server.test_kill import KEPT, newcomer

pytestmark = pytest.mark.backends("postgres+redis", long=("postgres",))


@pytest.fixture
def start(serve: Callable[..., Server], model: Running, tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    with starting(serve, model, tmp_path) as begin:
        yield begin


# -- a node that dies --------------------------------------------------------------------------------------------------


@pytest.mark.backends("postgres", "postgres+redis")
def test_the_replies_of_a_killed_node_end_at_the_other_with_their_text(
    start: Callable[..., Nodes], model: Running
) -> None:
    """Within the 15 seconds, with the real times; and whoever reads there through the proxy is told by the other."""
    nodes = start()
    history = History()
    asker = newcomer(history, nodes.one, "somebody")
    elsewhere = nodes.visitor(history, nodes.other, asker)
    with Tap(nodes.one) as tap:
        theirs = [asker.ask(tokens=4000, rate=rate) for rate in (20, 100)]
        for reading in theirs:
            reading.take(5)
        ours = elsewhere.ask(tokens=150, rate=20)
        ours.take(2)
        watched = elsewhere.follow(theirs[0].run_id)
        watched.take(2)
        kill(history, nodes.one)
        killed_at = time.monotonic()
        for reading in theirs:
            reading.rest()
            assert not reading.ended
            assert elsewhere.to_the_end(reading.run_id, reading.last)[-1].event == "interrupted"
        took = time.monotonic() - killed_at
        assert watched.rest()[-1].event == "interrupted"
        assert took < 15, f"interrupted {took:.1f} s after the kill"
        assert [*ours.rest()][-1].event == "done", "a reply of the other node"
        assert [event.event for event in behind_the_proxy(nodes, asker, theirs[0])][-1] == "interrupted"
        further = elsewhere.again("continue", theirs[0].start["message_id"])
        assert [event.event for event in further.take(2)] == ["start", "delta"]
        elsewhere.stop(further.run_id)
        further.rest()
    judge(history, nodes.other, model, tap=tap)


def behind_the_proxy(nodes: Nodes, asker: Visitor, reading: Reading) -> list[sse.Frame]:
    """All of a reply, once nginx has noticed that one of the two is gone."""
    for _ in deadline(30, "the proxy to ask the node that is left"):
        stream = nodes.client(None, asker.client).follow(reading.run_id)
        if stream.status == 200:
            return stream.rest()
        assert stream.status == 502
        stream.close()
    raise AssertionError


# -- database servers that fail ----------------------------------------------------------------------------------------


def reply(dice: random.Random) -> dict[str, object]:
    return {"tokens": dice.randrange(40, 160), "rate": 40}


OF_PSYCOPG = re.compile(r"Exception ignored in: <generator object BasePipeline.*\nTraceback")
"""What it says itself of a connection that was lost."""


def minded(crowd: Crowd) -> list[str]:
    """What a user would have seen as an error, but for a 503: it is tried again, and its reader comes back."""
    return [error for error in crowd.errors if "503" not in error]


def under_load(nodes: Nodes, model: Running, seed: int, faults: list[Callable[[], None]]) -> None:
    """Strike again and again while six visitors talk through the proxy; whatever was begun has its end."""
    history = History()
    front = Front(nodes.front)
    with contextlib.closing(front), Tap(nodes.one) as tap:
        with Crowd(front, history, 6, reply, seed) as crowd:  # type: ignore[arg-type]
            crowd.wait(4)
            for fault in faults:
                began = time.monotonic()
                fault()
                crowd.wait(4, seconds=60)
                print(f"{fault.__name__}: four more replies after {time.monotonic() - began:.1f} s")
        print(f"{crowd.replies} replies, {crowd.refused} questions refused;", *crowd.errors, sep="\n")
        assert minded(crowd) == []
        judge(history, nodes.one, model, tap=tap, seconds=60)
    for node in nodes.both:
        assert len(node.workers()) == 2
        assert "Traceback" not in OF_PSYCOPG.sub("", node.log())


@pytest.mark.backends("postgres", long=("postgres+redis",))
def test_replies_outlive_a_postgres_that_restarts_and_connections_that_are_cut(
    start: Callable[..., Nodes], model: Running, backend: Backend, long: bool, seed: int
) -> None:
    """Three times, in the long form thirty times."""
    postgres = backend.postgres
    assert postgres is not None

    def cut() -> None:
        postgres.terminate(backend.database)

    def crash() -> None:
        postgres.kill()
        postgres.start()

    under_load(start(), model, seed, [cut, postgres.restart, crash] * (10 if long else 1))


@pytest.mark.backends("postgres+redis")
def test_replies_outlive_a_redis_that_is_killed(
    start: Callable[..., Nodes], model: Running, backend: Backend, long: bool, seed: int
) -> None:
    """Three times, in the long form thirty times; for so long that readers of the other node miss it, too."""
    redis = backend.redis
    assert redis is not None

    def crash() -> None:
        redis.kill()
        redis.start()

    under_load(start(), model, seed, [crash, redis.restart, crash] * (10 if long else 1))


@pytest.mark.backends("postgres")
def test_replies_outlive_a_redis_that_forgets_everything(
    backend: Backend, model: Running, tmp_path: Path, long: bool, seed: int
) -> None:
    """Without its append-only file, as Redis comes: what is lost there is written anew from the workers' memory."""
    redis = RedisServer(aof=False)

    def crash() -> None:
        redis.kill()
        redis.start()

    with contextlib.ExitStack() as stack:
        stack.callback(redis.close)
        prefix = stack.enter_context(redis.prefix())
        forgetful = backend._replace(name="postgres+redis", redis=redis, prefix=prefix)
        made = []
        for _ in range(2):
            made.append(
                Server(tmp_path, settings(model), workers=2, kind="gevent", app=FAULTY, args=KEPT, backend=forgetful)
            )
            stack.callback(made[-1].close)
        front = stack.enter_context(deployed_nginx(tmp_path, *(server.port for server in made)))
        under_load(Nodes(*made, front), model, seed, [crash] * (30 if long else 2))

"""Two nodes, each a gunicorn master with two workers, on one PostgreSQL, with the log in it or in Redis; in front of
them nginx with deploy/nginx.conf and an upstream of two, which asks them in turn: no visitor stays where they were.

In the short form a reply has 20 readers and each server fails a few times; the long form has 200 readers, a server that
fails thirty times, and the log in PostgreSQL also where the short one has it in Redis alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flaskchat import sse
from tests.backends import Backend, RedisServer
from tests.conftest import Server, asking
from tests.server.badmodel import Running, text_of
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import Client, deadline, seqs, text
from tests.server.crowd import Crowd
from tests.server.dump import Tap
from tests.server.history import History, Reading, Visitor
from tests.server.proxies import Front, deployed_nginx
from tests.server.test_kill import KEPT, newcomer

pytestmark = pytest.mark.backends("postgres+redis", long=("postgres",))

HOSTS = ("here", "there")
"""The nodes' machines: what only processes of one machine can tell each other, these cannot."""
GUARDED = "tests.server.guarded:app"


def settings(model: Running, **more: object) -> dict[str, object]:
    return {**asking(model), "SECRET_KEY": "of both", "FLASKCHAT_DRAIN": "0.5", **more}


class Nodes:
    """:param front: the proxy's port; the first node's stands in where there is none."""

    def __init__(self, one: Server, other: Server, front: int) -> None:
        self.one, self.other, self.front = one, other, front
        self.both = (one, other)

    def client(self, node: Server | None = None, like: Client | None = None) -> Client:
        """:param node: past the proxy.
        :param like: whose cookie it has.
        """
        made = (node or self.one).client()
        made.port = self.front if node is None else node.port
        made.cookie = "" if like is None else like.cookie
        return made

    def visitor(self, history: History, node: Server, like: Visitor) -> Visitor:
        """The same owner at that node."""
        return history.visitor(like.owner, self.client(node, like.client))


@pytest.fixture(scope="module")
def nodes(shared_backend: Backend, tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Nodes]:
    """For the tests that leave them as they found them."""
    folder = tmp_path_factory.mktemp("nodes")
    with contextlib.ExitStack() as stack:
        made = []
        values = settings(model, GUARDED="login", FLASKCHAT_MODELS="silent", FLASKCHAT_MAX_RUNS_PER_OWNER="3")
        for host in HOSTS:
            made.append(
                Server(
                    folder,
                    {**values, "TEST_HOST": host},
                    workers=2,
                    kind="gevent",
                    app=GUARDED,
                    args=KEPT,
                    backend=shared_backend,
                )
            )
            stack.callback(made[-1].close)
        front = stack.enter_context(deployed_nginx(folder, *(server.port for server in made)))
        yield Nodes(*made, front)
    for server in made:
        print(f"--- log of the server at {server.port}\n{server.log()}")


@pytest.fixture
def start(serve: Callable[..., Server], model: Running, tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    """Starts two nodes and a proxy of the test's own."""
    with contextlib.ExitStack() as stack:

        def begin(**more: object) -> Nodes:
            made = []
            for host in HOSTS:
                own = tmp_path / f"tmp-{host}"  # two machines share no folder
                own.mkdir()
                values = settings(model, TEST_HOST=host, TMPDIR=own, **more)
                made.append(serve(values, app=FAULTY, args=KEPT))
            return Nodes(*made, stack.enter_context(deployed_nginx(tmp_path, *(server.port for server in made))))

        yield begin


# -- one reply, anywhere -----------------------------------------------------------------------------------------------


def test_one_reply_is_generated_once_and_read_by_everybody_over_both_nodes(
    nodes: Nodes, model: Running, long: bool, seed: int
) -> None:
    """Half of the readers come through the proxy; and the question is asked at both nodes at once."""
    dice, readers = random.Random(seed), 200 if long else 20
    client = nodes.client(nodes.one)
    client.json("/conversations")
    directive = {"tag": uuid.uuid4().hex, "tokens": 150, "rate": 50}
    twin = nodes.client(nodes.other, client)
    found: list[tuple[int, bytes]] = []
    asked: dict[int, str] = {}

    def ask(number: int, asker: Client) -> None:
        stream = asker.send(json.dumps(directive), client_id="both-at-once")
        asked[number] = stream.run_id
        stream.rest()
        found.append((0, stream.raw))
        workers.add(stream.worker)

    def read(cursor: int, reader: Client, run_id: str) -> None:
        stream = reader.follow(run_id, cursor)
        assert stream.status == 200
        stream.rest()
        found.append((cursor, stream.raw))
        workers.add(stream.worker)

    workers: set[int] = set()
    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate((client, twin))]
    for thread in threads:
        thread.start()
    for _ in deadline(30, "both to be answered"):
        if len(asked) == 2:
            break
    assert len(set(asked.values())) == 1, "two generations for one question"
    for number in range(readers):
        reader = nodes.client(None if number % 2 else nodes.both[number // 2 % 2], client)
        cursor = dice.randrange(3)
        threads.append(threading.Thread(target=read, args=(cursor, reader, asked[0])))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    whole = max((raw.replace(b": hb\n", b"").partition(b"\n")[2] for _, raw in found), key=len)
    assert len(found) == readers + 2
    for cursor, raw in found:
        assert raw.replace(b": hb\n", b"").partition(b"\n")[2] == whole[whole.index(b"id: %d\n" % (cursor + 1)) :]
    assert all(workers & set(node.workers()) for node in nodes.both), "all were at one node"
    assert model.stats(directive["tag"])["posts"] == 1  # type: ignore[arg-type]


def test_a_reader_that_changes_its_node_at_every_event_loses_and_doubles_nothing(nodes: Nodes) -> None:
    client = nodes.client(nodes.one)
    directive = {"tag": uuid.uuid4().hex, "tokens": 60, "rate": 25}
    stream = client.send(json.dumps(directive))
    frames = stream.take(1)
    stream.close()
    moves = 0
    while frames[-1].event != "done":
        moves += 1
        follower = nodes.client(nodes.both[moves % 2], client).follow(stream.run_id, frames[-1].id)
        assert follower.status == 200
        frames += follower.take(1)
        follower.close()
    assert moves > 20
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert text(frames) == text_of(directive)
    last = nodes.client(nodes.other, client).follow(stream.run_id, frames[-1].id)
    assert last.status == 204


def test_stop_works_from_the_other_node(nodes: Nodes, model: Running) -> None:
    client = nodes.client(nodes.one)
    directive = {"tag": uuid.uuid4().hex, "tokens": 20, "fault": "stall", "after": 5, "hold": 60, "rate": 50}
    stream = client.send(json.dumps(directive))
    stream.take(2)
    answer = nodes.client(nodes.other, client).stop(stream.run_id)
    assert answer["state"] == "stopped"
    assert 0 <= answer["upstream_closed_ms"] < 5000
    assert stream.rest()[-1].event == "stopped"
    assert model.stats(directive["tag"])["closed_at"]  # type: ignore[arg-type]


def test_a_limit_of_replies_at_once_counts_those_of_both_nodes(nodes: Nodes) -> None:
    client = nodes.client(nodes.one)
    client.json("/conversations")
    question = json.dumps({"tokens": 4000, "rate": 20})
    elsewhere = nodes.client(nodes.other, client)
    streams = [client.send(question), elsewhere.send(question), client.send(question)]
    assert [stream.status for stream in streams] == [200] * 3
    for asker in (client, elsewhere):
        refused = asker.send(question)
        assert (refused.status, refused.json()["code"]) == (429, "too_many_runs")
        refused.close()
    assert elsewhere.stop(streams[0].run_id)["state"] == "stopped"
    again = elsewhere.send(question)
    assert again.status == 200
    for stream in (*streams[1:], again):
        client.stop(stream.run_id)


def test_a_limit_of_streams_counts_those_of_both_nodes_and_none_of_a_killed_one(start: Callable[..., Nodes]) -> None:
    nodes = start(FLASKCHAT_MAX_STREAMS_PER_OWNER="3")
    client = nodes.client(nodes.one)
    client.json("/conversations")
    elsewhere = nodes.client(nodes.other, client)
    question = json.dumps({"tokens": 4000, "rate": 5})
    streams = [client.send(question), elsewhere.send(question), client.send(question)]
    assert [stream.status for stream in streams] == [200] * 3
    for asker in (client, elsewhere):
        refused = asker.send(question)
        assert (refused.status, refused.json()["code"]) == (429, "too_many_streams")
        refused.close()
    streams[1].close()  # at the other; so one may be opened here
    for _ in deadline(20, "the place of a stream that was closed at the other node"):
        again = client.send(question)
        if again.status == 200:
            break
        again.close()
    for process in [*psutil.Process(nodes.one.process.pid).children(), psutil.Process(nodes.one.process.pid)]:
        process.kill()
    found = []
    for _ in deadline(60, "the places of a node that was killed"):
        found.append(elsewhere.send(question))
        if [stream.status for stream in found[-3:]] == [200] * 3:
            return


def test_a_list_shows_what_is_being_written_at_the_other_node(nodes: Nodes) -> None:
    client = nodes.client(nodes.one)
    stream = client.send(json.dumps({"tokens": 4000, "rate": 20}))
    stream.take(2)
    elsewhere = nodes.client(nodes.other, client)
    (item,) = elsewhere.json("/conversations")["items"]
    assert item["running_run_id"] == stream.run_id
    elsewhere.stop(stream.run_id)
    stream.rest()
    (item,) = elsewhere.json("/conversations")["items"]
    assert item["running_run_id"] is None


def test_whoever_signs_out_at_one_node_is_sent_away_from_the_other(nodes: Nodes) -> None:
    jar: dict[str, str] = {}

    def go(client: Client, path: str) -> None:
        client.cookie = "; ".join(f"{name}={value}" for name, value in jar.items())
        answer = client.get(path)
        answer.response.read()
        assert answer.status == 200
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            jar[name] = value
        client.cookie = "; ".join(f"{name}={value}" for name, value in jar.items())

    here, there = nodes.client(nodes.one), nodes.client(nodes.other)
    go(here, "/login/ada")
    there.cookie = here.cookie
    first = here.send("x", model="silent")
    first.take(2)
    second = there.follow(first.run_id)
    second.take(2)
    gone = [threading.Thread(target=stream.rest) for stream in (first, second)]
    for thread in gone:
        thread.start()
    go(nodes.client(nodes.other), "/logout")
    for thread in gone:
        thread.join(15)
        assert not thread.is_alive(), "a stream outlived its reader's right"
    assert all(frame.event in ("start", "delta") for stream in (first, second) for frame in stream.frames)


# -- a node that dies --------------------------------------------------------------------------------------------------


def kill(history: History, node: Server) -> None:
    """`kill -9` of all of it: workers first, so that the master starts none in their place."""
    master = psutil.Process(node.process.pid)
    master.suspend()
    for process in (*master.children(recursive=True), master):
        history.fault("kill -9", process.pid)
        process.kill()
    node.process.wait()


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

"""Two nodes on one PostgreSQL, with the log in it or in Redis: a reply, Stop, limits and lists are of both.

In the short form a reply has 20 readers; the long form has 200, and the log in PostgreSQL too. What befalls them is in
test_node_faults.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.backends import Backend
from tests.conftest import Server
from tests.server.badmodel import Running, text_of
from tests.server.client import TERMINAL, Client, deadline, seqs, text
from tests.server.nodes import HOSTS, Nodes, settings, starting
from tests.server.proxies import deployed_nginx
from tests.server.test_kill import KEPT

pytestmark = pytest.mark.backends("postgres+redis", long=("postgres",))

GUARDED = "tests.server.guarded:app"


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
    with starting(serve, model, tmp_path) as begin:
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
    directive = {"tag": uuid.uuid4().hex, "tokens": 5000, "rate": 25}
    stream = client.send(json.dumps(directive))
    frames = stream.take(1)
    stream.close()
    moves = 0
    while frames[-1].event not in TERMINAL:
        moves += 1
        if moves == 25:  # however long that took
            assert client.stop(stream.run_id)["state"] == "stopped"
        follower = nodes.client(nodes.both[moves % 2], client).follow(stream.run_id, frames[-1].id)
        assert follower.status == 200
        frames += follower.take(1)
        follower.close()
    assert moves >= 25
    assert frames[-1].event == "stopped"
    assert seqs(frames) == list(range(1, len(frames) + 1))
    start = json.loads(frames[0].data)
    assert client.message(start["conversation_id"], start["message_id"])["text"] == text(frames)
    assert text_of(directive).startswith(text(frames))
    last = nodes.client(nodes.other, client).follow(stream.run_id, frames[-1].id)
    assert last.status == 204


def test_stop_works_from_the_other_node(nodes: Nodes, model: Running) -> None:
    client = nodes.client(nodes.one)
    directive = {"tag": uuid.uuid4().hex, "tokens": 20, "fault": "stall", "after": 5, "hold": 60, "rate": 50}
    stream = client.send(json.dumps(directive))
    stream.take(2)
    answer = nodes.client(nodes.other, client).stop(stream.run_id)
    assert answer["state"] == "stopped"
    assert 0 <= answer["upstream_closed_ms"] < 15_000
    assert stream.rest()[-1].event == "stopped"
    for _ in deadline(30, "the model to see its connection closed"):
        if model.stats(directive["tag"])["closed_at"]:  # type: ignore[arg-type]
            break


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
    for _ in deadline(60, "the place of a stream that was closed at the other node"):
        again = client.send(question)
        if again.status == 200:
            break
        again.close()
    for process in [*psutil.Process(nodes.one.process.pid).children(), psutil.Process(nodes.one.process.pid)]:
        process.kill()
    found = []
    for _ in deadline(60, "the places of a node that was killed"):  # its two workers are not given up at once
        found.append(elsewhere.send(question))
        if [stream.status for stream in found].count(200) == 3:
            break
    assert elsewhere.send(question).status == 429


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
        thread.join(30)
        assert not thread.is_alive(), "a stream outlived its reader's right"
    assert all(frame.event in ("start", "delta") for stream in (first, second) for frame in stream.frames)

"""The database locked, full or failing: no model is asked for what cannot be kept, readers are served, it heals."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.backends import SQLITE
from tests.conftest import Server
from tests.server.badmodel import Running, text_of
from tests.server.checks import assert_closed_in_time, assert_whole, error_of, everything, rows, start_of, write_lock
from tests.server.client import TERMINAL, Client, Stream, deadline, text
from tests.server.disk import Disk

BREAKING = "tests.server.breaking:app"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def faulty(serve: Callable[..., Server], model: Running, disk: Disk) -> Callable[..., Server]:
    """Two workers with the misbehaving model, on a disk that fails when it is told to."""

    def start(**more: object) -> Server:
        settings: dict[str, object] = {
            "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
            "FLASKCHAT_DATABASE_TIMEOUT": "0.5", "FLASKCHAT_HEARTBEAT": "1", "FLASKCHAT_RETRY": "0.2",
        }  # fmt: skip
        return serve({**settings, **disk.settings, **more}, app=BREAKING)

    return start


def ask(client: Client, **directive: Any) -> tuple[dict[str, Any], Stream]:
    directive.setdefault("tag", uuid.uuid4().hex)
    return directive, client.send(json.dumps(directive))


def both(server: Server, client: Client) -> Iterator[Any]:
    """A connection to each of the workers."""
    for pid in server.workers():
        yield client.connect_to(pid)


def noticed(server: Server, times: int = 1) -> None:
    for _ in deadline(60, "the log to be refused"):
        if server.log().count("the log cannot be used") >= times:
            return


def assert_refused_everywhere(server: Server, client: Client, model: Running) -> list[dict[str, Any]]:
    """Every worker answers a question with a clear 503, and no model is asked. Returns the questions as they were."""
    bodies = []
    for connection in both(server, client):
        tag = uuid.uuid4().hex
        bodies.append({"message": {"id": tag, "text": json.dumps({"tag": tag, "tokens": 3})}})
        refused = client.request("POST", "/conversation", bodies[-1], connection=connection)
        problem = refused.json()
        assert (refused.status, problem["status"]) == (503, 503), problem
        assert problem["code"] in ("store_unavailable", "log_unavailable")
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert int(refused.headers["Retry-After"]) > 0
        assert model.stats(tag)["posts"] == 0
    return bodies


def assert_asked_once_each(client: Client, model: Running, bodies: list[dict[str, Any]]) -> None:
    """The refused questions are sent again as they were, and are new ones."""
    for body in bodies:
        stream = client.request("POST", "/conversation", body)
        assert stream.status == 200, stream.json()
        assert_whole(client, stream, stream.rest(), "done")
        assert model.stats(body["message"]["id"])["posts"] == 1


def assert_memory_is_read(server: Server, client: Client, stream: Stream) -> None:
    """At both workers, from the start: the events that were seen, at once, and no status that ends an EventSource."""
    for connection in both(server, client):
        reader = client.follow(stream.run_id, connection=connection)
        assert reader.status == 200
        assert reader.take(len(stream.frames))[-1].data == stream.frames[-1].data
        reader.close()


class Fault:
    """One of the faults, by its name, as a context."""

    def __init__(self, name: str, server: Server, disk: Disk) -> None:
        self._context = write_lock(server) if name == "lock" else disk.fault(name)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


@pytest.mark.parametrize("name", ["lock", "full", "writes fail", "nothing works"])
def test_a_short_fault_of_the_database_refuses_questions_serves_readers_and_loses_nothing(
    faulty: Callable[..., Server], model: Running, disk: Disk, name: str
) -> None:
    """A lock by another process, a full disk, failing writes, and a disk that cannot even be read."""
    server = faulty(TEST_GIVE_UP=120)  # how long the log may be away is the next test's
    client = server.client()
    directive, stream = ask(client, tokens=400, rate=50)
    stream.take(10)
    foreign = client.follow(stream.run_id, connection=client.connect_to(other(server, stream)))
    foreign.take(5)
    done = client.send(json.dumps({"tag": uuid.uuid4().hex, "tokens": 3}))
    kept = done.rest()
    with Fault(name, server, disk):
        noticed(server)
        bodies = assert_refused_everywhere(server, client, model)
        for connection in both(server, client):
            assert client.request("GET", "/healthz", connection=connection).status == 200
        if name == "nothing works":
            for connection in both(server, client):
                reader = client.follow(stream.run_id, connection=connection)
                assert reader.status == 200, "an EventSource would be ended for good"
                reader.close()
        else:
            assert_memory_is_read(server, client, stream)
            assert [frame[1:] for frame in client.follow(done.run_id).rest()] == [frame[1:] for frame in kept]
            assert client.json(f"/conversations/{start_of(stream)['conversation_id']}")["running"]
            connection = client.connect_to(stream.worker)
            for _ in deadline(30, "a load balancer to be told"):
                if "log" in client.request("GET", "/readyz", connection=connection).json().get("wrong", ()):
                    break
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    assert text(frames) == text_of(directive)
    assert [frame[1:] for frame in everything(foreign)] == [frame[1:] for frame in frames]
    assert model.stats(directive["tag"])["posts"] == 1
    assert_asked_once_each(client, model, bodies)
    assert "the log can be used again" in server.log()


def other(server: Server, stream: Stream) -> int:
    return next(pid for pid in server.workers() if pid != stream.worker)


@pytest.mark.parametrize("name", ["lock", "full", "writes fail"])
def test_a_fault_of_the_database_that_lasts_ends_the_replies_with_an_error_and_their_text(
    faulty: Callable[..., Server], model: Running, disk: Disk, long: bool, name: str
) -> None:
    """Given up after 3 seconds, in the long form after the product's own twelve."""
    patience = 12.0 if long else 3.0
    server = faulty(TEST_GIVE_UP=patience)
    client = server.client()
    directive, stream = ask(client, tokens=4000, rate=40)
    stream.take(10)
    _, silent = ask(client, tokens=20, fault="stall", after=5)
    silent.take(2)
    since = time.monotonic()
    with Fault(name, server, disk):
        noticed(server)
        # The run that moves is given up by its worker; whether the silent one is with it depends on who has it.
        for _ in deadline(patience + 30, "the model to be let go"):
            if model.stats(directive["tag"])["live"] == 0:
                break
        took = time.monotonic() - since
        assert took > patience, "a lock that is short must be waited out"
        assert took < (15 if long else patience + 20), took
        reader = client.follow(stream.run_id, stream.frames[-1].id)
        assert reader.status == 200
        reader.close()
        assert_refused_everywhere(server, client, model)
    healed_at = time.monotonic()
    frames = to_the_end(client, stream)
    assert time.monotonic() - healed_at < 15
    assert error_of(frames) == "log_unavailable"
    assert "could not be stored" in json.loads(frames[-1].data)["message"]
    assert_whole(client, stream, frames, "error")
    said = text(frames)
    assert text_of(directive).startswith(said)
    assert len(said) > len(text(stream.frames[:10])), "what came while the log could not be used is kept as well"
    assert stream.run_id in server.log()
    assert "the log could not be used for" in server.log()
    assert model.stats(directive["tag"])["posts"] == 1, "nothing is repeated"
    client.stop(silent.run_id)
    assert to_the_end(client, silent)[-1].event in ("stopped", "error")
    assert client.send(json.dumps({"tag": "after", "tokens": 3})).rest()[-1].event == "done"
    assert rows(server, "SELECT count(*) FROM flaskchat_runs WHERE state = 'running'") == [(0,)]


def to_the_end(client: Client, stream: Stream) -> list[Any]:
    """Come back with the last id until the terminal event, as a browser does."""
    stream.rest()
    frames = list(stream.frames)
    for _ in deadline(60, "the terminal event"):
        if frames[-1].event in TERMINAL:
            return frames
        again = client.follow(stream.run_id, frames[-1].id)
        assert again.status == 200
        frames += again.rest()
    raise AssertionError


def test_stop_lets_go_of_the_model_at_once_though_its_end_must_wait_for_the_lock(
    faulty: Callable[..., Server], model: Running
) -> None:
    server = faulty(FLASKCHAT_DATABASE_TIMEOUT="120", TEST_GIVE_UP="120")
    client = server.client()
    locked = itertools.count(1)

    def stop() -> Any:
        directive, stream = ask(client, tokens=4000, rate=40)
        stream.take(5)
        connection = client.connect_to(stream.worker)
        with write_lock(server):
            noticed(server, next(locked))
            connection.request("POST", f"/runs/{stream.run_id}/stop", headers={"Cookie": client.cookie})
            for _ in deadline(30, "the model to be let go while the database is locked"):
                if model.stats(directive["tag"])["closed_at"]:
                    break
        answer = json.loads(connection.getresponse().read())
        assert_whole(client, stream, everything(stream), "stopped")
        return answer

    assert_closed_in_time(stop)


def test_a_worker_that_starts_while_the_database_is_locked_waits_for_it_and_serves(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """The tables are not made yet, and another process holds the file: a worker that gave up would end the server."""
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / "flaskchat.sqlite3").touch()
    folder = Folder(tmp_path)
    conf = tmp_path / "conf.py"
    conf.write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "def post_worker_init(worker): worker.wsgi.extensions['flaskchat'].start()\n"
    )
    with write_lock(folder):  # type: ignore[arg-type]
        server = serve({"FLASKCHAT_DATABASE_TIMEOUT": "0.3"}, app=BREAKING, args=["-c", str(conf)])
        before = set(server.workers())
        client = server.client()
        for _ in deadline(30, "the lock to be noticed"):
            if "cannot be used yet: database is locked" in server.log():
                break
        refused = client.send("3 0")
        assert (refused.status, refused.json()["code"]) == (503, "store_unavailable")
        assert client.get("/readyz").status == 503
        follow = client.follow("run_unknown")
        assert follow.status == 200
        assert follow.rest() == []
    for _ in deadline(30, "a worker to have made the tables, without a request"):
        with contextlib.suppress(sa.exc.OperationalError):
            if rows(server, "SELECT count(*) FROM flaskchat_version") == [(1,)]:
                break
    assert client.send("3 0").rest()[-1].event == "done"
    assert set(server.workers()) == before
    assert client.follow("run_unknown").status == 404


class Folder:
    """What `write_lock` needs of a server that is not there yet."""

    backend = SQLITE

    def __init__(self, folder: Path) -> None:
        self.folder = folder

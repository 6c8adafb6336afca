"""A reply streams, is kept, and outlives its reader; in the long form on every backend."""

import contextlib
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

import pytest

from tests.conftest import Server
from tests.server.checks import FAULTY, assert_closed_in_time
from tests.server.client import deadline, seqs, text

pytestmark = pytest.mark.backends("sqlite", long=("postgres", "postgres+redis"))


def test_a_reply_streams_as_numbered_events_and_is_stored(server: Server) -> None:
    client = server.client()
    stream = client.send("20 100")
    frames = stream.rest()
    assert stream.status == 200
    assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert [frames[0].event, frames[-1].event] == ["start", "done"]
    start = json.loads(frames[0].data)
    assert start["run_id"] == stream.run_id
    message = client.message(start["conversation_id"], start["message_id"])
    assert message["text"] == text(frames) == "".join(f"word{n} ü€😀 " for n in range(20))
    assert message["status"] == "done"
    assert client.json("/conversations")["items"][0]["id"] == start["conversation_id"]


def test_the_reply_goes_on_when_the_client_leaves(server: Server) -> None:
    client = server.client()
    stream = client.send("40 100")
    start = json.loads(stream.take(5)[0].data)
    stream.close()
    message = client.wait_state(start["conversation_id"], start["message_id"])
    assert message["text"] == "".join(f"word{n} ü€😀 " for n in range(40))


def test_a_reader_follows_from_any_cursor_on_either_worker(server: Server) -> None:
    client = server.client()
    stream = client.send("60 60")
    first = stream.take(5)
    for worker in server.workers():
        other = client.follow(stream.run_id, 5, connection=client.connect_to(worker))
        assert other.worker == worker
        rest = other.rest()
        assert seqs(rest) == list(range(6, 6 + len(rest)))
        assert rest[-1].event == "done"
        assert text(first + rest) == "".join(f"word{n} ü€😀 " for n in range(60))
        assert client.follow(stream.run_id, rest[-1].id).status == 204


def test_the_built_in_model_goes_on_where_it_was_stopped(serve: Callable[..., Server]) -> None:
    client = serve({"FLASKCHAT_MODEL": "guide"}).client()
    question = "How do I connect a model?"
    whole = text(client.send(question).rest())
    stream = client.send(question)
    start = json.loads(stream.take(2)[0].data)
    client.stop(stream.run_id)
    stopped = client.wait_state(start["conversation_id"], start["message_id"])
    assert stopped["status"] == "stopped"
    assert 0 < len(stopped["text"]) < len(whole)
    again = {"action": "continue", "message_id": start["message_id"], "request_id": str(uuid.uuid4())}
    client.request("POST", "/conversation", again).rest()
    assert client.message(start["conversation_id"], start["message_id"])["text"] == whole


@pytest.mark.parametrize("same_worker", [True, False])
def test_stop_ends_a_run_that_is_silent_from_either_worker(server: Server, same_worker: bool) -> None:
    client = server.client()

    def stop() -> Any:
        stream = client.send("x", model="silent")
        stream.take(2)
        worker = stream.worker if same_worker else next(pid for pid in server.workers() if pid != stream.worker)
        stopped = client.stop(stream.run_id, connection=client.connect_to(worker))
        assert stream.rest()[-1].event == "stopped"
        assert client.stop(stream.run_id) == stopped
        return stopped

    assert_closed_in_time(stop)


def test_twenty_equal_posts_are_one_generation(server: Server) -> None:
    client = server.client()
    client.json("/conversations")  # takes the cookie
    found: list[str] = []

    def post() -> None:
        stream = client.send("20 50", client_id="same")
        found.append(stream.run_id + text(stream.rest()))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1
    other = client.send("21 50", client_id="same")
    assert other.status == 422
    assert other.json()["code"] == "idempotency_conflict"


def test_somebody_else_s_run_answers_like_an_unknown_one(server: Server) -> None:
    stream = server.client().send("30 30")
    stream.take(2)
    stranger = server.client()
    for path in (f"/runs/{stream.run_id}/events", "/runs/run_unknown/events"):
        answer = stranger.get(path)
        assert (answer.status, answer.json()["code"]) == (404, "not_found")


def test_a_worker_that_is_told_to_leave_finishes_its_runs_and_moves_its_readers(server: Server) -> None:
    client = server.client()
    stream = client.send("60 20")
    frames = stream.take(10)
    os.kill(stream.worker, signal.SIGTERM)
    frames += stream.rest()
    while frames[-1].event not in ("done", "interrupted"):
        for _ in deadline(30, "another worker"):
            try:
                stream = client.follow(stream.run_id, frames[-1].id)
                break
            except OSError:
                continue
        frames += stream.rest()
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert frames[-1].event == "done"
    assert text(frames) == "".join(f"word{n} ü€😀 " for n in range(60))


def test_a_killed_worker_loses_nothing_that_was_seen(serve: Callable[..., Server]) -> None:
    """How soon, with the real times, is test_kill's."""
    server = serve({"TEST_SWEEP_ROUND": "0.6", "TEST_GONE_AFTER": "1000000"}, app=FAULTY)
    client = server.client()
    stream = client.send("1000 50")
    frames = stream.take(30)
    start = json.loads(frames[0].data)
    os.kill(stream.worker, signal.SIGKILL)
    with contextlib.suppress(OSError, HTTPException):
        stream.rest()
    frames = list(stream.frames)
    for _ in deadline(30, "another worker"):
        try:
            stream = client.follow(stream.run_id, frames[-1].id)
            break
        except OSError:
            continue
    frames += stream.rest()
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert frames[-1].event == "interrupted"
    message = client.wait_state(start["conversation_id"], start["message_id"])
    assert message["status"] == "interrupted"
    assert message["text"] == text(frames)
    again = client.send("3 0", conversation_id=start["conversation_id"])
    assert again.rest()[-1].event == "done"


def test_a_reader_that_has_everything_of_a_silent_run_is_answered_at_once(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_HEARTBEAT": "120"})
    client = server.client()  # waits for 30 s
    stream = client.send("x", model="silent")
    stream.take(2)
    for worker in server.workers():
        follower = client.follow(stream.run_id, 2, connection=client.connect_to(worker))
        assert follower.status == 200
        assert follower.response.read1(5) == b": hb\n"
    client.stop(stream.run_id)

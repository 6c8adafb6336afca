"""Deploys: workers told to leave, one by one, all at once, by a reload or by count. No reader sees an error (P6, P7).

Under load the short form is three deploys in a quarter of a minute, the long form a minute with one every five seconds;
with the log in Redis, too, and in the long form on PostgreSQL alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from flaskchat import sse
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, assert_whole, everything, follow_to_the_end, rows
from tests.server.client import Client, deadline, seqs, text
from tests.server.crowd import Crowd
from tests.server.dump import Tap
from tests.server.history import History

# Seconds that gunicorn waits for a worker before it kills it: well above what its replies are given.
GRACE = 30
DRAIN = 8


def test_a_run_longer_than_the_drain_is_interrupted_with_its_text(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "2"}, app=FAULTY)
    client = server.client()
    stream = client.send("2000 40")
    stream.take(5)
    before = text(stream.frames)
    told_at = time.monotonic()
    os.kill(stream.worker, signal.SIGTERM)
    frames = everything(stream)
    assert 1.8 < time.monotonic() - told_at < 25, "it would take 50 s"
    assert_whole(client, stream, frames, "interrupted")
    assert text(frames).count("word") > before.count("word") + 10, "the run went on within the drain's time"
    assert "restarted" in json.loads(frames[-1].data)["message"]


def test_a_leaving_worker_takes_no_question_and_still_answers_followers_and_stop(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "20"}, app=FAULTY, args=["--keep-alive", "30"])
    client = server.client()
    stream = client.send("3000 40")
    stream.take(5)
    kept = [client.connect_to(stream.worker) for _ in range(24)]
    os.kill(stream.worker, signal.SIGTERM)
    for _ in deadline(30, "the worker to find that it is to leave"):  # it closes a connection after each answer then
        if "draining" in client.request("GET", "/readyz", connection=kept.pop()).json().get("wrong", ()):
            break
    refused = client.send("5 0", connection=kept[0])
    assert refused.worker == stream.worker
    assert (refused.status, refused.json()["code"]) == (503, "draining")
    assert refused.headers["Retry-After"] == "1"
    follow = client.follow(stream.run_id, connection=kept[1])
    assert (follow.worker, follow.status) == (stream.worker, 200), "a browser does not come back after another status"
    assert len(follow.take(8)) == 8
    stopped = client.stop(stream.run_id, connection=kept[2])
    assert stopped["state"] == "stopped"
    for found in (stream, follow):
        assert_whole(client, stream, everything(found), "stopped")


def test_at_a_leaving_worker_streams_stay_until_its_time_is_over(serve: Callable[..., Server]) -> None:
    """At a reload those who follow are still starting: whoever was sent away at once would wait for them in silence."""
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "1.5"}, app=FAULTY, args=["--keep-alive", "10"])
    client = server.client()
    leaving, other = server.workers()
    message = {"message": {"id": "here", "text": "2000 40"}}
    own = client.request("POST", "/conversation", message, connection=client.connect_to(leaving))
    message = {"message": {"id": "there", "text": "2000 40"}}
    foreign = client.request("POST", "/conversation", message, connection=client.connect_to(other))
    foreign.take(1)
    follower = client.follow(foreign.run_id, connection=client.connect_to(leaving))
    for stream in (own, follower):
        stream.take(3)
    told_at = time.monotonic()
    os.kill(leaving, signal.SIGTERM)
    follower.rest()
    assert 1.2 < time.monotonic() - told_at < 25, "it was sent away early, or late"
    assert follower.frames[-1].event == "delta"
    assert everything(own)[-1].event == "interrupted"
    assert client.stop(foreign.run_id, connection=client.connect_to(other))["state"] == "stopped"
    assert_whole(client, foreign, follow_to_the_end(client, foreign, list(follower.frames)), "stopped")


class Reading:
    """A response read byte by byte in a thread, so that its end can be judged."""

    def __init__(self, server: Server, client: Client, path: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port))
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {client.cookie}\r\n\r\n".encode())
        self.raw = b""
        self.ended_at = 0.0
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.sock.recv(65536):
                self.raw += data
                if self.raw.endswith(b"\r\n0\r\n\r\n"):
                    break
        self.ended_at = time.monotonic()

    def close(self) -> None:
        self.thread.join(30)
        self.sock.close()

    @property
    def clean(self) -> bool:
        return self.raw.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.backends("sqlite", long=("postgres", "postgres+redis"))
def test_at_the_master_s_sigterm_streams_end_cleanly_and_workers_leave_in_time(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "3"}, app=FAULTY, args=["--graceful-timeout", "60"])
    client = server.client()
    long = client.send("4000 40")
    long.take(2)
    fits = client.send("40 40")
    fits.take(2)
    silent = client.send("x", model="silent")
    silent.take(2)
    readings = [Reading(server, client, f"/runs/{s.run_id}/events") for s in (long, silent, fits) for _ in range(4)]
    for _ in deadline(30, "the readers"):
        if all(b"event: start" in reading.raw for reading in readings):
            break
    told_at = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(58)
    took = time.monotonic() - told_at
    for reading in readings:
        reading.close()
    assert all(reading.clean for reading in readings), "a body was cut"
    assert max(reading.ended_at for reading in readings) - told_at < 20, "a reply would go on for a minute"
    assert took < 30
    assert not any(word in server.log() for word in ("SIGKILL", "graceful timeout", "WORKER TIMEOUT", "Traceback"))
    states = dict(rows(server, "SELECT id, state FROM flaskchat_runs"))
    assert states[fits.run_id] == "done", "it had time enough"
    assert {states[long.run_id], states[silent.run_id]} == {"interrupted"}
    for stream in (long, silent):
        ((kept, frames),) = rows(
            server,
            "SELECT m.text, e.frames FROM flaskchat_messages m JOIN flaskchat_run_events e ON e.run_id = m.run_id "
            "WHERE m.run_id = ?",
            stream.run_id,
        )
        stored = sse.Decoder().feed(frames)
        assert text(stored) == kept
        assert seqs(stored) == list(range(1, len(stored) + 1))
        assert stored[-1].event == "interrupted"
        assert [frame[1:] for frame in stored[: len(stream.frames)]] == [frame[1:] for frame in stream.frames]
    assert rows(server, "SELECT count(*) FROM flaskchat_workers") == [(0,)], "a lease was not given back"


def test_a_reload_moves_readers_to_the_new_workers_without_an_error(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "15"}, app=FAULTY)
    client = server.client()
    old = set(server.workers())
    streams = [client.send("120 40") for _ in range(4)]
    for stream in streams:
        stream.take(3)
    server.process.send_signal(signal.SIGHUP)
    for stream in streams:
        stream.rest()
        frames = follow_to_the_end(client, stream, stream.frames)
        assert_whole(client, stream, frames, "done")
        assert text(frames) == "".join(f"word{n} ü€😀 " for n in range(120))
    for _ in deadline(30, "the old workers to be gone"):
        if not old & set(server.workers()):
            break
    assert client.send("5 0").rest()[-1].event == "done"
    assert "Traceback" not in server.log()


# -- under load ------------------------------------------------------------------------------------------------------


def reply(chance: random.Random) -> dict[str, object]:
    """One that fits into the drain's time."""
    return {"tokens": chance.randrange(20, 60), "rate": 25}


@pytest.fixture
def busy(serve: Callable[..., Server], model: Running) -> Callable[..., Server]:
    """Two workers with the misbehaving model, that are given time to drain."""

    def start(*args: str) -> Server:
        settings: dict[str, object] = {
            "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
            "FLASKCHAT_DRAIN": DRAIN,
        }  # fmt: skip
        return serve(settings, app=FAULTY, args=["--graceful-timeout", str(GRACE), *args])

    return start


def gone(pids: set[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may go while it is looked at
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def assert_nobody_minded(server: Server, crowd: Crowd) -> None:
    """No error in anybody's eyes, no reply cut short, and nobody was killed."""
    moves = sorted(crowd.moves) or [0.0]
    print(
        f"{crowd.replies} replies, {len(crowd.moves)} streams moved within {moves[len(moves) // 2]:.2f} s (median), "
        f"{moves[-1]:.2f} s (worst); {crowd.refused} questions sent elsewhere"
    )
    assert crowd.errors == []
    assert dict(rows(server, "SELECT state, count(*) FROM flaskchat_runs GROUP BY 1")).keys() == {"done"}
    for words in ("SIGKILL", "graceful timeout", "WORKER TIMEOUT", "Traceback"):
        assert words not in server.log()


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_deploys_under_load_show_no_error_and_cut_no_reply_that_fits(
    busy: Callable[..., Server], model: Running, long: bool, seed: int
) -> None:
    """In turn a worker is told to leave (SIGTERM) and all are replaced (SIGHUP)."""
    server = busy()
    chance, history, slowest = random.Random(seed), History(), 0.0
    with Tap(server) as tap, Crowd(server, history, 8, reply, seed) as crowd:
        for number in range(12 if long else 3):
            crowd.wait(6)
            began = time.monotonic()
            old = set(server.workers())
            if number % 2:
                told = {chance.choice(sorted(old))}
                os.kill(*told, signal.SIGTERM)
            else:
                told = old
                server.process.send_signal(signal.SIGHUP)
            history.fault("told to leave")
            for _ in deadline(120, "those who were told to leave to be gone, and others in their place"):
                if gone(told) and len(server.workers()) == 2:
                    break
            slowest = max(slowest, time.monotonic() - began)
            while long and time.monotonic() - began < 5:
                time.sleep(0.05)
        crowd.wait(6)
    print(f"a deploy took {slowest:.1f} s at most")
    assert_nobody_minded(server, crowd)
    judge(history, server, model, tap=tap)


def test_workers_that_are_replaced_by_count_show_no_error(
    busy: Callable[..., Server], model: Running, long: bool, seed: int
) -> None:
    """Here gunicorn replaces a worker only when its last stream is gone: so streams have to move at once."""
    server = busy("--max-requests", "20", "--max-requests-jitter", "10")
    history, seen = History(), set(server.workers())
    with Tap(server) as tap, Crowd(server, history, 8, reply, seed) as crowd:
        for _ in deadline(900 if long else 120, "workers to be replaced"):
            seen |= set(server.workers())
            if len(seen) >= (20 if long else 4):
                break
        crowd.wait(6)
    assert_nobody_minded(server, crowd)
    judge(history, server, model, tap=tap)

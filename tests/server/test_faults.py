"""Workers stopped, killed or told to leave, databases locked and disks full: every run ends once, with its text."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import psutil

from flaskchat import sse
from flaskchat.log.base import Append
from flaskchat.log.journal import decode_row
from flaskchat.sweep import CONTROL
from tests.conftest import Server
from tests.server.checks import (
    FAULTY,
    assert_whole,
    database,
    everything,
    follow_to_the_end,
    rows,
    start_of,
    write_lock,
)  # fmt: skip
from tests.server.client import Client, Stream, deadline, seqs, text

SOON = {"TEST_SWEEP_ROUND": "0.6"}


# -- a worker that is held up, and whose lease is taken over ---------------------------------------------------------


def writers_of(server: Server, streams: list[Stream]) -> dict[str, int]:
    """Who appended to these runs, and how often."""
    wanted, found = {stream.run_id for stream in streams}, Counter[str]()
    for worker, version, data in rows(server, "SELECT worker_id, version, data FROM flaskchat_journal"):
        found[worker] += sum(isinstance(e, Append) and e.run_id in wanted for e in decode_row(version, data))
    return {worker: count for worker, count in found.items() if count}


def test_a_worker_that_was_stopped_for_too_long_is_fenced_and_starts_anew(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "0.5", **SOON}, app=FAULTY)
    client = server.client()
    streams = [client.send("4000 30")]
    while len({stream.worker for stream in streams}) < 2:
        streams.append(client.send("4000 30"))
        streams[-1].take(2)
    stopped = streams[0].worker
    mine = [stream for stream in streams if stream.worker == stopped]
    for stream in mine:
        stream.take(2)
    silent = {"message": {"id": "s", "text": "x"}, "model": "silent"}
    mine.append(client.request("POST", "/conversation", silent, connection=client.connect_to(stopped)))
    mine[-1].take(2)
    other = next(pid for pid in server.workers() if pid != stopped)
    os.kill(stopped, signal.SIGSTOP)
    try:
        ended = {}
        for stream in mine:  # followed elsewhere while their worker stands still
            again = client.follow(stream.run_id, connection=client.connect_to(other))
            ended[stream.run_id] = again.rest()
            assert_whole(client, stream, ended[stream.run_id], "interrupted")
        ((old_lease,),) = set(rows(server, "SELECT worker_id FROM flaskchat_runs WHERE id = ?", mine[0].run_id))
        before = writers_of(server, mine)
        assert set(before) == {old_lease, CONTROL}
    finally:
        os.kill(stopped, signal.SIGCONT)
    for stream in mine:  # the readers that waited at the stopped worker are sent away, and find the end elsewhere
        stream.rest()
        frames = follow_to_the_end(client, stream, stream.frames)
        assert [frame[1:] for frame in frames] == [frame[1:] for frame in ended[stream.run_id]]
    assert "was taken over while this worker was held up" in server.log()
    fresh = client.request(
        "POST", "/conversation", {"message": {"id": "f", "text": "20 100"}}, connection=client.connect_to(stopped)
    )
    assert fresh.worker == stopped
    assert_whole(client, fresh, fresh.rest(), "done")
    ((epoch,),) = rows(server, "SELECT epoch FROM flaskchat_runs WHERE id = ?", fresh.run_id)
    assert epoch == 2
    unharmed = [stream for stream in streams if stream.worker == other]
    for stream in unharmed:
        assert client.stop(stream.run_id)["state"] == "stopped"
        frames = everything(stream)
        assert_whole(client, stream, frames, "stopped")
    assert writers_of(server, mine) == before, "something was appended to a run that had ended"
    for stream in mine:
        start = start_of(stream)
        assert client.message(start["conversation_id"], start["message_id"])["text"] == text(ended[stream.run_id])
    leases = {worker for (worker,) in rows(server, "SELECT id FROM flaskchat_workers")}
    for worker, count in rows(
        server, "SELECT worker_id, count(*) FROM flaskchat_runs WHERE state = 'running' GROUP BY 1"
    ):
        assert worker in leases, count


# -- all at once -----------------------------------------------------------------------------------------------------


def test_after_a_kill_of_everything_a_new_start_ends_every_run_with_what_was_seen(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "0.5", **SOON}, app=FAULTY)
    client = server.client()
    streams = [client.send("4000 40") for _ in range(6)]
    seen = [stream.take(8) for stream in streams]
    done = client.send("5 0")
    kept = done.rest()
    for pid in [server.process.pid, *server.workers()]:
        psutil.Process(pid).kill()
    server.process.wait(5)
    for stream, frames in zip(streams, seen, strict=True):
        with contextlib.suppress(Exception):
            stream.rest()
        frames[:] = stream.frames
    again = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "0.5", **SOON}, app=FAULTY)
    visitor = again.client()
    visitor.cookie = client.cookie
    for stream, frames in zip(streams, seen, strict=True):
        whole = follow_to_the_end(visitor, stream, frames)
        assert_whole(visitor, stream, whole, "interrupted")
        assert whole[: len(frames)] == frames
    assert [frame[1:] for frame in visitor.follow(done.run_id).rest()] == [frame[1:] for frame in kept]
    assert rows(again, "SELECT count(*) FROM flaskchat_runs WHERE state = 'running'") == [(0,)]
    start = json.loads(seen[0][0].data)
    further = visitor.request(
        "POST", "/conversation", {"action": "continue", "message_id": start["message_id"], "request_id": "go-on"}
    )
    assert further.status == 200, further.json()
    assert further.take(1)[0].event == "start"
    assert visitor.stop(further.run_id)["state"] == "stopped"


# -- told to leave ---------------------------------------------------------------------------------------------------


def test_a_run_longer_than_the_drain_is_interrupted_with_its_text(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "1"}, app=FAULTY)
    client = server.client()
    stream = client.send("2000 40")
    stream.take(5)
    os.kill(stream.worker, signal.SIGTERM)
    told_at = time.monotonic()
    stream.rest()
    assert time.monotonic() - told_at < 1.5, "the stream did not end within a second"
    frames = follow_to_the_end(client, stream, stream.frames)
    assert time.monotonic() - told_at < 4
    assert_whole(client, stream, frames, "interrupted")
    assert len(text(frames)) > len(text(stream.frames)), "the run went on within the drain's time"
    assert "restarted" in json.loads(frames[-1].data)["message"]


def test_a_leaving_worker_takes_no_question_and_still_answers_followers_and_stop(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "4"}, app=FAULTY, args=["--keep-alive", "10"])
    client = server.client()
    stream = client.send("3000 40")
    stream.take(5)
    kept = [client.connect_to(stream.worker) for _ in range(4)]
    os.kill(stream.worker, signal.SIGTERM)
    frames = everything(stream)
    refused = client.send("5 0", connection=kept[0])
    assert refused.worker == stream.worker
    assert (refused.status, refused.json()["code"]) == (503, "draining")
    assert refused.headers["Retry-After"] == "1"
    follow = client.follow(stream.run_id, frames[-1].id, connection=kept[1])
    assert (follow.worker, follow.status) == (stream.worker, 200), "a browser does not come back after another status"
    frames += follow.rest()
    assert frames[-1].event == "delta"
    stopped = client.stop(stream.run_id, connection=kept[2])
    assert stopped["state"] == "stopped"
    assert_whole(client, stream, follow_to_the_end(client, stream, frames), "stopped")


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
        self.thread.join(10)
        self.sock.close()

    @property
    def clean(self) -> bool:
        return self.raw.endswith(b"\r\n0\r\n\r\n")


def test_at_the_master_s_sigterm_streams_end_cleanly_and_workers_leave_in_time(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "2"}, app=FAULTY, args=["--graceful-timeout", "15"])
    client = server.client()
    long = client.send("4000 40")
    long.take(2)
    fits = client.send("40 40")
    fits.take(2)
    silent = client.send("x", model="silent")
    silent.take(2)
    readings = [Reading(server, client, f"/runs/{s.run_id}/events") for s in (long, silent, fits) for _ in range(4)]
    for _ in deadline(5, "the readers"):
        if all(b"event: start" in reading.raw for reading in readings):
            break
    server.process.send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    server.process.wait(14)
    took = time.monotonic() - told_at
    for reading in readings:
        reading.close()
    assert all(reading.clean for reading in readings), "a body was cut"
    assert max(reading.ended_at for reading in readings) - told_at < 1.5
    assert took < 7
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
    server = serve({"FLASKCHAT_MODEL": "count", "FLASKCHAT_DRAIN": "5"}, app=FAULTY)
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
    for _ in deadline(10, "the old workers to be gone"):
        if not old & set(server.workers()):
            break
    assert client.send("5 0").rest()[-1].event == "done"
    assert "Traceback" not in server.log()


# -- the database ----------------------------------------------------------------------------------------------------


def test_a_fast_python_model_loses_nothing_while_the_database_is_locked(serve: Callable[..., Server]) -> None:
    """More comes than may wait for the log: the model waits, and goes on by itself."""
    server = serve({"FLASKCHAT_MODEL": "lines", "FLASKCHAT_GAP_TIMEOUT": "4"}, app=FAULTY)
    client = server.client()
    stream = client.send("1500 700")
    stream.take(3)
    with write_lock(server):
        time.sleep(0.05)
        for _ in deadline(10, "the workers to notice"):
            if "the log cannot be used" in server.log():
                break
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert client.get("/healthz").status == 200
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    assert text(frames) == "".join(f"{n:06d}".ljust(1023, ".") + "\n" for n in range(1500))


def test_a_full_disk_loses_nothing_and_the_replies_go_on_when_there_is_room(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count"}, app=FAULTY)
    client = server.client()
    stream = client.send("200 50")
    stream.take(20)
    unlimited = psutil.Process(server.workers()[0]).rlimit(psutil.RLIMIT_FSIZE)
    wal = database(server).with_name("flaskchat.sqlite3-wal")
    for pid in server.workers():  # every write past the end of what there is fails
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (wal.stat().st_size, unlimited[1]))
    try:
        for _ in deadline(10, "the workers to notice"):
            if "the log cannot be used" in server.log():
                break
        refused = client.send("5 0")
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        assert client.get("/healthz").status == 200
        assert client.json(f"/conversations/{start_of(stream)['conversation_id']}")["running"]
    finally:
        for pid in server.workers():
            psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, unlimited)
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    assert text(frames) == "".join(f"word{n} ü€😀 " for n in range(200))
    assert client.send("5 0").rest()[-1].event == "done"

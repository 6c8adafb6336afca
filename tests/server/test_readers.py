"""Readers: heartbeats, clients that vanish or stall, cursors that mean nothing, memory let go of (P2, P8).

On SQLite and with the log in Redis; the long form on PostgreSQL alone as well.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import psutil
import pytest

from flaskchat import sse
from flaskchat.models import Start
from tests.backends import Backend
from tests.conftest import Server
from tests.server.client import Client, Stream, deadline, seqs, text

pytestmark = pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))

SETTINGS = {
    "FLASKCHAT_MODEL": "lines",
    "FLASKCHAT_MODELS": "silent,count",
    "FLASKCHAT_HEARTBEAT": "0.3",
    "FLASKCHAT_STALL_TIMEOUT": "5",  # a test that reads may pause for less
    "FLASKCHAT_DRAIN": "1",
    "FLASKCHAT_LIVE_BYTES": "65536",
    "FLASKCHAT_MAX_REPLY_BYTES": str(64 << 20),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_backend: Backend) -> Iterator[Server]:
    """One server for the tests that leave it as they found it: two workers, short times, little memory for runs."""
    folder = tmp_path_factory.mktemp("readers")
    server = Server(
        folder, SETTINGS, workers=2, kind="gevent", app="tests.server.faulty:app", args=[], backend=shared_backend
    )
    yield server
    server.close()
    print(server.log())


def streams_open(client: Client, worker: int) -> int:
    """-1 while the worker is not ready."""
    return int(client.request("GET", "/readyz", connection=client.connect_to(worker)).json().get("streams", -1))


def raw_request(server: Server, client: Client, method: str, path: str, body: object = None) -> socket.socket:
    """A request on a socket with a small receive buffer, whose answer nobody reads."""
    data = b"" if body is None else json.dumps(body).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nCookie: {client.cookie}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


def other_worker(server: Server, stream: Stream) -> int:
    return next(pid for pid in server.workers() if pid != stream.worker)


def lines(number: int) -> str:
    return "".join(f"{n:06d}".ljust(1023, ".") + "\n" for n in range(number))


# -- heartbeats ------------------------------------------------------------------------------------------------------


def test_silence_is_broken_by_a_bare_comment_line_on_either_worker(shared: Server) -> None:
    client = shared.client()
    began = time.monotonic()
    stream = client.send("x", model="silent")
    stream.take(2)
    foreign = client.follow(stream.run_id, 2, connection=client.connect_to(other_worker(shared, stream)))
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda s=s: found.append(read_for(s, 1.5))) for s in (stream, foreign)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    most = (time.monotonic() - began) / 0.3 + 2  # what came before anybody read is found as well
    client.stop(stream.run_id)
    assert len(found) == 2
    for beats in found:
        assert set(beats.split(b"\n")) == {b": hb", b""}
        assert b"\n\n" not in beats
        assert 2 <= beats.count(b": hb\n") <= most, "one every 0.3 s"


def read_for(stream: Stream, seconds: float) -> bytes:
    """What comes in so many seconds, and two lines at least; the connection stays as it is."""
    found, until = b"", time.monotonic() + seconds
    while time.monotonic() < until or found.count(b"\n") < 2:
        data = stream.response.read1(65536)
        assert data
        found += data
    return found


def test_a_stream_that_moves_gets_no_heartbeat(shared: Server) -> None:
    """The best of five: a busy machine makes one stand still."""
    for _ in range(5):
        stream = shared.client().send("60 50", model="count")
        stream.rest()
        if stream.heartbeats == 0:
            return
    raise AssertionError(f"{stream.heartbeats} heartbeats")


def test_the_first_frame_has_the_retry_though_a_heartbeat_came_before_it(shared: Server) -> None:
    client = shared.client()
    stream = client.send("x", model="silent")
    stream.take(2)
    late = client.follow(stream.run_id, 2)
    beat = late.response.read1(65536)
    assert set(beat.splitlines()) == {b": hb"}
    client.stop(stream.run_id)
    (frame,) = late.rest()
    assert frame.event == "stopped"
    assert late.raw.lstrip(b": hb\n").startswith(b"retry: ")


# -- clients that go or stall ----------------------------------------------------------------------------------------


def test_the_place_of_a_client_that_vanished_is_free_at_once(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "silent", "FLASKCHAT_HEARTBEAT": "60", "FLASKCHAT_DRAIN": "1"})
    client = server.client()
    stream = client.send("x", model="silent")
    stream.take(2)
    own, other = stream.worker, other_worker(server, stream)
    foreign = client.follow(stream.run_id, 2, connection=client.connect_to(other))
    assert (streams_open(client, own), streams_open(client, other)) == (1, 1)
    for left, worker in ((stream, own), (foreign, other)):
        left.close()
        for _ in deadline(30, "the place to be free before the next heartbeat"):
            if streams_open(client, worker) == 0:
                break
    client.stop(stream.run_id)


def memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def test_clients_that_do_not_read_are_cut_off_and_slow_nobody(shared: Server) -> None:
    """A run of 4 MB, six clients that read nothing of it, and one that reads all."""
    client = shared.client()
    client.json("/conversations")
    client_id = uuid.uuid4().hex
    body = {"message": {"id": client_id, "text": "4000 3000"}}
    stalled = [raw_request(shared, client, "POST", "/conversation", body)]
    stream = client.send("4000 3000", client_id=client_id)
    stalled += [raw_request(shared, client, "GET", f"/runs/{stream.run_id}/events") for _ in range(5)]
    before = {pid: memory(pid) for pid in shared.workers()}
    began = time.monotonic()
    most = 0
    for frame in stream:
        assert frame
        most = max(most, *(memory(pid) - before[pid] for pid in before))
    assert text(stream.frames) == lines(4000)
    took = time.monotonic() - began
    print(f"{took:.1f} s for 4 MB; {most >> 20} MiB more memory at most")
    assert most < 60 << 20
    for _ in deadline(30, "the stalled clients' places to be free"):
        if all(streams_open(client, pid) == 0 for pid in shared.workers()):
            break
    for sock in stalled:
        sock.close()


def test_a_client_that_does_not_read_a_finished_run_is_cut_off_too(shared: Server) -> None:
    client = shared.client()
    stream = client.send("9000 0")
    stream.rest()
    stalled = [raw_request(shared, client, "GET", f"/runs/{stream.run_id}/events") for _ in range(3)]
    for _ in deadline(30, "the stalled clients to be counted"):
        if sum(streams_open(client, pid) for pid in shared.workers()) == 3:
            break
    for _ in deadline(30, "the stalled clients' places to be free"):
        if all(streams_open(client, pid) == 0 for pid in shared.workers()):
            break
    for sock in stalled:
        sock.close()


# -- cursors that mean nothing ---------------------------------------------------------------------------------------


def test_who_was_told_by_another_worker_before_the_writer_itself_knows_gets_no_reset(shared: Server) -> None:
    client = shared.client()
    stream = client.send("2000 40")
    seen, run_id, writer = stream.take(1), stream.run_id, stream.worker
    elsewhere = client.follow(run_id, 1, connection=client.connect_to(other_worker(shared, stream)))
    assert client.get("/linger?seconds=0.4", connection=client.connect_to(writer)).status == 200
    try:
        for _ in range(5):
            seen += elsewhere.take(1)
            back = client.follow(run_id, seen[-1].id, connection=client.connect_to(writer))
            assert back.status == 200
            seen += back.take(1)
            back.close()
            while int(seen[-1].id) > int(elsewhere.frames[-1].id):
                elsewhere.take(1)
    finally:
        client.get("/linger?seconds=0", connection=client.connect_to(writer))
        client.stop(run_id)
    assert [frame.event for frame in seen] == ["start", *["delta"] * 10]
    assert seqs(seen) == list(range(1, 12))


@pytest.mark.parametrize("cursor", ["999999", "x", "-1", "1.5", "9" * 30, "\u00b2"])
def test_a_cursor_that_means_nothing_gets_one_reset_then_live(shared: Server, cursor: str) -> None:
    client = shared.client()
    stream = client.send("60 60", model="count")
    stream.take(20)
    results = {}
    for worker in shared.workers():
        connection = client.connect_to(worker)
        headers = {"Last-Event-ID": cursor.encode("utf-8").decode("latin-1")}
        results[worker] = client.request("GET", f"/runs/{stream.run_id}/events", headers=headers, connection=connection)
    whole = "".join(f"word{n} ü€😀 " for n in range(60))
    for found in results.values():
        frames = found.rest()
        assert [frame.event for frame in frames].count("reset") == 1
        reset = json.loads(frames[0].data)
        assert frames[0].event == "reset"
        assert frames[0].id == ""
        assert reset["text"] + text(frames) == whole
        assert seqs(frames[1:]) == list(range(reset["seq"] + 1, reset["seq"] + len(frames)))
        assert frames[-1].event == "done"
    stream.rest()
    finished = client.request("GET", f"/runs/{stream.run_id}/events", headers=headers)
    reset_frame, last = finished.rest()
    assert json.loads(reset_frame.data)["text"] == whole
    assert json.loads(reset_frame.data)["seq"] + 1 == int(last.id)
    assert last.event == "done"


def test_the_query_s_cursor_counts_where_there_is_no_header(shared: Server) -> None:
    client = shared.client()
    stream = client.send("5 0", model="count")
    last = int(stream.rest()[-1].id)
    assert client.get(f"/runs/{stream.run_id}/events?last_event_id={last}").status == 204
    assert seqs(client.get(f"/runs/{stream.run_id}/events?last_event_id={last - 1}").rest()) == [last]
    header = {"Last-Event-ID": str(last)}
    assert client.get(f"/runs/{stream.run_id}/events?last_event_id=1", headers=header).status == 204


def test_the_end_is_204_on_both_workers_at_once_and_later(shared: Server) -> None:
    client = shared.client()
    stream = client.send("5 0", model="count")
    last = stream.rest()[-1]
    for worker in shared.workers():
        for cursor, status in ((last.id, 204), (int(last.id) - 1, 200), (0, 200)):
            found = client.follow(stream.run_id, cursor, connection=client.connect_to(worker))
            assert found.status == status
            found.response.read()


# -- memory let go of ------------------------------------------------------------------------------------------------


def test_what_memory_has_let_go_of_is_read_from_the_log(shared: Server) -> None:
    """The other worker holds 64 kB of a run of 400 kB; its readers begin at the start, behind, and nowhere."""
    client = shared.client()
    stream = client.send("400 100")
    other = other_worker(shared, stream)
    failures: list[str] = []

    def check(cursor: str, reader: Stream) -> None:
        frames = reader.rest()
        numbered = [frame for frame in frames if frame.event != "reset"]
        if seqs(numbered) != list(range(int(numbered[0].id), int(numbered[-1].id) + 1)):
            failures.append(f"{cursor}: a gap or a copy: {seqs(numbered)}")
        said = "".join(json.loads(frame.data)["text"] for frame in frames if frame.event in ("reset", "delta"))
        if not lines(400).endswith(said) or (cursor in ("0", "ahead", "99999") and said != lines(400)):
            failures.append(f"{cursor}: not the text")
        if frames[-1].event != "done":
            failures.append(f"{cursor}: ended with {frames[-1].event}")

    threads = []

    def read(cursor: str, reader: Stream) -> None:
        threads.append(threading.Thread(target=check, args=(cursor, reader)))
        threads[-1].start()

    read("0", stream)
    first = client.follow(stream.run_id, connection=client.connect_to(other))  # the other worker follows from now on
    read("0", first)
    for _ in deadline(30, "more of the run than is held"):
        if len(first.frames) > 150:
            break
    for cursor in ("0", "3", "100", "ahead", "99999"):
        read(cursor, client.follow(stream.run_id, cursor, connection=client.connect_to(other)))
    for thread in threads:
        thread.join(60)
    assert failures == []


def events_of(stream: Stream) -> bytes:
    """The body without what belongs to this response alone."""
    return re.sub(rb"^retry: \d+\n", b"", stream.raw.replace(sse.HEARTBEAT, b""))


def test_frames_of_one_run_are_the_same_bytes_everywhere(shared: Server) -> None:
    client = shared.client()
    stream = client.send("30 60", model="count")
    other = client.follow(stream.run_id, connection=client.connect_to(other_worker(shared, stream)))
    bodies = []
    for found in (stream, other):
        found.rest()
        bodies.append(events_of(found))
    finished = client.follow(stream.run_id)
    finished.rest()
    bodies.append(events_of(finished))
    assert len(set(bodies)) == 1
    assert bodies[0].startswith(sse.encode(1, Start(**json.loads(stream.frames[0].data))))

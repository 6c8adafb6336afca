"""Streams whose connection is taken over from gunicorn: what that spares, what the client sees, and when it is not."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable

import psutil
import pytest

from flaskchat import sse
from flaskchat.outlet import Offer, Outlet
from tests.conftest import Server
from tests.server.checks import assert_whole
from tests.server.client import deadline, seqs, text


def test_open_streams_take_no_connection_of_the_worker_s_and_no_greenlet(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MAX_STREAMS": "60"}, workers=1, args=["--worker-connections", "6"])
    client = server.client(timeout=60)
    streams = [client.send("4000 20")]
    before = 0
    for _ in range(40):  # many times what the worker has connections for
        streams.append(client.follow(streams[0].run_id))
        assert streams[-1].status == 200
        streams[-1].take(1)
        before = before or client.json("/gauge")["greenlets"]
    for stream in streams:
        assert seqs(stream.take(3))[-1] >= 3
    for _ in deadline(30, "no greenlet for each stream"):
        if client.json("/gauge")["greenlets"] <= before + 3:
            break
    client.stop(streams[0].run_id)
    for stream in streams:
        assert stream.rest()[-1].event == "stopped"


def test_what_the_client_sees_is_whole_http(serve: Callable[..., Server]) -> None:
    server = serve(workers=1)
    client = server.client()
    stream = client.send("20 50")
    assert (stream.headers["Transfer-Encoding"], stream.headers["Connection"]) == ("chunked", "close")
    frames = stream.rest()  # http.client raises if the last chunk is missing
    assert_whole(client, stream, frames, "done")
    assert client.get("/plain").status == 200

    # HTTP/1.0, as nginx asks unless it is told otherwise: no chunks, and the connection's end is the body's
    run = client.send("30 60")
    with socket.create_connection(("127.0.0.1", server.port), 20) as plain:
        plain.sendall(f"GET /runs/{run.run_id}/events HTTP/1.0\r\nCookie: {client.cookie}\r\n\r\n".encode())
        received = b""
        while data := plain.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    run.rest()
    assert b"id: 1\n" + body.partition(b"id: 1\n")[2] == b"id: 1\n" + run.raw.partition(b"id: 1\n")[2]


def test_a_finished_reply_leaves_the_connection_to_the_server_for_the_next_request(server: Server) -> None:
    client = server.client()
    stream = client.send("5 0")
    stream.rest()
    connection = client.connect()
    again = client.follow(stream.run_id, connection=connection)
    again.rest()
    assert client.get("/plain", connection=connection).status == 200


def test_a_middleware_that_wraps_the_answer_gets_all_of_it(serve: Callable[..., Server]) -> None:
    server = serve(workers=1, app="tests.server.wrapped:app")
    client = server.client()
    stream = client.send("40 60")
    follower = client.follow(stream.run_id)
    assert follower.headers["X-Wrapped"] == "yes"
    follower.rest()
    assert_whole(client, stream, stream.rest(), "done")
    assert text(follower.frames) == text(stream.frames)
    assert follower.raw.count(b":X\n") >= 10, "every piece passed through it"


def test_clients_that_leave_take_their_descriptor_with_them(serve: Callable[..., Server]) -> None:
    server = serve(workers=1)
    client = server.client()
    run = client.send("4000 20")
    run.take(2)
    worker = psutil.Process(run.worker)
    before = worker.num_fds()
    for _ in range(3):
        readers = [client.follow(run.run_id) for _ in range(20)]
        for reader in readers:
            reader.take(2)
        assert worker.num_fds() >= before + 10
        for reader in readers:
            reader.close()
    for _ in deadline(60, "the descriptors of readers that have left"):
        if worker.num_fds() <= before + 2:
            break
    assert run.take(2)


def test_a_reader_that_falls_behind_a_fast_reply_gets_every_byte(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_SEND_BUFFER": "4096"}, workers=1)
    client = server.client(timeout=60)
    stream = client.send("60000 0")
    slow = client.follow(stream.run_id)
    slow.take(1)
    stream.rest()  # all of it has been written to the one that reads
    slow.rest()
    assert text(stream.frames) == text(slow.frames)
    assert seqs(slow.frames) == list(range(1, len(slow.frames) + 1))


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    theirs.settimeout(60)
    return ours, theirs


def test_an_outlet_keeps_what_the_kernel_does_not_take_and_sends_nothing_twice(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    outlet = Outlet(Offer(ours, chunked=True))
    ours.close()
    sent = b""
    while outlet.write(piece := sse.HEARTBEAT * 400):
        sent += piece
    sent += piece
    received = b""
    while not outlet.flush():
        received += theirs.recv(1024)
    outlet.finish()
    while not outlet.flush():
        received += theirs.recv(1024)
    outlet.close()
    while data := theirs.recv(65536):
        received += data
    theirs.close()

    class Body:
        def makefile(self, *_: object) -> object:
            import io

            return io.BytesIO(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + received)

    response = http.client.HTTPResponse(Body())  # type: ignore[arg-type]
    response.begin()
    assert response.read() == sent


def test_a_body_that_was_cut_does_not_look_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    outlet = Outlet(Offer(ours, chunked=True))
    ours.close()
    assert outlet.write(b"id: 1\n")
    outlet.close()
    assert theirs.recv(100) == b"6\r\nid: 1\n\r\n"
    assert theirs.recv(100) == b""
    theirs.close()

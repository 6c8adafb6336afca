"""Clients that leave badly, read slowly or not at all, or send slowly: nobody else notices, and what they held comes
back (P8, P11). The storm of 4,000 is in test_storm.py.

The short form has tens of clients and seconds; the long one hundreds, and a minute of a byte a second.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Server, free_port
from tests.server import cable, raw
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, rows
from tests.server.client import deadline
from tests.server.dump import Gauge, wait_back
from tests.server.history import History, Visitor

STALL = 2


def settings(model: Running) -> dict[str, object]:
    return {
        "FLASKCHAT_MODEL": "openai:fake",
        "FLASKCHAT_OPENAI_BASE_URL": model.base_url,
        "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_MODELS": "lines,silent",
        "FLASKCHAT_HEARTBEAT": "0.3",
        "FLASKCHAT_STALL_TIMEOUT": str(STALL),
        "FLASKCHAT_BODY_TIMEOUT": "2",
        "FLASKCHAT_GAP_TIMEOUT": "600",
        "FLASKCHAT_MAX_REPLY_BYTES": str(64 << 20),
        "FLASKCHAT_DRAIN": "1",
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Server]:
    """Two workers with short times."""
    folder = tmp_path_factory.mktemp("clients")
    server = Server(folder, settings(model), workers=2, kind="gevent", app=FAULTY, args=[])
    warm(server)
    yield server
    server.close()
    print(server.log())


def warm(server: Server) -> None:
    """Let every worker open what it opens at its first use and then keeps: connections and threads for the database."""
    client = server.client()
    for pid in server.workers():
        client.send("1 0", model="lines", connection=client.connect_to(pid)).rest()
        connections = [client.connect_to(pid) for _ in range(8)]
        asking = [
            threading.Thread(target=lambda c=c: client.request("GET", "/conversations", connection=c).json())
            for c in connections
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    client.close()


def places(server: Server) -> int:
    """Streams that are open in all workers."""
    client = server.client()
    found = 0
    for pid in server.workers():
        connection = client.connect_to(pid)
        found += int(client.request("GET", "/readyz", connection=connection).json()["streams"])
        connection.close()
    return found


def wait_places(server: Server, wanted: int, seconds: float) -> float:
    """Wait until so many streams are open, or fewer: others may end meanwhile. Returns how long it took."""
    began = time.monotonic()
    for _ in deadline(seconds, f"{wanted} open streams"):
        if places(server) <= wanted:
            break
    return time.monotonic() - began


def visitor_of(server: Server, history: History) -> Visitor:
    visitor = history.visitor("alice", server.client())
    visitor.client.json("/conversations")
    return visitor


# -- clients that leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_clients_that_leave_at_once_leave_nothing_behind_and_find_the_rest_later(
    shared: Server, model: Running, long: bool, how: str
) -> None:
    """Half of them leave a reply that moves, half one that is silent (long: 400 clients; short: 30)."""
    before = Gauge.of(shared, model)
    history = History()
    visitor = visitor_of(shared, history)
    moving = visitor.ask(tokens=400, rate=80)
    still = visitor.ask(tokens=10, rate=20, fault="stall", after=5, hold=60)
    moving.take(5)
    still.take(2)
    readings = [
        raw.follow(visitor, (moving, still)[n % 2].run_id) for n in range(400 if long else 30)
    ]
    assert {reading.status for reading in readings} == {200}
    for reading in readings:
        reading.until(2)
    assert {reading.worker for reading in readings} == set(shared.workers())
    for reading in readings:
        reading.gone(reading.raw.reset if how == "rst" else reading.raw.close)
    took = wait_places(shared, 2, 30)
    print(f"{len(readings)} places were free after {took:.2f} s")
    back = [visitor.tab() for _ in range(10)]
    for tab, reading in zip(back, readings, strict=False):
        if reading.run_id == moving.run_id:
            tab.to_the_end(reading.run_id, reading.last)
    assert visitor.stop(still.run_id).body["state"] == "stopped"
    still.rest()
    moving.rest()
    judge(history, shared, model)
    for tab in back:
        tab.client.close()
    visitor.client.close()
    assert wait_back(shared, before, model) == []


# -- a pulled cable ----------------------------------------------------------------------------------------------------


def test_a_reader_whose_cable_is_pulled_is_freed_and_goes_on_elsewhere(shared: Server, model: Running) -> None:
    """Nothing arrives of it any more, no FIN, no RST, no acknowledgement; and nobody else is slowed."""
    before = Gauge.of(shared, model)
    history = History()
    visitor = visitor_of(shared, history)
    moving = visitor.ask(tokens=100_000, rate=150)
    still = visitor.ask(tokens=10, rate=20, fault="stall", after=5, hold=60)
    moving.take(5)
    still.take(2)
    readings = [raw.follow(visitor, (moving, still)[n % 2].run_id) for n in range(12)]
    for reading in readings:
        reading.until(2)
    for reading in readings:
        reading.raw.unplug()
    assert places(shared) == 14
    # The owner of the cable is back at once, by another way, while the old place is still taken.
    tab = visitor.tab()
    threads = [threading.Thread(target=tab.to_the_end, args=(moving.run_id, readings[0].last))]
    threads.append(threading.Thread(target=moving.rest))
    for thread in threads:
        thread.start()
    took = wait_places(shared, 3, STALL + 30)
    print(f"the places were free {took:.1f} s after the cable was pulled; a stalled client has {STALL} s")
    visitor.stop(moving.run_id)
    for thread in threads:
        thread.join(60)
    assert moving.ended
    visitor.stop(still.run_id)
    still.rest()
    for reading in readings:
        reading.gone(reading.raw.close)
    judge(history, shared, model)
    tab.client.close()
    visitor.client.close()
    assert wait_back(shared, before, model) == []


def test_readers_on_another_machine_are_freed_when_its_cable_is_pulled_and_go_on_when_it_is_back(
    serve: Callable[..., Server], model: Running
) -> None:
    """A network namespace in place of the filter, where this process may make one; the test before needs no rights."""
    with cable.laid() as lines:
        if not lines:
            pytest.skip("no network namespace may be made here")
        (line,), port = lines, free_port()
        server = serve(settings(model), app=FAULTY, args=["-b", f"{line.here}:{port}"])
        history = History()
        visitor = visitor_of(server, history)
        moving = visitor.ask(tokens=100_000, rate=60)
        moving.take(2)
        there = {"host": line.here, "port": port, "make": line.socket}
        readings = [raw.follow(visitor, moving.run_id, **there) for _ in range(6)]
        for reading in readings:
            reading.until(2)
        assert places(server) == 7
        line.pull()
        threads = [threading.Thread(target=moving.rest)]
        threads[0].start()
        took = wait_places(server, 1, STALL + 30)
        print(f"the places were free {took:.1f} s after the cable was pulled")
        line.plug_in()
        for reading in readings:
            reading.gone(reading.raw.close)
            back = raw.follow(visitor, moving.run_id, reading.last, **there)
            if reading is readings[0]:
                back.until(2)
                visitor.stop(moving.run_id)
            while not back.raw.ended:
                back.read()
            assert back.ended
            back.raw.close()
        threads[0].join(60)
        assert moving.events[-1].event == "stopped"
        judge(history, server, model)
        assert "Traceback" not in server.log()


# -- clients that send slowly ------------------------------------------------------------------------------------------


def drip(socks: list[socket.socket], rest: bytes, until: Callable[[], bool]) -> None:
    """Send one byte to each of them every 50 ms, for as long as they take it."""
    at = 0
    while socks and not until():
        for sock in list(socks):
            try:
                sock.sendall(rest[at : at + 1])
            except OSError:
                socks.remove(sock)
        at = (at + 1) % len(rest)
        time.sleep(0.05)


HEADERS = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "
POST = b"POST /conversation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = POST + b"Content-Length: 5000\r\n\r\n{"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n{"


@pytest.mark.parametrize(
    ("kind", "beginnings"),
    [("gevent", [HEADERS]), ("gevent", [BODY, CHUNKS]), ("gthread", [BODY, CHUNKS])],
    ids=["headers", "bodies", "bodies, gthread"],
)
def test_a_worker_full_of_slow_requests_answers_again_within_seconds(
    serve: Callable[..., Server], model: Running, kind: str, beginnings: list[bytes]
) -> None:
    """As many of them as a worker has places, each a byte every 50 ms: headers and bodies alike have a limit. Half of
    the places may wait for bodies; further ones are refused at once.

    (gthread reads headers before it gives a request a thread, so slow ones take nothing.)
    """
    args = ["--keep-alive", "2", *(["--threads", "20"] if kind == "gthread" else ["--worker-connections", "20"])]
    server = serve(settings(model), workers=1, kind=kind, app=FAULTY, args=args)
    warm(server)
    before = Gauge.of(server, model)
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for number, sock in enumerate(slow):
        sock.sendall(beginnings[number % len(beginnings)])
    answered = threading.Event()
    dripping = threading.Thread(target=drip, args=(list(slow), b"abcdefghij", answered.is_set))
    dripping.start()
    try:
        began = time.monotonic()
        response = server.client(timeout=60).get("/healthz")
        assert response.status == 200
        response.close()
        print(f"health answered after {time.monotonic() - began:.1f} s")
    finally:
        answered.set()
        dripping.join()
    said = [everything(sock) for sock in slow]
    if HEADERS not in beginnings:
        ends = Counter((head[9:12], head.rpartition(b'"code":"')[2].partition(b'"')[0]) for head in said if head)
        assert ends.keys() <= {(b"408", b"body_timeout"), (b"503", b"full")}, said
        assert 0 < ends[b"408", b"body_timeout"] <= 10
    assert rows(server, "SELECT count(*) FROM flaskchat_messages WHERE role = 'user'") == [(1,)], "the one of `warm`"
    for sock in slow:
        sock.close()
    assert "Traceback" not in server.log()
    assert wait_back(server, before, model) == []


def everything(sock: socket.socket) -> bytes:
    """What the server said until it closed the connection."""
    sock.settimeout(60)
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            found += data
    return found


def test_a_body_that_breaks_off_is_no_fault_of_the_server(shared: Server) -> None:
    for what in (BODY, CHUNKS):
        with socket.create_connection(("127.0.0.1", shared.port)) as sock:
            sock.sendall(what)
            sock.shutdown(socket.SHUT_WR)
            said = everything(sock)
            # of chunks that lack their end gunicorn says that they are all
            assert said.startswith(b"HTTP/1.1 400 " if what is BODY else b"HTTP/1.1 4"), said
    assert "Traceback" not in shared.log()


# -- clients that read slowly ------------------------------------------------------------------------------------------


def test_clients_that_read_nothing_or_a_byte_at_a_time_are_cut_off_and_find_the_rest_later(
    shared: Server, model: Running, long: bool
) -> None:
    """Of a reply of 2 MB; a byte a second for a minute (short: one every 50 ms, until the server has had enough)."""
    before = Gauge.of(shared, model)
    history = History()
    visitor = visitor_of(shared, history)
    moving = visitor.ask(f"{18000 if long else 2000} {300 if long else 500}", more={"model": "lines"})
    moving.take(1)
    slow = [raw.follow(visitor, moving.run_id, buffer=4096) for _ in range(8)]
    dripping = slow[:4]
    whole = threading.Thread(target=moving.rest)
    whole.start()
    began = time.monotonic()
    while time.monotonic() - began < 60:
        for reading in dripping:
            reading.read(1)
        if not long and places(shared) <= 1:
            break
        time.sleep(1 if long else 0.05)  # between two bytes
    took = wait_places(shared, 1 if whole.is_alive() else 0, STALL + 30)
    print(f"the places were free after {took + time.monotonic() - began:.1f} s")
    whole.join(90)
    assert moving.ended
    for reading in slow:
        while not reading.raw.ended:
            reading.read()
        assert reading.how == "cut", "a body that was not sent to its end must not look as if it were"
        assert not reading.ended
    tabs = [visitor.tab() for _ in slow]
    for tab, reading in zip(tabs, slow, strict=True):
        tab.to_the_end(moving.run_id, reading.last)
        reading.raw.close()
        tab.client.close()
    judge(history, shared, model)
    visitor.client.close()
    # Megabytes went through it, of which the allocator keeps some: 50 MB in the first three rounds of this, and then no
    # more, for as many as there are.
    assert wait_back(shared, before._replace(memory=before.memory + (60 << 20)), model) == []
    assert "Socket error" not in shared.log(), "a client that reads slowly is no fault, of which a stack is logged"


# -- a worker without a place ------------------------------------------------------------------------------------------


def test_refused_clients_that_keep_their_connections_leave_health_and_stop_a_way_in(
    serve: Callable[..., Server], model: Running
) -> None:
    """A browser keeps the connection on which it was refused, and a worker's places are counted in connections."""
    args = ["--worker-connections", "20", "--keep-alive", "120"]
    server = serve(settings(model), workers=1, app=FAULTY, args=args)
    client = server.client()
    capacity = client.json("/readyz")["capacity"]
    client.close()
    streams = [client.send("x", model="silent") for _ in range(capacity)]
    assert {stream.status for stream in streams} == {200}
    refused = [client.send("x", model="silent") for _ in range(8)]
    for stream in refused:
        assert stream.status == 503
        assert stream.json()["code"] == "full"
    began = time.monotonic()
    health = [server.client(timeout=90) for _ in range(4)]
    for other in health:
        assert other.get("/healthz").status == 200
    assert client.stop(streams[0].run_id)["state"] == "stopped"
    took = time.monotonic() - began
    print(f"health and Stop answered within {took:.2f} s")
    assert took < 60, "they waited for somebody's idle connection to be given up"

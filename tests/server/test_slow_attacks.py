"""Clients that hold connections by slowness, as slowhttptest makes them: heads that never end (-H), bodies that never
end (-B), answers that are not read (-X). Meanwhile a health probe is always answered, and nobody else waits.

Ours, not the tool: these run where only Python is, and say what happened to each connection. The long form makes as
many as the tool does by default for a minute; both go straight at gunicorn, with no proxy before it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT, Server
from tests.server.client import Client, deadline

HEAD = b"POST /conversation HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Attack:
    """So many connections, each fed a little now and then, or read a little."""

    def __init__(self, server: Server, kind: str, number: int) -> None:
        self.kind = kind
        self.sockets: list[socket.socket] = []
        self.closed = 0
        self._selector = selectors.DefaultSelector()
        for _ in range(number):
            sock = socket.socket()
            if kind == "X":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sock.settimeout(60)
            sock.connect(("127.0.0.1", server.port))
            with contextlib.suppress(OSError):
                sock.sendall(self._first())
            sock.setblocking(False)
            self.sockets.append(sock)
            self._selector.register(sock, selectors.EVENT_READ)

    def _first(self) -> bytes:
        if self.kind == "H":
            return b"GET /conversations HTTP/1.1\r\nHost: x\r\n"
        if self.kind == "B":
            return HEAD + b"Content-Length: 8192\r\n\r\n"
        return b"GET /assets/flaskchat.js HTTP/1.1\r\nHost: x\r\n\r\n" * 5

    def step(self) -> None:
        """A few more bytes, or a few read; and see who was let go."""
        more = {"H": b"X-a: b\r\n", "B": b"a=b&", "X": b""}[self.kind]
        for sock in list(self.sockets):
            try:
                if more:
                    sock.send(more)
                elif not sock.recv(32):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                self._drop(sock)
        if self.kind != "X":
            for key, _ in self._selector.select(0):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    try:
                        if not sock.recv(4096):
                            self._drop(sock)
                    except OSError:
                        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        if sock in self.sockets:
            self.sockets.remove(sock)
            self._selector.unregister(sock)
            sock.close()
            self.closed += 1

    def close(self) -> None:
        for sock in list(self.sockets):
            self._drop(sock)
        self._selector.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    settings = {"FLASKCHAT_MODELS": "silent", "FLASKCHAT_BODY_TIMEOUT": "3", "FLASKCHAT_DRAIN": "0.5"}
    return serve(settings, args=["--keep-alive", "3", "--worker-connections", "400"])


def probe(client: Client) -> float:
    """Seconds that the health check takes; it must be answered within the client's patience, 30 s."""
    began = time.monotonic()
    stream = client.get("/healthz")
    assert stream.status == 200
    stream.response.read()
    stream.close()
    return time.monotonic() - began


def waits(seconds: float, step: Callable[[], None]) -> Iterator[None]:
    """So many, and three times at least."""
    until, times = time.monotonic() + seconds, 0
    while time.monotonic() < until or times < 3:
        step()
        times += 1
        yield
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["H", "B", "X"])
def test_the_health_probe_is_answered_throughout(server: Server, long: bool, kind: str) -> None:
    client = server.client(timeout=30)
    stream = client.send("x", model="silent")
    stream.take(2)
    attack = Attack(server, kind, (600 if long else 150) // (3 if kind == "X" else 1))  # each of those wants a file
    try:
        took = []
        for _ in waits(60 if long else 6, attack.step):
            took.append(probe(client))
        print(f"{len(took)} probes, the slowest took {max(took):.2f} s")
        if kind != "X":
            for _ in deadline(30, "a connection that only began to be let go of"):
                attack.step()
                if attack.closed > 0:
                    break
        assert client.follow(stream.run_id).status == 200
        assert client.stop(stream.run_id)["state"] == "stopped"
    finally:
        attack.close()


SMALL = ["--worker-connections", "40", "--keep-alive", "6"]


def test_slow_bodies_leave_connections_to_the_host(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_DRAIN": "0.5", "FLASKCHAT_BODY_TIMEOUT": "300"}, workers=1, args=SMALL)
    attack = Attack(server, "B", 60)  # more than the worker has connections
    try:
        client = server.client(timeout=30)
        stream = client.get("/plain")
        assert stream.status == 200
        refused = client.send("1 0")
        assert refused.status == 503
        assert refused.json()["code"] == "full"
        assert refused.headers["Retry-After"] == "2"
        for _ in deadline(30, "those over the bound to be let go of"):
            attack.step()
            if attack.closed == 40:
                break
    finally:
        attack.close()
    for _ in deadline(30, "a place for a body"):
        if client.send("1 0").status == 200:
            break


def test_gunicorn_s_settings_bound_what_a_head_may_be(serve: Callable[..., Server]) -> None:
    """With the configuration that is deployed, as a proxy on this machine hands on what a client sends."""
    server = serve(args=["-c", str(ROOT / "deploy" / "gunicorn.conf.py")])

    def status(*headers: str, line: str = "GET /plain") -> int:
        with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
            head = [f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
            with contextlib.suppress(OSError):  # it may be refused before all of it was sent
                sock.sendall("\r\n".join(head).encode())
            return int(sock.recv(64).split()[1])

    assert status() == 200
    assert status("X-Forwarded-For: 1.2.3.4") == 200
    refused = {
        "a name that becomes another's": status("X_Forwarded_For: 1.2.3.4"),
        "where the application is mounted": status("SCRIPT_NAME: /elsewhere", line="GET /elsewhere/plain"),
        "another path": status("PATH_INFO: /plain"),
        "many fields": status(*(f"X-{number}: x" for number in range(64))),
        "a long field": status("X-Long: " + "x" * 8190),
        "a long line": status(line="GET /plain?" + "x" * 4094),
    }
    assert {what: found for what, found in refused.items() if not 400 <= found < 500} == {}
    assert not list(server.folder.rglob("*.ctl")), "no socket to manage it by"

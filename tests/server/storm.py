"""Thousands of readers that come back at one moment: one process, one selector, plain sockets.

    python -m tests.server.storm

Reads one line of JSON, {"port": 8000, "requests": [["/runs/run_x/events", "cookie", 17], ...], "seconds": 30}, and
prints one: of each connection when its first event came (seconds after all began to connect), or how it was answered
instead. The connections stay open until standard input ends, so that the caller can look at the server.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import sys
import time
from typing import Any

from tests.server.raw import body_of


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    told = json.loads(sys.stdin.readline())
    print(json.dumps(storm(told["port"], told["requests"], told["seconds"])), flush=True)
    sys.stdin.read()


OPEN: list[socket.socket] = []


def storm(port: int, requests: list[list[Any]], seconds: float) -> dict[str, Any]:
    poller = select.epoll()
    socks: dict[int, tuple[socket.socket, bytes]] = {}
    came: dict[int, bytes] = {}
    first: list[float] = []
    others: dict[str, int] = {}
    began = time.monotonic()
    for path, cookie, cursor in requests:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", port))
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nLast-Event-ID: {cursor}\r\n\r\n"
        socks[sock.fileno()] = (sock, head.encode())
        poller.register(sock, select.EPOLLOUT)
    OPEN.extend(sock for sock, _ in socks.values())
    connected = time.monotonic() - began
    while socks and time.monotonic() - began < seconds:
        for fd, event in poller.poll(0.1):
            sock, head = socks[fd]
            what = ""
            try:
                if event & select.EPOLLOUT:
                    sock.sendall(head)
                    poller.modify(fd, select.EPOLLIN)
                    continue
                data = sock.recv(65536)
            except OSError as error:
                data, what = b"", type(error).__name__
            came[fd] = came.get(fd, b"") + data
            status, body, ended = body_of(came[fd])
            if status == 200 and b"\nevent: " in body and body.endswith(b"\n\n"):
                first.append(time.monotonic() - began)
            elif status not in (0, 200):
                what = str(status)
            elif ended:
                what = "come back"
            elif data:
                continue
            else:
                what = what or "closed"
            if what:
                others[what] = others.get(what, 0) + 1
            poller.unregister(fd)
            del socks[fd]
    if socks:
        others["nothing"] = len(socks)
    return {"first": sorted(first), "others": others, "connecting": connected}


if __name__ == "__main__":
    main()

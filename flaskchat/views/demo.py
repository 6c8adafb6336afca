"""`GET /sse`, the smallest EventSource endpoint there is: for learning, and for checking what a proxy does to a stream.

A greeting, ten messages a second apart, a goodbye. Every step of it is what a larger endpoint needs as well: ids, so
that a browser which lost the connection goes on where it was; 204, so that it stops coming back after the end; a look
at the socket while it waits, so that a client which left costs nothing from then on.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request

from .. import tasks
from ..runtime import Runtime
from ..security import STREAM_HEADERS, check_origin
from ..state import current_state
from . import base

MESSAGES = [
    "Connected to SSE endpoint",
    *(f"Message number {number}" for number in range(1, 11)),
    "Closing connection",
]
PAUSE = 1.0


def gone(sock: Any, seconds: float) -> bool:
    """Wait, and say at once if the client closes its side meanwhile. Bytes that it sent ahead mean that it is there."""
    if sock is None:
        tasks.sleep(seconds)
        return False
    try:
        if not tasks.wait_readable(sock.fileno(), seconds):
            return False
        if sock.recv(1, socket.MSG_PEEK) == b"":
            return True
    except (OSError, ValueError):
        return True
    tasks.sleep(seconds)
    return False


def messages(runtime: Runtime, sock: Any, last: int) -> Iterator[str]:
    """:param last: the id that the client has seen; 0 for none."""
    with runtime.readers.place():
        for number, text in enumerate(MESSAGES, 1):
            if number <= last:
                continue
            yield f"id: {number}\ndata: {text}\n\n"
            pause = PAUSE if 1 < number < len(MESSAGES) else 0.0
            if pause and (gone(sock, pause) or runtime.readers.leaving):
                return


def sse() -> Response:
    check_origin(request)
    runtime = current_state().runtime
    runtime.readers.admit()
    last = 0
    with contextlib.suppress(ValueError):
        last = int(request.headers.get("Last-Event-ID", "0"))
    if last >= len(MESSAGES):
        return Response(status=204, headers={"Cache-Control": "no-store"})
    visitor = base.visitor("")  # it says the same to everybody, so only the address is counted
    visitor.returning = last > 0
    runtime.limits.enter(visitor)
    response = Response(messages(runtime, visitor.sock, max(0, last)))
    response.call_on_close(visitor.release)
    response.headers.extend(STREAM_HEADERS)
    response.headers["Content-Type"] = STREAM_HEADERS["Content-Type"]
    return response


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/sse", view_func=sse, methods=["GET"])

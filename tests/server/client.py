"""A client of the streaming endpoints that sees every byte: plain sockets, a header parser, the SSE decoder."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from flaskchat import sse

TERMINAL = {"done", "error", "stopped", "interrupted"}


def deadline(seconds: float, what: str) -> Iterator[None]:
    """Yield again and again until `seconds` have passed; then fail, saying what was waited for."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


class Stream:
    """An open response with server-sent events."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        self.connection = connection
        self.response = response
        self.status = response.status
        self.headers = response.headers
        self.worker = int(response.headers.get("X-Worker", "0"))
        self.run_id = response.headers.get("Flaskchat-Run-Id", "")
        self.raw = b""
        self.frames: list[sse.Frame] = []
        self._decoder = sse.Decoder()
        self._new: list[sse.Frame] = []

    def json(self) -> Any:
        return json.loads(self.response.read())

    def __iter__(self) -> Iterator[sse.Frame]:
        while True:
            while self._new:
                frame = self._new.pop(0)
                self.frames.append(frame)
                yield frame
            data = self.response.read1(65536)
            if not data:
                return
            self.raw += data
            self._new = self._decoder.feed(data)

    def take(self, events: int) -> list[sse.Frame]:
        """The next so many events."""
        found = []
        for frame in self:
            found.append(frame)
            if len(found) == events:
                break
        return found

    def rest(self) -> list[sse.Frame]:
        return list(self)

    def close(self) -> None:
        """Leave, as a browser does that closes its tab."""
        sock = self.connection.sock or getattr(getattr(self.response.fp, "raw", None), "_sock", None)
        with contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        self.response.close()
        self.connection.close()

    @property
    def heartbeats(self) -> int:
        return self._decoder.heartbeats


def seqs(frames: list[sse.Frame]) -> list[int]:
    return [int(frame.id) for frame in frames]


def text(frames: list[sse.Frame]) -> str:
    return "".join(json.loads(frame.data)["text"] for frame in frames if frame.event == "delta")


class Client:
    """One visitor: keeps its cookie. Every call makes a connection of its own, or uses the one that is given."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = 30.0) -> None:
        self.host, self.port, self.timeout = host, port, timeout
        self.cookie = ""
        self._opened: list[HTTPConnection] = []
        self._streams: list[Stream] = []

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection(self.host, self.port, timeout=self.timeout)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        """Close what this client has opened and not closed itself."""
        for stream in self._streams:
            stream.response.close()
        for connection in self._opened:
            connection.close()

    def connect_to(self, worker: int) -> HTTPConnection:
        """A kept-alive connection that the process `worker` serves."""
        for _ in deadline(60, f"a connection to worker {worker}"):
            connection = self.connect()
            connection.request("GET", "/plain")
            response = connection.getresponse()
            response.read()
            if int(response.headers["X-Worker"]) == worker:
                return connection
            connection.close()
        raise AssertionError

    def request(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None,
        connection: HTTPConnection | None = None,
    ) -> Stream:  # fmt: skip
        connection = connection or self.connect()
        sent = dict(headers or {})
        if self.cookie:
            sent["Cookie"] = self.cookie
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=data, headers=sent)
        response = connection.getresponse()
        set_cookie = response.headers.get("Set-Cookie")
        if set_cookie:
            self.cookie = set_cookie.partition(";")[0]
        stream = Stream(connection, response)
        self._streams.append(stream)
        return stream

    def get(self, path: str, **more: Any) -> Stream:
        return self.request("GET", path, **more)

    def json(self, path: str) -> Any:
        return self.get(path).json()

    def send(
        self, question: str, *, client_id: str | None = None, connection: HTTPConnection | None = None, **more: Any
    ) -> Stream:
        body = {"message": {"id": client_id or str(uuid.uuid4()), "text": question}, **more}
        return self.request("POST", "/conversation", body, connection=connection)

    def follow(
        self, run_id: str, cursor: int | str | None = None, *, connection: HTTPConnection | None = None
    ) -> Stream:
        headers = {} if cursor is None else {"Last-Event-ID": str(cursor)}
        return self.request("GET", f"/runs/{run_id}/events", headers=headers, connection=connection)

    def stop(self, run_id: str, *, connection: HTTPConnection | None = None) -> Any:
        return self.request("POST", f"/runs/{run_id}/stop", {}, connection=connection).json()

    def message(self, conversation_id: str, message_id: str) -> Any:
        found = self.json(f"/conversations/{conversation_id}")
        return next(m for m in found["messages"] if m["id"] == message_id)

    def wait_state(self, conversation_id: str, message_id: str, seconds: float = 60) -> Any:
        """The message, once it is no longer running."""
        for _ in deadline(seconds, "the reply's end in the store"):
            message = self.message(conversation_id, message_id)
            if message["status"] != "running":
                return message
        raise AssertionError

"""The stand-in for a model's server: chat completions as OpenAI streams them, so cheap that it is not what is measured.

Every stream gets `rate` tokens a second, each stream at moments of its own. Each token carries the time at which it was
sent, `t=<ns>`, so that whoever receives it knows how long it took. By the wall clock: it is the one clock that
processes share everywhere.

Commands: `rate`, `finish` (end all replies as a model does that is done), `stats`.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import sys
import time
from bisect import insort
from collections import deque
from typing import Any

from .loop import Loop, cut

GRAIN = 0.001
"""Seconds between looks at what is due: tokens of many streams go out in one turn."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stand-in",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
)
_TOKEN = _CHUNK % (b'{"content":" word t=%d."}', b"null")
_SIZE = len(_TOKEN % time.time_ns())  # the same until the year 2286
TOKEN = b"%x\r\n%b\r\n" % (_SIZE, _TOKEN)
_LAST = _CHUNK % (b"{}", b'"stop"') + b"data: [DONE]\n\n"
LAST = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST)
WHOLE = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "stand-in",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Words"}, "finish_reason": "stop"}],
    }
).encode()  # fmt: skip


class Stream:
    """One connection, and the reply that goes through it."""

    __slots__ = ("buffer", "close", "due", "live", "rest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.rest = b""
        """What the kernel did not take."""
        self.due = 0.0
        self.live = False
        self.close = False
        """Whether the client wants the connection closed after the reply."""


class Model(Loop):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self.commands = {"rate": self._set_rate, "finish": self._finish, "stats": self._stats}
        self._listener = listener
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self._period = 0.05
        self._queue: deque[Stream] = deque()
        """The replies, in the order in which they are due."""
        self._live: set[Stream] = set()
        self._ending: set[Stream] = set()
        self._sent = self._finished = self._aborted = self._held = 0
        self._lag = 0.0

    # -- commands --------------------------------------------------------------------------------------------------

    def _set_rate(self, rate: float) -> None:
        """:param rate: tokens a second of one reply; 0: one token, and then silence."""
        self._period = 1 / rate if rate else 0.0
        now = time.monotonic()
        for stream in self._queue:
            stream.due = now + random.random() * self._period
        self._queue = deque(sorted(self._queue, key=_due) if rate else ())
        self.say({"rate": rate})

    def _finish(self, _: object) -> None:
        count = len(self._live)
        self._queue.clear()
        for stream in tuple(self._live):
            self._live.discard(stream)
            stream.live = False
            stream.rest += LAST
            self._ending.add(stream)
        self._flush_ending()
        self.say({"finished": count})

    def _stats(self, _: object) -> None:
        """Counts since the start; `lag_ms`, how late a token went out at most, since the last time this was asked."""
        self.say(
            {
                "sent": self._sent, "live": len(self._live), "finished": self._finished, "aborted": self._aborted,
                "held": self._held, "lag_ms": self._lag * 1e3, "cpu_s": self.cpu(),
            }
        )  # fmt: skip
        self._lag = 0.0

    # -- requests --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Stream(sock)
            self.selector.register(sock, selectors.EVENT_READ, lambda stream=stream: self._read(stream))

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._aborted += stream.live
            return self._drop(stream)
        stream.buffer += data
        head, blank, body = stream.buffer.partition(b"\r\n\r\n")
        if not blank or stream.live:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(body) >= length:
            stream.buffer = b""
            stream.close = b"\r\nconnection: close" in fields
            self._answer(stream, head, body)

    def _answer(self, stream: Stream, head: bytes, body: bytes) -> None:
        asked = _json(body)
        if not head.startswith(b"POST ") or not isinstance(asked, dict):
            self._send(stream, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif not asked.get("stream"):
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            self._send(stream, answer % (len(WHOLE), WHOLE))
        else:
            stream.live = True
            self._live.add(stream)
            self._send(stream, HEAD)
            if self._period:
                stream.due = time.monotonic() + random.random() * self._period
                insort(self._queue, stream, key=_due)
            else:
                self._token(stream)

    # -- tokens ----------------------------------------------------------------------------------------------------

    def patience(self) -> float:
        if self._ending:
            return 0.01
        if not self._queue:
            return 1.0
        return max(GRAIN, self._queue[0].due - time.monotonic())

    def turn(self) -> None:
        """One token at most for each, also where they are late: requests are not to wait until all is made up for.

        A stream goes to the end of the queue, one period on, so the queue stays in order.
        """
        queue, now = self._queue, time.monotonic()
        if queue and now - queue[0].due > self._lag:
            self._lag = now - queue[0].due
        for _ in range(len(queue)):
            stream = queue[0]
            if stream.due > now:
                break
            queue.popleft()
            if stream.live:
                stream.due += self._period
                queue.append(stream)
                self._token(stream)
        if self._ending:
            self._flush_ending()

    def _token(self, stream: Stream) -> None:
        if stream.rest and not self._send(stream, b""):
            self._held += 1  # a client that does not keep up holds its own reply up, as with a model's server
            return
        self._sent += 1
        self._send(stream, TOKEN % time.time_ns())

    def _send(self, stream: Stream, data: bytes) -> bool:
        """:returns: whether the kernel has taken everything."""
        if stream.rest:
            data = stream.rest + data
        try:
            sent = stream.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the selector tells as well that it is gone
            sent = len(data)
        stream.rest = data[sent:]
        return not stream.rest

    def _flush_ending(self) -> None:
        for stream in tuple(self._ending):
            if self._send(stream, b""):
                self._ending.discard(stream)
                self._finished += 1
                if stream.close:
                    self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        if stream.sock.fileno() < 0:
            return  # dropped by what came before in the same turn
        stream.live = False
        self._live.discard(stream)
        self._ending.discard(stream)
        self.selector.unregister(stream.sock)
        cut(stream.sock)


def _due(stream: Stream) -> float:
    return stream.due


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


if __name__ == "__main__":
    Model(socket.socket(fileno=int(sys.argv[1]))).run()

"""The browsers: one process that holds many streams of server-sent events open, and counts what comes.

Whatever answers is taken as it is: the chat, or any other relay of the stand-in's tokens (see `model`). A token is a
time stamp, and its delay is how long ago that was.

Commands: `open` (start streams, a few at once), `measure` (count for some seconds), `rest` (read on until all have
ended), `close`.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
import time
import uuid
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .loop import Loop, cut

STAMP = re.compile(rb"t=(\d{19})\D")
DONE = b"event: done\n"
READ = 1 << 18


def quantile(ordered: Sequence[float], part: float) -> float | None:
    """:param ordered: the smallest first.
    :param part: 0.5 for the median.
    """
    return ordered[int((len(ordered) - 1) * part)] if ordered else None


class Target(NamedTuple):
    """A request; `{id}` in the body becomes an id of its own each time."""

    method: str
    path: str
    body: str = ""
    cookie: str = ""

    def encode(self) -> bytes:
        body = self.body.replace("{id}", str(uuid.uuid4())).encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        if self.cookie:
            lines.append(f"Cookie: {self.cookie}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Chunks:
    """Takes the chunks of a body apart (RFC 9112, section 7.1), each as a whole."""

    __slots__ = ("ended", "rest")

    def __init__(self) -> None:
        self.rest = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        if self.rest:
            data = self.rest + data
        pieces, at = [], 0
        while (line := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line].partition(b";")[0], 16)
            end = line + 2 + size
            if len(data) < end + 2:
                break
            self.ended = not size
            pieces.append(data[line + 2 : end])
            at = end + 2
        self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Stream:
    __slots__ = ("asked_at", "body", "chunks", "cookie", "done", "events", "rest", "run_id", "sock", "status", "tokens")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked_at = 0.0
        self.status = ""
        self.chunks: Chunks | None = None
        self.rest = b""
        """The head, or the part of an event that has come."""
        self.events = self.tokens = 0
        self.done = False
        """Whether a `done` event has come."""
        self.run_id = self.cookie = ""


class Load(Loop):
    def __init__(self, port: int) -> None:
        super().__init__()
        self.commands = {"open": self._open, "measure": self._measure, "rest": self._rest, "close": self._close}
        self._port = port
        self._waiting: deque[Target] = deque()
        self._at_once = 1
        self._asked: set[Stream] = set()
        """Those that have no event yet."""
        self._open_streams: set[Stream] = set()
        self._firsts: list[float] = []
        self._errors: Counter[str] = Counter()
        self._ended: list[Stream] = []
        self._delays = array("d")
        self._measuring = False
        self._tokens = self._events = self._bytes = 0
        self._then: Callable[[], None] | None = None
        """What answers the command that is going on."""
        self._until = 0.0
        self._told = 0.0
        self._heads = False

    # -- commands --------------------------------------------------------------------------------------------------

    def _open(self, asked: dict[str, Any]) -> None:
        """`targets`: how often which request; `at_once`: how many may be without an answer; `seconds`: for all."""
        for times, *target in asked["targets"]:
            self._waiting.extend([Target(*target)] * times)
        self._at_once = asked.get("at_once", 16)
        self._heads = asked.get("heads", False)
        self._firsts, self._errors = [], Counter()
        self._begin(self._opened, asked["seconds"])

    def _opened(self) -> None:
        for stream in tuple(self._asked):
            self._drop(stream, "no event in time")
        if self._waiting:
            self._errors["not begun in time"] += len(self._waiting)
            self._waiting.clear()
        firsts = sorted(self._firsts)
        answer: dict[str, Any] = {
            "opened": len(firsts), "errors": self._errors,
            "first_ms": {"p50": quantile(firsts, 0.5), "p99": quantile(firsts, 0.99)},
        }  # fmt: skip
        if self._heads:
            answer["heads"] = [[stream.run_id, stream.cookie] for stream in self._open_streams]
        self.say(answer)

    def _measure(self, seconds: float) -> None:
        self._delays = array("d")
        self._tokens = self._events = self._bytes = 0
        self._measuring = True
        began, cpu = time.monotonic(), self.cpu()

        def answer() -> None:
            self._measuring = False
            delays = sorted(self._delays)
            self.say(
                {
                    "seconds": time.monotonic() - began, "live": len(self._open_streams), "tokens": self._tokens,
                    "events": self._events, "bytes": self._bytes, "cpu_s": self.cpu() - cpu,
                    "delay_ms": {"p50": quantile(delays, 0.5), "p99": quantile(delays, 0.99)},
                }
            )  # fmt: skip

        self._begin(answer, seconds)

    def _rest(self, seconds: float) -> None:
        """Answers when all streams have ended, with what has come through all of them since they began."""
        self._begin(self._rested, seconds)

    def _rested(self) -> None:
        left = len(self._open_streams)
        for stream in tuple(self._open_streams):
            self._drop(stream, "")
        ended, self._ended = self._ended, []
        self.say(
            {
                "ended": len(ended), "left": left, "done": sum(stream.done for stream in ended),
                "tokens": sum(stream.tokens for stream in ended), "events": sum(stream.events for stream in ended),
            }
        )  # fmt: skip

    def _close(self, _: object) -> None:
        self._rested()

    def _begin(self, then: Callable[[], None], seconds: float) -> None:
        self._then = then
        self._until = time.monotonic() + seconds

    # -- the loop --------------------------------------------------------------------------------------------------

    def patience(self) -> float:
        return min(0.05, max(0.0, self._until - time.monotonic())) if self._then else 1.0

    def turn(self) -> None:
        then = self._then
        if then is None:
            return
        now = time.monotonic()
        if then == self._opened:
            while self._waiting and len(self._asked) < self._at_once:
                self._connect(self._waiting.popleft())
            over = not self._waiting and not self._asked
            if now - self._told > 0.2:
                self._told = now
                self.say({"progress": len(self._firsts)})
        else:
            over = then == self._rested and not self._open_streams
        if over or now >= self._until:
            self._then = None
            then()

    # -- streams ---------------------------------------------------------------------------------------------------

    def _connect(self, target: Target) -> None:
        try:
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            sock.sendall(target.encode())
        except OSError as error:
            self._errors[type(error).__name__] += 1
            return
        sock.setblocking(False)
        stream = Stream(sock)
        stream.asked_at = time.monotonic()
        self._asked.add(stream)
        self.selector.register(sock, selectors.EVENT_READ, lambda: self._read(stream))

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            return self._drop(stream, type(error).__name__)
        now = time.time_ns()
        if not data:
            return self._drop(stream, "" if stream.events else f"ended {stream.status}".strip())
        if not stream.status:
            head, blank, data = (stream.rest + data).partition(b"\r\n\r\n")
            if not blank:
                stream.rest = head
                return
            stream.rest = b""
            if not self._take_head(stream, head):
                return
        chunks = stream.chunks
        if chunks is not None:
            data = chunks.feed(data)
        if data:
            self._take(stream, data, now)
        if chunks is not None and chunks.ended:
            self._drop(stream, "")

    def _take_head(self, stream: Stream, head: bytes) -> bool:
        first, *fields = head.decode("latin-1").split("\r\n")
        stream.status = first.split()[1]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            stream.chunks = Chunks()
        stream.run_id = headers.get("flaskchat-run-id", "")
        stream.cookie = headers.get("set-cookie", "").partition(";")[0]
        if stream.status != "200":
            self._drop(stream, f"status {stream.status}")
            return False
        return True

    def _take(self, stream: Stream, data: bytes, now: int) -> None:
        if stream.rest:
            data = stream.rest + data
        end = data.rfind(b"\n\n") + 2
        if end == 1:  # half an event
            stream.rest = data
            return
        stream.rest = data[end:]
        stamps = STAMP.findall(data, 0, end)
        events = data.count(b"\n\n", 0, end)
        if self._measuring:
            self._tokens += len(stamps)
            self._events += events
            self._bytes += len(data)
            for stamp in stamps:
                self._delays.append((now - int(stamp)) / 1e6)
        stream.tokens += len(stamps)
        if not stream.events:
            self._firsts.append((time.monotonic() - stream.asked_at) * 1e3)
            self._asked.discard(stream)
            self._open_streams.add(stream)
        stream.events += events
        if DONE in data:
            stream.done = True

    def _drop(self, stream: Stream, error: str) -> None:
        if stream.sock.fileno() < 0:
            return
        self.selector.unregister(stream.sock)
        cut(stream.sock)
        if stream in self._asked:
            self._errors[error or "ended without an event"] += 1
        self._asked.discard(stream)
        if stream in self._open_streams:
            self._open_streams.discard(stream)
            self._ended.append(stream)


if __name__ == "__main__":
    Load(int(sys.argv[1])).run()

"""A client at the level of its socket: it reads as little and leaves as badly as a test wants."""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from tests.server.history import Event, Reading, Visitor

SO_ATTACH_FILTER = 26
"""From <asm-generic/socket.h>; Python does not name it."""


class Raw:
    """One request. What comes is read only when `read` is called; a body in chunks comes without them."""

    def __init__(
        self, port: int, path: str, *, method: str = "GET", headers: str = "", body: bytes = b"",
        host: str = "127.0.0.1", buffer: int | None = None, timeout: float = 30,
        make: Callable[[], socket.socket] = socket.socket,
    ) -> None:  # fmt: skip
        """:param headers: whole lines, each with its CRLF.
        :param buffer: bytes of the receive buffer.
        :param make: where the socket comes from.
        """
        self.sock = make()
        self.sock.settimeout(timeout)
        if buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.connect((host, port))
        self.sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + body
        self.status = 0
        self.worker = 0
        self.run_id = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = ""
        """`end` after a proper end of the body, `cut` when the connection was gone before it."""
        self._rest = b""
        self._left = 0
        """Bytes that are still to come of a chunk, with the CRLF after it."""
        self.sock.sendall(self.sent)

    def head(self) -> int:
        """Read until the status and the headers are there."""
        while not self.status and not self.ended:
            self.read(256)
        return self.status

    def read(self, size: int = 65536) -> bytes:
        """What one recv of so many bytes brings of the body."""
        try:
            data = self.sock.recv(size)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = self.ended or "cut"
            return b""
        self._rest += data
        if not self.status:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return b""
            first, *lines = head.decode("latin-1").split("\r\n")
            self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            self.worker = int(self.headers.get("x-worker", 0))
            self.run_id = self.headers.get("flaskchat-run-id", "")
            self._rest, self.status = rest, int(first.split()[1])
        found = self._unchunk() if self.headers.get("transfer-encoding") == "chunked" else self._by_length()
        self.body += found
        return found

    def _by_length(self) -> bytes:
        found, self._rest = self._rest, b""
        if len(self.body) + len(found) >= int(self.headers.get("content-length", 1 << 60)):
            self.ended = "end"
        return found

    def _unchunk(self) -> bytes:
        found = b""
        while not self.ended:
            if self._left:
                piece, self._rest = self._rest[: self._left], self._rest[self._left :]
                if not piece:
                    break
                found += piece[: max(0, self._left - 2)]
                self._left -= len(piece)
            else:
                line, end, rest = self._rest.partition(b"\r\n")
                if not end or (line == b"0" and len(rest) < 2):
                    break
                size = int(line, 16)
                self._rest, self._left = rest, size + 2
                if size == 0:
                    self.ended = "end"
        return found

    def rest(self) -> bytes:
        """Read to the end, and return all of the body."""
        while not self.ended:
            self.read()
        return self.body

    def json(self) -> Any:
        return json.loads(self.rest())

    # -- leaving ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave with a FIN, as a browser that closes its tab; nothing is read any more."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        """Leave with a RST, as a process that is killed with bytes unread."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def unplug(self) -> None:
        """Let no packet in any more, not even an acknowledgement out: what a pulled cable is for the other side.

        A filter of the socket's own, for which nobody needs rights: one instruction, which keeps nothing of a packet.
        """
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class RawReading(Reading):
    """A stream that is read by hand and written down like any other."""

    def __init__(self, visitor: Visitor, run_id: str, cursor: int | None, raw: Raw, at: float) -> None:
        self.raw = raw
        super().__init__(visitor.history, visitor.owner, visitor.name, raw, run_id, cursor, at)  # type: ignore[arg-type]

    def read(self, size: int = 65536) -> list[Event]:
        found = self.feed(self.raw.read(size))
        if self.raw.ended and self.how == "open":
            self.how = self.raw.ended
        return found

    def until(self, events: int) -> None:
        """Read until so many events are there."""
        while len(self.events) < events and not self.raw.ended:
            self.read()

    def gone(self, leave: Callable[[], None]) -> None:
        self.how = "left"
        leave()


def follow(visitor: Visitor, run_id: str, cursor: int | None = None, **more: Any) -> RawReading:
    """`GET /runs/<run_id>/events` on a socket of its own, up to the answer's head.

    :param more: as `Raw` takes it.
    """
    at = time.monotonic()
    lines = f"Cookie: {visitor.client.cookie}\r\n"
    if cursor is not None:
        lines += f"Last-Event-ID: {cursor}\r\n"
    raw = Raw(more.pop("port", visitor.client.port), f"/runs/{run_id}/events", headers=lines, **more)
    raw.head()
    reading = RawReading(visitor, run_id, cursor, raw, at)
    reading.status, reading.worker = raw.status, raw.worker
    first, raw.body = raw.body, b""
    reading.feed(first)
    visitor.history.readings.append(reading)
    return reading


def body_of(data: bytes) -> tuple[int, bytes, bool]:
    """The status, the body without its chunks, and whether it has ended, of as much of a response as there is."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return 0, b"", False
    status, found = int(head.split()[1]), b""
    _, sized, length = head.lower().partition(b"\r\ncontent-length:")
    if sized:
        return status, rest, len(rest) >= int(length.split()[0])
    while rest:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            break
        size = int(line, 16)
        if size == 0:
            return status, found, True
        found, rest = found + rest[:size], rest[size + 2 :]
    return status, found, False

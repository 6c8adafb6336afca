"""Server-sent events as a pure codec (WHATWG HTML, section 9.2): bytes out of events, events out of bytes. No I/O.

Deliberate choices; do not change one without reading why:

 1. LF only, no BOM, one `data:` line of JSON. JSON escapes CR and LF, so text can never forge a field.
 2. Event names come from the closed set in models.py and ids are ours, so neither needs escaping.
 3. `retry:` stands only inside a frame that has data: a lone `retry:` makes several clients see an empty event.
 4. The heartbeat is a comment line and one LF, with no blank line after it: after an `id:` some clients take a
    blank line as an event without data.
 5. The decoder splits bytes at LF, CR and CRLF and nothing else, and decodes a field only when its line is whole:
    a code point may be split over packets, and U+2028 or U+0085 end no line.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from .models import Event, Reset

_encode = msgspec.json.Encoder().encode

HEARTBEAT = b": hb\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
MAX_LINE = 1 << 20
"""Bytes of one line a decoder holds before it gives up: no model sends a line of 1 MiB."""


def encode(seq: int, event: Event) -> bytes:
    """One numbered event as its frame. These bytes are what the log keeps and every reader is sent."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, event.event.encode(), _encode(event))


def encode_reset(reset: Reset) -> bytes:
    """The `reset` frame. It has no `id:`, because it is not an event of the log; the next event has one."""
    return b"event: reset\ndata: %b\n\n" % _encode(reset)


def retry(milliseconds: int) -> bytes:
    """The field to put in front of a response's first frame."""
    return b"retry: %d\n" % milliseconds


class Frame(NamedTuple):
    id: str
    event: str
    data: bytes


class LineTooLong(ValueError):
    pass


class Decoder:
    """Incremental decoder: feed bytes split anywhere, get the whole frames so far.

    A frame whose blank line has not come is not returned (the standard drops it at the end of the stream).
    """

    __slots__ = ("_buffer", "_data", "_event", "_id", "_max_line", "_started", "heartbeats", "retry")

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._event = ""
        self._id = ""
        self._max_line = max_line
        self._started = False
        self.heartbeats = 0
        self.retry: int | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """:raises LineTooLong: a line, or the data of one frame, exceeds `max_line` bytes."""
        buffer = self._buffer + data if self._buffer else data
        if not self._started:
            if buffer.startswith(b"\xef\xbb\xbf"):
                buffer = buffer[3:]
            elif b"\xef\xbb\xbf".startswith(buffer[:3]) and len(buffer) < 3:
                self._buffer = buffer
                return []
            self._started = True
        if b"\r" in buffer:
            held = b""
            if buffer.endswith(b"\r"):  # may be the first half of CRLF
                buffer, held = buffer[:-1], b"\r"
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        lines = buffer.split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > self._max_line:
            raise LineTooLong(f"a line of more than {self._max_line} bytes")
        frames: list[Frame] = []
        for line in lines:
            if not line:
                if self._data:
                    frames.append(Frame(self._id, self._event or "message", b"\n".join(self._data)))
                    self._data = []
                self._event = ""
            else:
                self._field(line)
        return frames

    def _field(self, line: bytes) -> None:
        if line.startswith(b":"):
            self.heartbeats += 1
            return
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            if len(value) > self._max_line or sum(map(len, self._data)) > self._max_line:
                raise LineTooLong(f"a frame of more than {self._max_line} bytes")
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value)

"""Server-sent events as a pure codec (WHATWG HTML, section 9.2): bytes out of events, events out of bytes. No I/O.

Deliberate choices; do not change one without reading why:

 1. LF only, no BOM, one `data:` line of JSON. JSON escapes CR and LF, so text can never forge a field.
 2. Event names come from the closed set in models.py and ids are ours, so neither needs escaping.
 3. `retry:` stands only inside a frame that has data: a lone `retry:` makes several clients see an empty event.
 4. The heartbeat is a comment line and one LF, with no blank line after it: after an `id:` some clients take a
    blank line as an event without data.
 5. The decoder splits bytes at LF, CR and CRLF and nothing else, and decodes a field only when its line is whole:
    a code point may be split over packets, and U+2028 or U+0085 end no line.
 6. A CR ends its line at once and a LF that follows it, in the next packet perhaps, is passed over: whoever waited for
    the byte after the CR would hold back a frame that is whole.
 7. What the decoder holds is bounded: one line, and all data lines of one frame, to `max_line` bytes. Frames that came
    before the over-long one are returned first; the error comes with the next call.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import msgspec

from .models import Event, Reset

_encode = msgspec.json.Encoder().encode

_NAMES = {kind: kind.event.encode() for kind in get_args(Event)}
_BOM = b"\xef\xbb\xbf"
HEARTBEAT = b": hb\n"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
MAX_LINE = 1 << 20
"""Bytes of one line a decoder holds before it gives up: no model sends a line of 1 MiB."""


def encode(seq: int, event: Event) -> bytes:
    """One numbered event as its frame. These bytes are what the log keeps and every reader is sent."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, _NAMES[type(event)], _encode(event))


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

    __slots__ = (
        "_after_cr",
        "_buffer",
        "_data",
        "_event",
        "_id",
        "_max_line",
        "_size",
        "_started",
        "_within",
        "failed",
        "heartbeats",
        "retry",
    )

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._id = ""
        self._max_line = max_line
        self._started = False
        self._after_cr = False
        self._within = False
        """Whether what came ended within a frame, or before it was clear that it did not."""
        self.failed = False
        """Whether the next call raises LineTooLong."""
        self.heartbeats = 0
        self.retry: int | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """:raises LineTooLong: a line, or the data of one frame, exceeds `max_line` bytes."""
        try:
            return self._feed(data)
        finally:
            self._within = bool(self._buffer or self._data or self._event or self._after_cr or self.failed)

    def _feed(self, data: bytes) -> list[Frame]:
        if self.failed:
            raise LineTooLong(f"a line or a frame of more than {self._max_line} bytes")
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
        buffer = self._buffer + data if self._buffer else data
        if not self._started:
            if buffer.startswith(_BOM):
                buffer = buffer[3:]
            elif len(buffer) < 3 and _BOM.startswith(buffer):
                self._buffer = buffer
                return []
            self._started = True
        if b"\r" in buffer:
            self._after_cr = buffer.endswith(b"\r")
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = buffer.split(b"\n")
        self._buffer = lines.pop()
        frames: list[Frame] = []
        for line in lines:
            if not line:
                if self._data:
                    whole = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    frames.append(Frame(self._id, self._event or "message", whole))
                    self._data = []
                    self._size = 0
                self._event = ""
                continue
            if len(line) > self._max_line:
                self.failed = True
                break
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._size += len(line)  # the field's name too, so that empty lines count
            else:
                self._field(line)
            if self._size > self._max_line:
                self.failed = True
                break
        if self.failed or len(self._buffer) > self._max_line:
            self.failed = True
            self._buffer, self._data = b"", []
            if not frames:
                return self._feed(b"")
        return frames

    def plain(self, data: bytes) -> list[bytes] | None:
        """The data of each frame, where these bytes are whole frames of one data line each; else None, nothing done.

        What models send is nearly always so, and this costs about half of `feed`, which takes the rest.
        """
        if (
            self._within
            or data[:6] != b"data: "
            or data[-2:] != b"\n\n"
            or len(data) > self._max_line
            or b"\r" in data
        ):  # fmt: skip
            return None
        lines = data.count(b"\n")
        bodies = [data[6:-2]] if lines == 2 else data[6:-2].split(b"\n\ndata: ")
        if lines != 2 * len(bodies):
            return None
        self._started = True
        return bodies

    def _field(self, line: bytes) -> None:
        if line.startswith(b":"):
            self.heartbeats += 1
            return
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":  # without a colon: an empty line of data
            self._data.append(value)
            self._size += len(line)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= 18:  # int() refuses thousands of digits
            self.retry = int(value)

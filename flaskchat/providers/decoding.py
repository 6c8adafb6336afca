"""What the decoders of all providers share: frames in, joined and storable text out, errors after the text before them.

Pure: no I/O, no clock. A provider's decoder says what a frame means (`_frame`) and when the reply is whole (`_whole`).

Deliberate choices; do not change one without reading why:

 1. Text is made storable here, once: a lone surrogate (a JSON escape of half a code point) cannot be written as UTF-8,
    and PostgreSQL takes no NUL. Both become U+FFFD. A high surrogate at the end of a delta is held back, because its
    other half may open the next one.
 2. What came before an error is returned, and the error raised by the next call (`pending` says so): text that was
    received is never lost.
 3. A last frame without its blank line is decoded when the body ends, against the standard: several servers end with
    `data: [DONE]` and nothing after it. A frame that was cut off is not JSON, so none is taken for whole by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .. import sse
from ..errors import ModelClosedEarly, ModelError, ModelFailed, ModelProtocolError
from ..models import Delta, Done, Event, Reasoning, Tool, Usage

MAX_TOOL_BYTES = 1 << 20
"""Characters of all tool calls of one reply together."""
MAX_TOOLS = 128
MAX_WHOLE = 8 << 20
"""Bytes of an answer that comes in one piece, as JSON."""
_KIND = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+){1,5}\Z")
_MAX_TOKENS = (1 << 53) - 1

TextEvent = type[Delta] | type[Reasoning]


def storable(text: str) -> str:
    """The text without lone surrogates and NUL, each of which becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


def reason_text(finish_reason: str) -> str:
    """A finish reason as the server wrote it, short enough for an event."""
    return storable(finish_reason[:64])


def shown(data: bytes | str, limit: int = 200) -> str:
    """The beginning of something unexpected, for the operator's log."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return text if len(text) <= limit else text[:limit] + "…"


def parse(data: bytes) -> Any:
    """JSON, read as leniently as can be: bad UTF-8, lone surrogates and control characters are let through.

    :raises ModelProtocolError: not JSON at all.
    """
    try:
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError) as error:
        raise ModelProtocolError(f"not JSON ({type(error).__name__}): ", said=shown(data)) from None


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def as_count(value: object) -> int:
    """A number of tokens, whatever the server sent for it."""
    if isinstance(value, float) and value == value and abs(value) <= _MAX_TOKENS:
        value = int(value)
    return min(max(value, 0), _MAX_TOKENS) if isinstance(value, int) and not isinstance(value, bool) else 0


def failure(error: object) -> ModelFailed:
    """What the server reported inside the stream; its words go to the log only."""
    said = shown(error if isinstance(error, str) else json.dumps(error, ensure_ascii=False), 2000)
    return ModelFailed(f"an error within the reply{kind_of(error)}: ", said=said)


def kind_of(error: object) -> str:
    """The `type` and `code` of an error, as providers name their kinds: one word each, which repeats nobody's text."""
    kinds = [as_dict(error).get("type"), as_dict(error).get("code")]
    return "".join(f", {kind}" for kind in kinds if isinstance(kind, str) and _KIND.match(kind))


class ToolCall:
    """A tool call while its arguments come in pieces."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def event(self) -> Tool:
        return Tool(id=storable(self.id), name=storable(self.name), arguments=storable("".join(self.arguments)))


class StreamDecoder:
    """A reply as server-sent events. See `base.Decoder` for the contract."""

    __slots__ = (
        "__weakref__",
        "_dirty",
        "_ended",
        "_error",
        "_events",
        "_frames",
        "_held",
        "_kind",
        "_parts",
        "_tool_bytes",
    )

    def __init__(self) -> None:
        self._frames = sse.Decoder()
        self._events: list[Event] = []
        self._error: ModelError | None = None
        self._ended = False
        self._kind: TextEvent = Delta
        self._parts: list[str] = []  # text of `_kind` that this call brought
        self._held = ""  # a high surrogate of `_kind` whose other half may come
        self._dirty = False  # what this call brought may hold surrogates
        self._tool_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether the next call raises, without any further bytes."""
        return self._error is not None

    def feed(self, data: bytes) -> list[Event]:
        if self._error is not None:
            raise self._error
        if self._ended:
            return []
        try:
            bodies = self._frames.plain(data)
            if bodies is None:
                self._feed_frames(data)
            else:
                for body in bodies:
                    if self._frame("", body):
                        break
        except sse.LineTooLong as error:
            self._error = ModelProtocolError(str(error))
        except ModelError as error:
            self._error = error.bare()
        return self._take()

    def _feed_frames(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            if self._frame(frame.event, frame.data):
                return
        if self._frames.failed:
            self._frames.feed(b"")

    def close(self) -> list[Event]:
        if self._error is not None:
            raise self._error
        if self._ended:
            return []
        try:
            ended = any(self._frame(frame.event, frame.data) for frame in self._frames.feed(b"\n\n"))
        except (sse.LineTooLong, ModelProtocolError):
            ended = False  # a frame that was cut off
        except ModelError as error:
            self._error = error.bare()
            return self._take()
        if not ended:
            if self._whole():
                self._end()
            else:
                self._error = ModelClosedEarly("the body ended before the reply did")
        return self._take()

    def _frame(self, event: str, data: bytes) -> bool:
        """Take one frame in, by `_text` and the like. Returns whether it was the last, after `_end`."""
        raise NotImplementedError

    def _whole(self) -> bool:
        """Whether the model has said that it is done, though the stream has not."""
        raise NotImplementedError

    def _last(self) -> list[Event]:
        """The events that end the reply; the last one is `Done`."""
        raise NotImplementedError

    def _end(self) -> None:
        self._flush(final=True)
        self._events += self._last()
        self._ended = True

    def _text(self, kind: TextEvent, text: str) -> None:
        if kind is not self._kind:
            self._flush(final=True)
            self._kind = kind
        self._parts.append(text)

    def _count_tool(self, *parts: str | None) -> None:
        self._tool_bytes += sum(len(part) for part in parts if part)
        if self._tool_bytes > MAX_TOOL_BYTES:
            raise ModelProtocolError(f"tool calls of more than {MAX_TOOL_BYTES} characters")

    def _flush(self, final: bool) -> None:
        text = self._parts[0] if len(self._parts) == 1 else "".join(self._parts)
        self._parts.clear()
        if self._dirty or self._held:
            text, self._held = self._held + text, ""
            if not final and text and "\ud800" <= text[-1] <= "\udbff":
                text, self._held = text[:-1], text[-1]
            text = storable(text)
        elif "\0" in text:
            text = text.replace("\0", "\ufffd")
        if text:
            self._events.append(self._kind(text))

    def _take(self) -> list[Event]:
        if self._parts:
            self._flush(final=False)
        self._dirty = False
        events, self._events = self._events, []
        if self._error is not None and not events:
            raise self._error
        return events


class WholeDecoder:
    """A reply that comes in one piece, as JSON: what a server answers that does not know `stream`."""

    __slots__ = ("_convert", "_ended", "_parts", "_size", "pending")

    def __init__(self, convert: Callable[[dict[str, Any]], list[Event]]) -> None:
        self._convert = convert
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False
        self.pending = False

    def feed(self, data: bytes) -> list[Event]:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_WHOLE:
            self._parts.clear()
            raise ModelProtocolError(f"an answer of more than {MAX_WHOLE} bytes")
        return []

    def close(self) -> list[Event]:
        if self._ended:
            return []
        self._ended = True
        body = as_dict(parse(b"".join(self._parts)))
        self._parts.clear()
        if body.get("error"):
            raise failure(body["error"])
        return self._convert(body)


def whole_reply(
    reasoning: str, text: str, tools: list[ToolCall], finish_reason: str, usage: Usage | None
) -> list[Event]:
    """The events of a reply that is known as a whole."""
    events: list[Event] = []
    if reasoning:
        events.append(Reasoning(storable(reasoning)))
    if text:
        events.append(Delta(storable(text)))
    events += [tool.event() for tool in tools]
    events.append(Done(finish_reason, usage))
    return events

"""Anthropic's messages API.

Its stop reasons are told in the words of chat completions, so that whoever reads `finish_reason` needs one vocabulary;
those without a counterpart are kept. Its `input_tokens` leave cached ones out; ours count all of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..config import Settings
from ..errors import ModelClosedEarly, ModelProtocolError
from ..models import Delta, Done, Event, Reasoning, Request, Usage
from . import base
from .asking import turns
from .decoding import (
    StreamDecoder,
    ToolCall,
    WholeDecoder,
    as_count,
    as_dict,
    as_list,
    as_text,
    failure,
    parse,
    reason_text,
    shown,
    whole_reply,
)
from .endpoint import Endpoint
from .http import HTTPSource

DEFAULT_BASE_URL = "https://api.anthropic.com"
DEFAULT_MODEL = "claude-sonnet-5"
VERSION = "2023-06-01"

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _Part(msgspec.Struct, gc=False):
    """A `delta` or a `content_block`: whichever fields its type has."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    id: str | None = None
    name: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    usage: Any = None


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Part | None = None
    content_block: _Part | None = None
    message: _Message | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_PART_FIELDS = _Part.__struct_fields__


def _part(value: object) -> _Part | None:
    if not isinstance(value, dict):
        return None
    return _Part(**{name: as_text(value.get(name)) for name in _PART_FIELDS})


def _lenient(data: bytes) -> _Event:
    body = parse(data)
    if not isinstance(body, dict):
        raise ModelProtocolError("not an event: ", said=shown(data))
    return _Event(
        type=as_text(body.get("type")),
        delta=_part(body.get("delta")),
        content_block=_part(body.get("content_block")),
        message=_Message(as_dict(body.get("message")).get("usage")),
        usage=body.get("usage"),
        error=body.get("error"),
    )


def _finish_reason(stop_reason: str) -> str:
    return reason_text(FINISH_REASONS.get(stop_reason, stop_reason))


class AnthropicDecoder(StreamDecoder):
    __slots__ = ("_counts", "_stop_reason", "_tool")

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}
        self._stop_reason: str | None = None
        self._tool: ToolCall | None = None

    def _frame(self, event: str, data: bytes) -> bool:
        if not data.strip():
            return False
        try:
            body = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if event == "error":
                raise failure(shown(data, 2000)) from None
            body = _lenient(data)
            self._dirty = True
        kind = body.type or event
        delta = body.delta
        if kind == "content_block_delta":
            if delta is not None:
                self._delta(delta)
        elif kind == "content_block_start":
            self._start_block(body.content_block or _Part())
        elif kind == "content_block_stop":
            self._end_tool()
        elif kind == "message_start":
            self._count(body.message.usage if body.message is not None else None)
        elif kind == "message_delta":
            if delta is not None and delta.stop_reason:
                self._stop_reason = delta.stop_reason
            self._count(body.usage)
        elif kind == "message_stop":
            self._end()
            return True
        elif kind == "error":
            raise failure(body.error or shown(data, 2000))
        return False  # others are passed over, as the API's versioning rules ask; `ping` is one of them

    def _delta(self, delta: _Part) -> None:
        if delta.text:
            self._text(Delta, delta.text)
        elif delta.thinking:
            self._text(Reasoning, delta.thinking)
        elif delta.partial_json and self._tool is not None:
            self._count_tool(delta.partial_json)
            self._tool.arguments.append(delta.partial_json)

    def _start_block(self, block: _Part) -> None:
        self._end_tool()
        if block.type == "tool_use":
            self._tool = ToolCall()
            self._tool.id, self._tool.name = block.id or "", block.name or ""
            self._count_tool(block.id, block.name, "{}")
        elif block.type in ("text", "thinking"):
            self._delta(block)

    def _end_tool(self) -> None:
        tool, self._tool = self._tool, None
        if tool is not None:
            tool.arguments = tool.arguments or ["{}"]
            self._flush(final=True)
            self._events.append(tool.event())

    def _count(self, usage: object) -> None:
        for name, value in as_dict(usage).items():
            if name.endswith("_tokens"):  # each is a total so far, and one that is missing has not changed
                self._counts[name] = as_count(value)

    def _whole(self) -> bool:
        return self._stop_reason is not None

    def _last(self) -> list[Event]:
        self._end_tool()
        return [Done(_finish_reason(self._stop_reason or "end_turn"), usage_of(self._counts))]


def usage_of(value: object) -> Usage | None:
    counts = {name: as_count(count) for name, count in as_dict(value).items()}
    if not counts:
        return None
    cached = counts.get("cache_read_input_tokens", 0)
    return Usage(
        input_tokens=counts.get("input_tokens", 0) + counts.get("cache_creation_input_tokens", 0) + cached,
        output_tokens=counts.get("output_tokens", 0),
        cached_tokens=cached,
    )


def convert(body: dict[str, Any]) -> list[Event]:
    """The events of a message that was not streamed."""
    if not isinstance(body.get("content"), list):
        raise ModelClosedEarly("a JSON answer without content")
    texts, thoughts, tools = [], [], []
    for block in map(as_dict, as_list(body["content"])):
        texts.append(as_text(block.get("text")) or "")
        thoughts.append(as_text(block.get("thinking")) or "")
        if block.get("type") == "tool_use":
            tool = ToolCall()
            tool.id, tool.name = as_text(block.get("id")) or "", as_text(block.get("name")) or ""
            tool.arguments = [msgspec.json.encode(as_dict(block.get("input"))).decode()]
            tools.append(tool)
    reason = _finish_reason(as_text(body.get("stop_reason")) or "end_turn")
    return whole_reply("".join(thoughts), "".join(texts), tools, reason, usage_of(body.get("usage")))


def decoder_for(media_type: str) -> base.Decoder | None:
    """The decoder for an answer of this content type, or None where it cannot be a reply."""
    if media_type == "text/event-stream":
        return AnthropicDecoder()
    return WholeDecoder(convert) if media_type == "application/json" else None


def messages_of(request: Request) -> list[dict[str, str]]:
    """The turns as the API wants them: no empty one, and no two neighbours of one role."""
    messages: list[dict[str, str]] = []
    for turn in turns(request):
        if not turn.text.strip():
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += "\n\n" + turn.text
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return messages


class AnthropicProvider:
    """:param settings: reads anthropic_base_url, anthropic_api_key, max_output_tokens and the timeouts.
    :raises ConfigurationError: the address or the key cannot be used.
    """

    name = "anthropic"
    writes_titles = True

    def __init__(self, settings: Settings, *, tls: Any = None) -> None:
        headers = {"anthropic-version": VERSION}
        if settings.anthropic_api_key:
            headers["x-api-key"] = settings.anthropic_api_key.strip()
        self._settings = settings
        self._endpoint = Endpoint(
            settings.anthropic_base_url.removesuffix("/").removesuffix("/v1"),
            "/v1/messages",
            headers,
            setting="FLASKCHAT_ANTHROPIC_BASE_URL",
            key_setting="FLASKCHAT_ANTHROPIC_API_KEY",
            connect_timeout=settings.connect_timeout,
            first_byte_timeout=settings.first_byte_timeout,
            tls=tls,
            plain_http=settings.plain_http,
        )

    def source(self, request: Request) -> base.Source:
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": self._settings.max_output_tokens,
            "messages": messages_of(request),
            "stream": request.stream,
        }
        if request.system_prompt:
            body["system"] = request.system_prompt
        return HTTPSource(self._endpoint, msgspec.json.encode(body), decoder_for)

"""Chat completions as OpenAI defined them, and as Ollama, vLLM, llama.cpp, LM Studio and many more speak them.

Each chunk is decoded by msgspec into the few fields that matter. What it refuses (bad UTF-8, half a surrogate pair, a
number or a list where a text should be) goes the slow and lenient way; only what is no JSON at all is an error.

`stream_options` is always sent: without it OpenAI reports no usage. A server that refuses unknown fields answers 400.
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
    MAX_TOOLS,
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

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-5-mini"


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def _tool(value: object) -> _ToolDelta:
    call = as_dict(value)
    function = as_dict(call.get("function"))
    index, arguments = call.get("index"), function.get("arguments")
    if isinstance(arguments, dict):  # as Ollama's own API has it
        arguments = msgspec.json.encode(arguments).decode()
    return _ToolDelta(
        index=index if isinstance(index, int) else None,
        id=as_text(call.get("id")),
        function=_Function(as_text(function.get("name")), as_text(arguments)),
    )


def _delta(value: object) -> _Delta:
    delta = as_dict(value)
    content, reasoning = delta.get("content"), as_text(delta.get("reasoning_content"))
    if isinstance(content, list):  # parts, as Mistral sends them
        texts, thoughts = [], []
        for part in map(as_dict, content):
            texts.append(as_text(part.get("text")) or "")
            thought = part.get("thinking")
            for piece in thought if isinstance(thought, list) else [{"text": thought}]:
                thoughts.append(as_text(as_dict(piece).get("text")) or "")
        content, reasoning = "".join(texts), "".join(thoughts) or reasoning
    return _Delta(
        content=as_text(content),
        reasoning_content=reasoning,
        reasoning=as_text(delta.get("reasoning")),
        refusal=as_text(delta.get("refusal")),
        tool_calls=[_tool(call) for call in as_list(delta.get("tool_calls"))],
    )


def _lenient(data: bytes) -> _Chunk:
    body = parse(data)
    if not isinstance(body, dict):
        raise ModelProtocolError("not a chunk: ", said=shown(data))
    choices = []
    for choice in map(as_dict, as_list(body.get("choices"))):
        index = choice.get("index")
        choices.append(
            _Choice(
                index=index if isinstance(index, int) else None,
                delta=_delta(choice.get("delta")),
                finish_reason=as_text(choice.get("finish_reason")),
            )
        )
    return _Chunk(choices=choices, usage=body.get("usage"), error=body.get("error"))


def usage_of(value: object) -> Usage | None:
    """:param value: the `usage` object of a chunk or an answer, or anything else a server put there."""
    if not isinstance(value, dict):
        return None
    return Usage(
        input_tokens=as_count(value.get("prompt_tokens")),
        output_tokens=as_count(value.get("completion_tokens")),
        reasoning_tokens=as_count(as_dict(value.get("completion_tokens_details")).get("reasoning_tokens")),
        cached_tokens=as_count(as_dict(value.get("prompt_tokens_details")).get("cached_tokens")),
    )


class OpenAIDecoder(StreamDecoder):
    __slots__ = ("_finish_reason", "_tools", "_usage")

    def __init__(self) -> None:
        super().__init__()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._tools: dict[int, ToolCall] = {}

    def _frame(self, event: str, data: bytes) -> bool:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            word = data.strip()
            if word == b"[DONE]":
                self._end()
                return True
            if not word:
                return False
            if event == "error":
                raise failure(shown(data, 2000)) from None
            chunk = _lenient(data)
            self._dirty = True
        if chunk.error or event == "error":
            raise failure(chunk.error or shown(data, 2000))
        for choice in chunk.choices or ():
            if choice.index:  # we ask for one; a second one would be mixed into its text
                continue
            delta = choice.delta
            if delta is not None:
                thought = delta.reasoning_content or delta.reasoning
                if thought:
                    self._text(Reasoning, thought)
                if delta.content:
                    self._text(Delta, delta.content)
                if delta.refusal:
                    self._text(Delta, delta.refusal)
                if delta.tool_calls:
                    self._add_tools(delta.tool_calls)
            if choice.finish_reason:  # Ollama sent "" with every chunk
                self._finish_reason = choice.finish_reason
        if chunk.usage is not None:
            self._usage = usage_of(chunk.usage) or self._usage
        return False

    def _add_tools(self, deltas: list[_ToolDelta]) -> None:
        for delta in deltas:
            index = self._tool_index(delta)
            call = self._tools.get(index)
            if call is None:
                if len(self._tools) >= MAX_TOOLS:
                    raise ModelProtocolError(f"more than {MAX_TOOLS} tool calls")
                call = self._tools[index] = ToolCall()
            function = delta.function or _Function()
            self._count_tool(delta.id, function.name, function.arguments)
            call.id = call.id or delta.id or ""
            call.name = call.name or function.name or ""
            if function.arguments:
                call.arguments.append(function.arguments)

    def _tool_index(self, delta: _ToolDelta) -> int:
        """Which call a piece belongs to. Some servers send no index, and some 0 for all of them."""
        last = max(self._tools, default=-1)
        if delta.index is not None:
            call = self._tools.get(delta.index)
            if call is None or not delta.id or not call.id or call.id == delta.id:
                return delta.index
        if delta.id:
            return next((index for index, call in self._tools.items() if call.id == delta.id), last + 1)
        return max(last, 0)

    def _whole(self) -> bool:
        return self._finish_reason is not None

    def _last(self) -> list[Event]:
        reason = reason_text(self._finish_reason or ("tool_calls" if self._tools else "stop"))
        return [*(self._tools[index].event() for index in sorted(self._tools)), Done(reason, self._usage)]


def convert(body: dict[str, Any]) -> list[Event]:
    """The events of a chat completion that was not streamed."""
    choice = as_dict(next(iter(as_list(body.get("choices"))), None))
    if not isinstance(choice.get("message"), dict):
        raise ModelClosedEarly("a JSON answer without a message")
    message = _delta(choice["message"])
    tools = []
    for delta in (message.tool_calls or [])[:MAX_TOOLS]:
        call, function = ToolCall(), delta.function or _Function()
        call.id, call.name, call.arguments = delta.id or "", function.name or "", [function.arguments or ""]
        tools.append(call)
    return whole_reply(
        message.reasoning_content or message.reasoning or "",
        message.content or message.refusal or "",
        tools,
        reason_text(as_text(choice.get("finish_reason")) or "stop"),
        usage_of(body.get("usage")),
    )


def decoder_for(media_type: str) -> base.Decoder | None:
    """The decoder for an answer of this content type, or None where it cannot be a reply."""
    if media_type == "text/event-stream":
        return OpenAIDecoder()
    return WholeDecoder(convert) if media_type == "application/json" else None


class OpenAIProvider:
    """:param settings: reads openai_base_url, openai_api_key and the timeouts.
    :raises ConfigurationError: the address or the key cannot be used.
    """

    name = "openai"
    writes_titles = True

    def __init__(self, settings: Settings, *, tls: Any = None) -> None:
        headers = {}
        if settings.openai_api_key:
            headers["Authorization"] = f"Bearer {settings.openai_api_key.strip()}"
        self._endpoint = Endpoint(
            settings.openai_base_url,
            "/chat/completions",
            headers,
            setting="FLASKCHAT_OPENAI_BASE_URL",
            key_setting="FLASKCHAT_OPENAI_API_KEY",
            connect_timeout=settings.connect_timeout,
            first_byte_timeout=settings.first_byte_timeout,
            tls=tls,
            plain_http=settings.plain_http,
        )

    def source(self, request: Request) -> base.Source:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns(request)]
        if request.system_prompt:
            messages.insert(0, {"role": "system", "content": request.system_prompt})
        body: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            "stream": request.stream,
        }
        if request.stream:
            body["stream_options"] = {"include_usage": True}
        return HTTPSource(self._endpoint, msgspec.json.encode(body), decoder_for)

"""How a reply is said on the wire: in frames of OpenAI's chat completions, or in events of Anthropic's messages."""

from __future__ import annotations

import json
from typing import Any, ClassVar


class OpenAI:
    """Frames of chat completions."""

    def start(self) -> bytes:
        return self.frame(role="assistant", content="")

    def frame(self, finish: str | None = None, **delta: Any) -> bytes:
        return sse({"id": "chatcmpl-bad", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def text(self, text: str) -> bytes:
        return self.frame(content=text)

    def reasoning(self, text: str) -> bytes:
        return self.frame(reasoning_content=text)

    def tool(self) -> bytes:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":'}}
        rest = {"index": 0, "function": {"arguments": '"it"}'}}
        return self.frame(tool_calls=[call]) + self.frame(tool_calls=[rest])

    def finish(self, reason: str, tokens: int) -> bytes:
        usage = {"prompt_tokens": 7, "completion_tokens": tokens}
        return self.frame(reason) + sse({"id": "chatcmpl-bad", "choices": [], "usage": usage})

    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self) -> bytes:
        return sse({"error": {"message": "the model went away", "type": "server_error", "code": 500}})

    def whole(self, text: str, reason: str, tokens: int) -> dict[str, Any]:
        return {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": tokens},
        }


class Anthropic:
    """Events of the messages API."""

    REASONS: ClassVar = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

    def event(self, kind: str, **fields: Any) -> bytes:
        return b"event: %b\n%b" % (kind.encode(), sse({"type": kind, **fields}))

    def start(self) -> bytes:
        return self.event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}}) + self.event(
            "content_block_start", index=0, content_block={"type": "text", "text": ""}
        )

    def text(self, text: str) -> bytes:
        return self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def reasoning(self, text: str) -> bytes:
        return self.event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": text})

    def tool(self) -> bytes:
        block = {"type": "tool_use", "id": "call_1", "name": "look"}
        delta = {"type": "input_json_delta", "partial_json": '{"at":"it"}'}
        start = self.event("content_block_start", index=1, content_block=block)
        arguments = self.event("content_block_delta", index=1, delta=delta)
        return start + arguments + self.event("content_block_stop", index=1)

    def finish(self, reason: str, tokens: int) -> bytes:
        told = {"stop_reason": self.REASONS.get(reason, reason)}
        return self.event("content_block_stop", index=0) + self.event(
            "message_delta", delta=told, usage={"output_tokens": tokens}
        )

    def done(self) -> bytes:
        return self.event("message_stop")

    def error(self) -> bytes:
        return self.event("error", error={"type": "overloaded_error", "message": "Overloaded"})

    def whole(self, text: str, reason: str, tokens: int) -> dict[str, Any]:
        return {
            "type": "message",
            "content": [{"type": "text", "text": text}],
            "stop_reason": self.REASONS.get(reason, reason),
            "usage": {"input_tokens": 7, "output_tokens": tokens},
        }


Dialect = OpenAI | Anthropic


def sse(body: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

"""What is asked of an OpenAI-compatible server, and answers of it that are not streamed."""

from __future__ import annotations

import json

import msgspec
import pytest

from flaskchat.config import load
from flaskchat.errors import ModelClosedEarly, ModelFailed, ModelProtocolError
from flaskchat.models import Delta, Done, Reasoning, Request, Tool, Turn, Usage
from flaskchat.providers import decoding
from flaskchat.providers.asking import CONTINUE
from flaskchat.providers.decoding import WholeDecoder
from flaskchat.providers.openai import OpenAIProvider, decoder_for

from .replies import play

COUNTED = Usage(input_tokens=10, output_tokens=20)
WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello\0"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 20},
}


def test_an_answer_that_was_not_streamed_is_a_reply():
    decoder = decoder_for("application/json")
    data = json.dumps(WHOLE).encode()
    assert play(decoder, [data[:20], data[20:]]) == ([Delta("Hello\ufffd"), Done("length", COUNTED)], None)


def test_a_whole_answer_has_reasoning_and_tools():
    message = {
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "function": {"name": "n", "arguments": "{}"}}],
    }
    data = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()
    assert play(decoder_for("application/json"), [data]) == (
        [Reasoning("hm"), Tool("c", "n", "{}"), Done("tool_calls")],
        None,
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "no"}}', ModelFailed),
        (b"{}", ModelClosedEarly),
        (b"[]", ModelClosedEarly),
        (b'{"choices": [{"message"', ModelProtocolError),
        (b'{"choices": [4]}', ModelClosedEarly),
    ],
)
def test_a_json_answer_that_is_no_reply_is_an_error(body, error):
    assert play(decoder_for("application/json"), [body]) == ([], error)


def test_a_json_answer_without_end_is_an_error():
    decoder = decoder_for("application/json")
    assert isinstance(decoder, WholeDecoder)
    assert play(decoder, [b"x" * 65536] * (decoding.MAX_WHOLE // 65536 + 1), close=False) == ([], ModelProtocolError)


@pytest.mark.parametrize("media_type", ["text/html", "text/plain", "", "application/x-ndjson"])
def test_other_content_types_have_no_decoder(media_type):
    assert decoder_for(media_type) is None


def test_the_request_asks_for_a_stream_with_usage():
    settings = load(
        {"FLASKCHAT_OPENAI_API_KEY": " sk-secret-key\n", "FLASKCHAT_OPENAI_BASE_URL": "https://example.test/v1/"}
    )
    provider = OpenAIProvider(settings)
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")]
    source = provider.source(Request(model="m", turns=turns, system_prompt="Be kind."))
    body = msgspec.json.decode(source._body)
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ],
    }
    head = source._endpoint.head(12).decode()
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\nHost: example.test\r\n")
    assert "\r\nAuthorization: Bearer sk-secret-key\r\n" in head
    assert head.endswith("\r\nContent-Length: 12\r\n\r\n")


def test_a_reply_that_is_continued_is_the_models_turn_and_then_asked_for():
    request = Request(model="m", turns=[Turn("user", "Hi")], partial="Hel")
    body = msgspec.json.decode(OpenAIProvider(load({})).source(request)._body)
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("user", "Hi"),
        ("assistant", "Hel"),
        ("user", CONTINUE),
    ]


def test_without_a_key_no_authorization_is_sent():
    source = OpenAIProvider(load({})).source(Request(model="m", turns=[Turn("user", "Hi")]))
    assert b"Authorization" not in source._endpoint.head(0)
    assert [message["role"] for message in msgspec.json.decode(source._body)["messages"]] == ["user"]

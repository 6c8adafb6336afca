from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaskchat.config import load
from flaskchat.errors import ModelClosedEarly, ModelFailed, ModelProtocolError
from flaskchat.models import Delta, Done, Reasoning, Request, Tool, Turn, Usage
from flaskchat.providers.anthropic import AnthropicDecoder, AnthropicProvider, decoder_for
from flaskchat.providers.asking import CONTINUE

from .replies import assert_same_at_every_split, play


def event(kind, **fields):
    body = json.dumps({"type": kind, **fields})
    return f"event: {kind}\ndata: {body}\n\n".encode()


def delta(kind, **fields):
    return event("content_block_delta", index=0, delta={"type": kind, **fields})


def text(words):
    return delta("text_delta", text=words)


def block(kind, **fields):
    return event("content_block_start", index=0, content_block={"type": kind, **fields})


def stop(reason, **usage):
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


START = event("message_start", message={"id": "m", "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}})
BLOCK_END = event("content_block_stop", index=0)
END = event("message_stop")
PING = event("ping")
TURN_END = stop("end_turn", output_tokens=7)
USED = Usage(input_tokens=9, output_tokens=7)

ROWS = {
    "a plain reply": (
        START + block("text", text="") + PING + text("Hel") + text("lo") + BLOCK_END + TURN_END + END,
        [Delta("Hello"), Done("stop", USED)],
        None,
    ),
    "text in the block's start": (
        START + block("text", text="Hel") + text("lo") + TURN_END + END,
        [Delta("Hello"), Done("stop", USED)],
        None,
    ),
    "thinking and its signature": (
        START
        + block("thinking", thinking="", signature="")
        + delta("thinking_delta", thinking="h")
        + delta("thinking_delta", thinking="m")
        + delta("signature_delta", signature="EqQB")
        + BLOCK_END
        + block("redacted_thinking", data="x")
        + BLOCK_END
        + block("text", text="")
        + text("a")
        + BLOCK_END
        + TURN_END
        + END,
        [Reasoning("hm"), Delta("a"), Done("stop", USED)],
        None,
    ),
    "a tool call": (
        START
        + text("a")
        + block("tool_use", id="t1", name="add", input={})
        + delta("input_json_delta", partial_json="")
        + delta("input_json_delta", partial_json='{"a":')
        + delta("input_json_delta", partial_json=" 1}")
        + BLOCK_END
        + stop("tool_use", output_tokens=7)
        + END,
        [Delta("a"), Tool("t1", "add", '{"a": 1}'), Done("tool_calls", USED)],
        None,
    ),
    "a tool call without arguments": (
        START + block("tool_use", id="t1", name="now", input={}) + BLOCK_END + TURN_END + END,
        [Tool("t1", "now", "{}"), Done("stop", USED)],
        None,
    ),
    "a tool call whose block did not end": (
        START + block("tool_use", id="t1", name="now") + delta("input_json_delta", partial_json="{}") + TURN_END + END,
        [Tool("t1", "now", "{}"), Done("stop", USED)],
        None,
    ),
    "a tool that the server runs is not for us": (
        START
        + block("server_tool_use", id="t", name="web_search", input={})
        + delta("input_json_delta", partial_json="{}")
        + BLOCK_END
        + text("a")
        + TURN_END
        + END,
        [Delta("a"), Done("stop", USED)],
        None,
    ),
    "cached tokens are input": (
        event(
            "message_start",
            message={"usage": {"input_tokens": 3, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 100}},
        )
        + TURN_END
        + END,
        [Done("stop", Usage(input_tokens=123, output_tokens=7, cached_tokens=20))],
        None,
    ),
    "usage that is nonsense": (
        event("message_start", message={"usage": [1]}) + stop("end_turn", output_tokens="x", service_tier="y") + END,
        [Done("stop", Usage())],
        None,
    ),
    "no usage": (text("a") + END, [Delta("a"), Done("stop")], None),
    "an error event": (
        START + text("a") + event("error", error={"type": "overloaded_error", "message": "Overloaded"}) + text("b"),
        [Delta("a")],
        ModelFailed,
    ),
    "an error event that is no JSON": (b"event: error\ndata: it broke\n\n", [], ModelFailed),
    "unknown events, deltas and blocks": (
        START
        + event("brand_new", x=1)
        + delta("citations_delta", citation={"x": 1})
        + block("brand_new")
        + text("a")
        + TURN_END
        + END,
        [Delta("a"), Done("stop", USED)],
        None,
    ),
    "the type is the event's name where the data has none": (
        b'event: content_block_delta\ndata: {"delta":{"text":"a"}}\n\nevent: message_stop\ndata: {}\n\n',
        [Delta("a"), Done("stop")],
        None,
    ),
    "no message_stop after a stop reason": (START + text("a") + TURN_END, [Delta("a"), Done("stop", USED)], None),
    "no stop reason": (START + text("a"), [Delta("a")], ModelClosedEarly),
    "nothing": (b"", [], ModelClosedEarly),
    "the last blank line is missing": (START + text("a") + END.rstrip(), [Delta("a"), Done("stop", Usage(9, 1))], None),
    "what follows message_stop": (START + TURN_END + END + text("b") + b"data: x\n\n", [Done("stop", USED)], None),
    "invalid JSON": (START + text("a") + b"data: {\n\n", [Delta("a")], ModelProtocolError),
    "JSON that is no object": (text("a") + b"data: 4\n\n", [Delta("a")], ModelProtocolError),
    "an empty data line": (b"data:\n\n" + text("a") + END, [Delta("a"), Done("stop")], None),
    "wrong types": (
        event("content_block_delta", delta="x")
        + event("content_block_start", content_block=[4])
        + delta("text_delta", text=4)
        + event("message_delta", delta={"stop_reason": 4})
        + event("message_start", message="x")
        + text("a")
        + END,
        [Delta("a"), Done("stop")],
        None,
    ),
    "bad UTF-8": (text("a") + text("X").replace(b"X", b"\xff") + END, [Delta("a\ufffd"), Done("stop")], None),
    "a pair of surrogates over two deltas": (
        text("a\ud83d") + text("\ude00b") + text("\ud83d") + TURN_END + END,
        [Delta("a😀b\ufffd"), Done("stop", Usage(output_tokens=7))],
        None,
    ),
    "half a code point before a tool call": (
        text("a\ud83d") + block("tool_use", id="t", name="n") + BLOCK_END + END,
        [Delta("a\ufffd"), Tool("t", "n", "{}"), Done("stop")],
        None,
    ),
    "NUL": (text("a\0b") + END, [Delta("a\ufffdb"), Done("stop")], None),
    "CRLF": ((START + text("a") + TURN_END + END).replace(b"\n", b"\r\n"), [Delta("a"), Done("stop", USED)], None),
}


@pytest.mark.parametrize(("data", "events", "error"), ROWS.values(), ids=ROWS.keys())
def test_a_stream_gives_these_events_at_every_split(data, events, error):
    assert play(AnthropicDecoder(), [data]) == (events, error)
    assert_same_at_every_split(AnthropicDecoder, data, (events, error))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_stop_reasons_are_told_in_the_words_of_chat_completions(theirs, ours):
    events, error = play(AnthropicDecoder(), [stop(theirs) + END])
    assert (events, error) == ([Done(ours)], None)


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_no_bytes_at_all_raise_anything_but_a_model_error(data, more):
    play(AnthropicDecoder(), [data, b"data: " + more + b"\n\n", text("X").replace(b"X", more)])


def test_tool_arguments_without_end_are_an_error():
    pieces = [delta("input_json_delta", partial_json="x" * 100_000)] * 11
    assert play(AnthropicDecoder(), [block("tool_use", id="t", name="n"), *pieces]) == ([], ModelProtocolError)


def test_an_answer_that_was_not_streamed_is_a_reply():
    body = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 9, "output_tokens": 7},
    }
    assert play(decoder_for("application/json"), [json.dumps(body).encode()]) == (
        [Reasoning("hm"), Delta("Hello"), Tool("t", "n", '{"a":1}'), Done("tool_calls", USED)],
        None,
    )


def test_a_json_error_is_a_failure():
    body = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
    assert play(decoder_for("application/json"), [body]) == ([], ModelFailed)
    assert play(decoder_for("application/json"), [b"{}"]) == ([], ModelClosedEarly)
    assert decoder_for("text/html") is None


def test_the_request_follows_the_messages_api():
    settings = load({"FLASKCHAT_ANTHROPIC_API_KEY": "sk-ant-secret", "FLASKCHAT_MAX_OUTPUT_TOKENS": 100})
    turns = [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "  Bye")]
    source = AnthropicProvider(settings).source(Request(model="m", turns=turns, system_prompt="Be kind."))
    assert msgspec.json.decode(source._body) == {
        "model": "m",
        "max_tokens": 100,
        "stream": True,
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "  Bye"},
        ],
    }
    head = source._endpoint.head(12).decode()
    assert head.startswith("POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\n")
    assert "\r\nx-api-key: sk-ant-secret\r\n" in head
    assert "\r\nanthropic-version: 2023-06-01\r\n" in head


def test_a_reply_that_is_continued_is_the_models_turn_and_then_asked_for():
    request = Request(model="m", turns=[Turn("user", "Hi")], partial="Hel")
    body = msgspec.json.decode(AnthropicProvider(load({})).source(request)._body)
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("user", "Hi"),
        ("assistant", "Hel"),
        ("user", CONTINUE),
    ]


def test_empty_turns_go_and_neighbours_of_one_role_are_joined():
    turns = [
        Turn("user", "Hi"),
        Turn("assistant", " "),
        Turn("user", "again"),
        Turn("assistant", "One"),
        Turn("assistant", "two"),
    ]
    source = AnthropicProvider(load({})).source(Request(model="m", turns=turns))
    body = msgspec.json.decode(source._body)
    assert body["messages"] == [
        {"role": "user", "content": "Hi\n\nagain"},
        {"role": "assistant", "content": "One\n\ntwo"},
    ]
    assert "system" not in body
    assert b"x-api-key" not in source._endpoint.head(0)


def test_the_address_may_end_in_v1():
    settings = load({"FLASKCHAT_ANTHROPIC_BASE_URL": "http://127.0.0.1:9/v1/"})
    source = AnthropicProvider(settings).source(Request(model="m", turns=[]))
    assert source._endpoint.head(0).startswith(b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:9\r\n")

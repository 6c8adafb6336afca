from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaskchat.errors import ModelClosedEarly, ModelError, ModelFailed, ModelProtocolError
from flaskchat.models import Delta, Done, Reasoning, Tool, Usage
from flaskchat.providers import decoding
from flaskchat.providers.openai import OpenAIDecoder

from .replies import assert_same_at_every_split, play, sse


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def raw(content: bytes) -> bytes:
    """A chunk whose content's JSON is written by hand."""
    return b'{"choices":[{"delta":{"content":"' + content + b'"}}]}'


def call(index=None, identifier=None, name=None, arguments=None):
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    piece = {"function": function}
    if index is not None:
        piece["index"] = index
    if identifier is not None:
        piece["id"] = identifier
    return chunk(tool_calls=[piece])


STOP = chunk("stop")
END = "[DONE]"
USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
}
COUNTED = Usage(input_tokens=10, output_tokens=20, reasoning_tokens=5, cached_tokens=4)

ROWS = {
    "a plain reply": (
        sse(chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), STOP, END),
        [Delta("Hello"), Done("stop")],
        None,
    ),
    "comments and unknown fields": (
        b": hi\n\nretry: 5\n" + sse(chunk(content="a"), STOP) + b": x\n\n" + sse(END),
        [Delta("a"), Done("stop")],
        None,
    ),
    "usage in a last chunk without choices": (
        sse(chunk(content="a"), STOP, USAGE, END),
        [Delta("a"), Done("stop", COUNTED)],
        None,
    ),
    "usage null in every chunk": (
        sse(chunk(content="a") | {"usage": None}, STOP | {"usage": None}, END),
        [Delta("a"), Done("stop")],
        None,
    ),
    "usage that is nonsense": (
        sse(
            STOP,
            {
                "usage": {
                    "prompt_tokens": "x",
                    "completion_tokens": -4.0,
                    "prompt_tokens_details": 3,
                    "completion_tokens_details": {"reasoning_tokens": True},
                }
            },
            END,
        ),
        [Done("stop", Usage())],
        None,
    ),
    "usage beyond any count": (
        sse(STOP, b'{"usage":{"prompt_tokens":1e999,"completion_tokens":99999999999999999999}}', END),
        [Done("stop", Usage(output_tokens=(1 << 53) - 1))],
        None,
    ),
    "reasoning_content": (
        sse(chunk(reasoning_content="hm"), chunk(reasoning_content="!"), chunk(content="a"), STOP, END),
        [Reasoning("hm!"), Delta("a"), Done("stop")],
        None,
    ),
    "reasoning": (
        sse(chunk(reasoning="hm", content=""), chunk(reasoning=None, content="a"), STOP, END),
        [Reasoning("hm"), Delta("a"), Done("stop")],
        None,
    ),
    "reasoning between text": (
        sse(chunk(content="a"), chunk(reasoning="hm"), chunk(content="b"), STOP, END),
        [Delta("a"), Reasoning("hm"), Delta("b"), Done("stop")],
        None,
    ),
    "a refusal is text": (sse(chunk(refusal="I will not."), STOP, END), [Delta("I will not."), Done("stop")], None),
    "text with the finish reason": (sse(chunk("length", content="a"), END), [Delta("a"), Done("length")], None),
    "an empty finish reason is none": (
        sse(chunk("", content="a"), chunk("", content="b"), STOP, END),
        [Delta("ab"), Done("stop")],
        None,
    ),
    "no DONE after a finish reason": (sse(chunk(content="a"), STOP), [Delta("a"), Done("stop")], None),
    "no DONE after finish reason and usage": (
        sse(chunk(content="a"), STOP, USAGE),
        [Delta("a"), Done("stop", COUNTED)],
        None,
    ),
    "neither DONE nor finish reason": (sse(chunk(content="a")), [Delta("a")], ModelClosedEarly),
    "nothing at all": (b"", [], ModelClosedEarly),
    "DONE without a finish reason": (sse(chunk(content="a"), END), [Delta("a"), Done("stop")], None),
    "DONE without its blank line": (sse(chunk(content="a")) + b"data: [DONE]", [Delta("a"), Done("stop")], None),
    "a frame that was cut off": (sse(chunk(content="a")) + b'data: {"choices":[{"del', [Delta("a")], ModelClosedEarly),
    "what follows DONE": (
        sse(chunk(content="a"), STOP, END, chunk(content="b"), {"error": "x"}, "garbage"),
        [Delta("a"), Done("stop")],
        None,
    ),
    "CRLF": (sse(chunk(content="a"), STOP, END).replace(b"\n", b"\r\n"), [Delta("a"), Done("stop")], None),
    "CR": (sse(chunk(content="a"), STOP, END).replace(b"\n", b"\r"), [Delta("a"), Done("stop")], None),
    "no space after the colon": (
        sse(chunk(content="a"), STOP, END).replace(b"data: ", b"data:"),
        [Delta("a"), Done("stop")],
        None,
    ),
    "JSON over several data lines": (
        b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n' + sse(STOP, END),
        [Delta("a"), Done("stop")],
        None,
    ),
    "line ends in the text stay text": (
        sse(chunk(content="a\r\ndata: x\n\n\u2028b"), STOP, END),
        [Delta("a\r\ndata: x\n\n\u2028b"), Done("stop")],
        None,
    ),
    "an error as data": (
        sse(chunk(content="a"), {"error": {"message": "overloaded", "code": 503}}),
        [Delta("a")],
        ModelFailed,
    ),
    "an error as text": (sse(chunk(content="a"), {"error": "overloaded"}), [Delta("a")], ModelFailed),
    "an error beside choices": (sse(chunk("error", content="a") | {"error": {"code": 502}}), [], ModelFailed),
    "an error event": (
        sse(chunk(content="a")) + sse({"message": "overloaded"}, event="error"),
        [Delta("a")],
        ModelFailed,
    ),
    "an error event that is no JSON": (sse("it broke", event="error"), [], ModelFailed),
    "error null": (sse(chunk(content="a") | {"error": None}, STOP, END), [Delta("a"), Done("stop")], None),
    "invalid JSON": (sse(chunk(content="a"), '{"choices": [', chunk(content="b")), [Delta("a")], ModelProtocolError),
    "JSON that is no object": (sse(chunk(content="a"), "[1]"), [Delta("a")], ModelProtocolError),
    "JSON nested without end": (sse(chunk(content="a"), b"[" * 9000), [Delta("a")], ModelProtocolError),
    "a number without end": (sse(b'{"x":' + b"9" * 5000 + b"}", STOP, END), [Done("stop")], None),
    "an empty data line": (
        b"data:\n\ndata: \n\n" + sse(chunk(content="a"), STOP, END),
        [Delta("a"), Done("stop")],
        None,
    ),
    "HTML": (b"<html>\n<body>\n\n</html>", [], ModelClosedEarly),
    "bad UTF-8": (sse(raw(b"a\xff\xc3("), STOP, END), [Delta("a\ufffd\ufffd("), Done("stop")], None),
    "bad UTF-8 where nobody looks": (
        sse(b'{"id":"\xff","choices":[{"delta":{"content":"a"}}]}', STOP, END),
        [Delta("a"), Done("stop")],
        None,
    ),
    "characters of several bytes": (sse(raw("äß€😀".encode()), STOP, END), [Delta("äß€😀"), Done("stop")], None),
    "a pair of surrogates": (sse(raw(rb"\ud83d\ude00"), STOP, END), [Delta("😀"), Done("stop")], None),
    "a pair over two chunks": (sse(raw(rb"a\ud83d"), raw(rb"\ude00b"), STOP, END), [Delta("a😀b"), Done("stop")], None),
    "a pair with an empty chunk between": (
        sse(raw(rb"\ud83d"), raw(b""), chunk(role="x"), raw(rb"\ude00"), STOP, END),
        [Delta("😀"), Done("stop")],
        None,
    ),
    "a high surrogate alone": (sse(raw(rb"a\ud83d"), raw(b"b"), STOP, END), [Delta("a\ufffdb"), Done("stop")], None),
    "a low surrogate alone": (sse(raw(rb"a\ude00b"), STOP, END), [Delta("a\ufffdb"), Done("stop")], None),
    "a high surrogate at the end": (sse(raw(rb"a\ud83d"), STOP, END), [Delta("a\ufffd"), Done("stop")], None),
    "two high surrogates and a low one": (
        sse(raw(rb"\ud83d"), raw(rb"\ud83d"), raw(rb"\ude00"), STOP, END),
        [Delta("\ufffd😀"), Done("stop")],
        None,
    ),
    "a high surrogate, then thought": (
        sse(raw(rb"\ud83d"), chunk(reasoning="hm"), raw(rb"\ude00"), STOP, END),
        [Delta("\ufffd"), Reasoning("hm"), Delta("\ufffd"), Done("stop")],
        None,
    ),
    "a surrogate in thought after text": (
        sse(chunk(content="a"), b'{"choices":[{"delta":{"reasoning":"\\ud83dx"}}]}', STOP, END),
        [Delta("a"), Reasoning("\ufffdx"), Done("stop")],
        None,
    ),
    "NUL": (sse(raw(rb"a\u0000b"), raw(b"c\x00d"), STOP, END), [Delta("a\ufffdbc\ufffdd"), Done("stop")], None),
    "content in parts": (
        sse(
            chunk(
                content=[
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "a"},
                ]
            ),
            chunk(content="b"),
            STOP,
            END,
        ),
        [Reasoning("hm"), Delta("ab"), Done("stop")],
        None,
    ),
    "wrong types everywhere": (
        sse(
            {"choices": None, "usage": 3},
            {"choices": [None, 4]},
            {"choices": [{"delta": "x", "index": "0"}]},
            {"choices": [{"delta": {"content": 4, "tool_calls": {}}, "finish_reason": 5}]},
            chunk(content="a"),
            STOP,
            END,
        ),
        [Delta("a"), Done("stop")],
        None,
    ),
    "another choice": (
        sse(
            {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]},
            chunk(content="a"),
            STOP,
            END,
        ),
        [Delta("a"), Done("stop")],
        None,
    ),
    "a tool call in pieces": (
        sse(call(0, "c1", "add", ""), call(0, arguments='{"a":'), call(0, arguments="1}"), chunk("tool_calls"), END),
        [Tool("c1", "add", '{"a":1}'), Done("tool_calls")],
        None,
    ),
    "two tool calls": (
        sse(
            chunk(content="a"),
            call(0, "c1", "add", "{"),
            call(1, "c2", "sub", "{"),
            call(0, arguments="}"),
            call(1, arguments="}"),
            chunk("tool_calls"),
            END,
        ),
        [Delta("a"), Tool("c1", "add", "{}"), Tool("c2", "sub", "{}"), Done("tool_calls")],
        None,
    ),
    "tool calls without index": (
        sse(call(None, "c1", "add", "{"), call(None, arguments="}"), call(None, "c2", "sub", "{}"), END),
        [Tool("c1", "add", "{}"), Tool("c2", "sub", "{}"), Done("tool_calls")],
        None,
    ),
    "tool calls without index that repeat their id": (
        sse(call(None, "c1", "add", "{"), call(None, "c1", "add", "}"), END),
        [Tool("c1", "add", "{}"), Done("tool_calls")],
        None,
    ),
    "tool calls that all have index 0": (
        sse(call(0, "c1", "add", "{}"), call(0, "c2", "sub", "{}"), END),
        [Tool("c1", "add", "{}"), Tool("c2", "sub", "{}"), Done("tool_calls")],
        None,
    ),
    "a tool call with arguments as an object": (
        sse(call(0, "c1", "add", {"a": 1}), END),
        [Tool("c1", "add", '{"a":1}'), Done("tool_calls")],
        None,
    ),
    "half a code point in a tool call": (
        sse(
            b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":'
            b'{"name":"n","arguments":"\\ud83d"}}]}}]}',
            b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\ude00\\u0000\\ud83d"}}]}}]}',
            END,
        ),
        [Tool("c", "n", "😀\ufffd\ufffd"), Done("tool_calls")],
        None,
    ),
}


@pytest.mark.parametrize(("data", "events", "error"), ROWS.values(), ids=ROWS.keys())
def test_a_stream_gives_these_events_at_every_split(data, events, error):
    assert play(OpenAIDecoder(), [data]) == (events, error)
    assert_same_at_every_split(OpenAIDecoder, data, (events, error))


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "function_call", "eos_token"])
def test_every_finish_reason_is_kept(reason):
    assert play(OpenAIDecoder(), [sse(chunk(content="a"), chunk(reason), END)]) == ([Delta("a"), Done(reason)], None)


def test_a_finish_reason_without_end_is_cut():
    events, _ = play(OpenAIDecoder(), [sse(chunk("x" * 5000), END)])
    assert events == [Done("x" * 64)]


@given(st.lists(st.text(st.characters())), st.data())
def test_any_text_in_any_pieces_comes_back_storable(texts, draw):
    """`st.characters()` includes surrogates: those that pair up are one character, the others U+FFFD."""
    data = sse(*(chunk(content=text) for text in texts), STOP, END)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    units = "".join(texts).encode("utf-16-le", "surrogatepass")
    expected = units.decode("utf-16-le", "replace").replace("\0", "\ufffd")
    assert play(OpenAIDecoder(), pieces) == ([*([Delta(expected)] if expected else []), Done("stop")], None)


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_no_bytes_at_all_raise_anything_but_a_model_error(data, more):
    play(OpenAIDecoder(), [data, sse(more), sse(raw(more))])


def test_the_deltas_of_one_call_are_one_event():
    assert OpenAIDecoder().feed(sse(*(chunk(content=word) for word in "abc"))) == [Delta("abc")]


def test_text_comes_before_the_error_and_pending_says_that_the_error_is_next():
    decoder = OpenAIDecoder()
    assert decoder.feed(sse(chunk(content="a"), "{")) == [Delta("a")]
    assert decoder.pending
    for _ in range(2):
        with pytest.raises(ModelProtocolError):
            decoder.feed(b"")


def test_the_servers_words_are_in_the_detail_and_not_in_the_message():
    with pytest.raises(ModelFailed) as caught:
        OpenAIDecoder().feed(sse({"error": {"message": "GPU 3 is on fire"}}))
    assert "GPU 3 is on fire" in caught.value.detail
    assert "GPU" not in caught.value.event().message


def test_after_done_nothing_more_is_given():
    decoder = OpenAIDecoder()
    assert decoder.feed(sse(STOP, END))[-1] == Done("stop")
    assert decoder.feed(sse(chunk(content="x"))) == []
    assert decoder.close() == []


def test_a_line_without_end_is_an_error_and_is_not_kept():
    decoder = OpenAIDecoder()
    assert decoder.feed(sse(chunk(content="a")) + b"data: ") == [Delta("a")]
    mebibyte = [b"x" * 65536] * 16
    assert play(decoder, mebibyte[1:], close=False) == ([], None)
    assert play(decoder, mebibyte[:1], close=False) == ([], ModelProtocolError)
    assert decoder._frames._buffer == b""


def test_tool_calls_without_end_are_an_error():
    with pytest.raises(ModelProtocolError):
        OpenAIDecoder().feed(sse(*(call(number, f"c{number}", "n", "") for number in range(decoding.MAX_TOOLS + 1))))
    with pytest.raises(ModelProtocolError):
        OpenAIDecoder().feed(sse(*(call(0, None, None, "x" * 100_000) for _ in range(11))))


def test_every_error_a_decoder_raises_is_a_model_error():
    for data, _, error in ROWS.values():
        assert error is None or issubclass(error, ModelError), data

"""The codec, rule by rule against WHATWG HTML, section 9.2.5 (parsing) and 9.2.6 (interpreting an event stream)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaskchat import sse
from flaskchat.models import Delta, Done, Error, Reset, Usage


def frames(data: bytes, max_line: int = sse.MAX_LINE) -> list[tuple[str, str, bytes]]:
    return [tuple(frame) for frame in sse.Decoder(max_line).feed(data)]


def test_an_event_is_one_line_each_of_id_event_and_data():
    assert sse.encode(7, Delta("Hel")) == b'id: 7\nevent: delta\ndata: {"text":"Hel"}\n\n'


def test_a_done_event_carries_reason_and_usage():
    frame = sse.encode(9, Done("length", Usage(input_tokens=3)))
    assert frame == b'id: 9\nevent: done\ndata: {"finish_reason":"length","usage":{"input_tokens":3}}\n\n'


def test_a_reset_has_no_id():
    assert sse.encode_reset(Reset(4, "Hi")) == b'event: reset\ndata: {"seq":4,"text":"Hi"}\n\n'


def test_the_retry_field_is_one_line():
    assert sse.retry(2000) == b"retry: 2000\n"


def test_a_heartbeat_is_a_comment_without_a_blank_line():
    assert sse.HEARTBEAT == b": hb\n"


@given(st.text(st.characters(codec="utf-8")))
def test_no_text_can_forge_a_field_and_every_text_comes_back(text):
    encoded = sse.encode(1, Delta(text))
    assert encoded.count(b"\n") == 4
    assert b"\r" not in encoded
    ((number, name, data),) = frames(encoded)
    assert (number, name, json.loads(data)) == ("1", "delta", {"text": text})


def test_an_error_event_names_its_code():
    ((_, name, data),) = frames(sse.encode(2, Error("model_busy", "Busy.", True)))
    assert (name, json.loads(data)["code"]) == ("error", "model_busy")


ODD = "a\u2028b\u0085c\x0bd\x0ce".encode()

RULES: list[tuple[str, bytes, list[tuple[str, str, bytes]]]] = [
    ("a nameless event is a message", b"data: a\n\n", [("", "message", b"a")]),
    ("data lines are joined by LF", b"data: a\ndata: b\n\n", [("", "message", b"a\nb")]),
    ("one space after the colon goes, no more", b"data:  a\ndata:b\n\n", [("", "message", b" a\nb")]),
    ("a tab is not a space", b"data:\ta\n\n", [("", "message", b"\ta")]),
    (
        "a field without colon has an empty value",
        b"data\n\ndata\ndata\n\ndata:",
        [("", "message", b""), ("", "message", b"\n")],
    ),
    ("CR ends a line", b"data: a\rdata: b\r\r", [("", "message", b"a\nb")]),
    ("CRLF ends one line", b"data: a\r\ndata: b\r\n\r\n", [("", "message", b"a\nb")]),
    ("LF CR are two line ends", b"data: a\n\rdata: b\n\n", [("", "message", b"a"), ("", "message", b"b")]),
    ("CR CRLF are two line ends", b"data: a\r\r\ndata: b\n\n", [("", "message", b"a"), ("", "message", b"b")]),
    ("a BOM at the start is passed over", b"\xef\xbb\xbfdata: a\n\n", [("", "message", b"a")]),
    ("a second BOM is part of the name", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    ("a BOM later is part of the name", b"\n\xef\xbb\xbfdata: a\n\n", []),
    ("a comment is passed over", b": hb\ndata: a\n:\n\n", [("", "message", b"a")]),
    ("an unknown field is passed over", b"foo: x\nDATA: x\n data: x\ndata: a\n\n", [("", "message", b"a")]),
    ("an event without data is none, and its name is forgotten", b"event: x\n\ndata: a\n\n", [("", "message", b"a")]),
    ("the last event field counts", b"event: x\nevent: y\ndata: a\n\n", [("", "y", b"a")]),
    ("an empty event field means message", b"event: x\nevent\ndata: a\n\n", [("", "message", b"a")]),
    (
        "an event's name lasts for one event",
        b"event: x\ndata: a\n\ndata: b\n\n",
        [("", "x", b"a"), ("", "message", b"b")],
    ),
    ("an id lasts until the next", b"id: 1\ndata: a\n\ndata: b\n\n", [("1", "message", b"a"), ("1", "message", b"b")]),
    ("an id alone is kept for the next event", b"id: 1\n\ndata: b\n\n", [("1", "message", b"b")]),
    ("an empty id resets it", b"id: 1\ndata: a\n\nid\ndata: b\n\n", [("1", "message", b"a"), ("", "message", b"b")]),
    ("an id with NUL is passed over", b"id: 1\nid: 2\x003\ndata: a\n\n", [("1", "message", b"a")]),
    ("an event without its blank line is dropped", b"data: a\n", []),
    ("no other character ends a line", b"data: " + ODD + b"\n\n", [("", "message", ODD)]),
    (
        "a name in bad UTF-8 is read with U+FFFD",
        b"event: \xff\nid: \xfe\ndata: \xff\n\n",
        [("\ufffd", "\ufffd", b"\xff")],
    ),
    ("only blank lines are nothing", b"\n\r\n\r\n\n", []),
]


@pytest.mark.parametrize(("data", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_the_standard_rule(data, expected):
    assert frames(data) == expected


@pytest.mark.parametrize(("data", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_the_standard_rule_at_every_split(data, expected):
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            decoder = sse.Decoder()
            found = [
                tuple(frame)
                for part in (data[:first], data[first:second], data[second:])
                for frame in decoder.feed(part)
            ]
            assert found == expected, (data[:first], data[first:second], data[second:])


PIECES = [b"\r", b"\n", b"data: a", b"data", b"id: 1", b"event: x", b":", b"\xef\xbb\xbf"]


@given(st.lists(st.sampled_from(PIECES)), st.data())
def test_any_split_of_any_stream_gives_the_same_frames(parts, draw):
    stream = b"".join(parts)
    whole = frames(stream)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = sse.Decoder()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [tuple(frame) for frame in decoder.feed(stream[start:end])]
    assert found == whole


LINES = [
    b"data: a\n",
    b"data: \n",
    b"data:b\n",
    b"data\n",
    b"\n",
    b"\r",
    b"id: 1\n",
    b"event: x\n",
    b": c\n",
    b"da",
    b"\xef\xbb\xbf",
]


@given(st.lists(st.one_of(st.sampled_from(LINES), st.just(b"data: c\n\n"))), st.data())
def test_the_short_way_gives_what_the_long_one_gives(parts, draw):
    stream = b"".join(parts)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    short, long = sse.Decoder(), sse.Decoder()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        expected = [(frame.event, frame.data) for frame in long.feed(stream[start:end])]
        bodies = short.plain(stream[start:end])
        if bodies is None:
            assert [(frame.event, frame.data) for frame in short.feed(stream[start:end])] == expected
        else:
            assert [("message", body) for body in bodies] == expected


def test_plain_frames_go_the_short_way_and_others_do_not():
    assert sse.Decoder().plain(b"data: a\n\ndata: b\n\n") == [b"a", b"b"]
    for other in (
        b"data: a\ndata: b\n\n",
        b"data: a\n\nid: 1\n\n",
        b"data: a\r\n\n",
        b"data: a\n",
        b"",
        b"data: a\n\n\n",
    ):
        assert sse.Decoder().plain(other) is None
    assert sse.Decoder(10).plain(b"data: 0123456789\n\n") is None
    half = sse.Decoder()
    half.feed(b"event: x\n")
    assert half.plain(b"data: a\n\n") is None


def test_a_frame_that_ends_in_cr_is_not_held_back():
    decoder = sse.Decoder()
    assert [frame.data for frame in decoder.feed(b"data: a\r\r")] == [b"a"]
    assert decoder.feed(b"\n") == []
    assert [frame.data for frame in decoder.feed(b"data: b\r\n\r\n")] == [b"b"]


def test_comments_are_counted_as_heartbeats():
    decoder = sse.Decoder()
    decoder.feed(b": hb\n:\n\n: x")
    assert decoder.heartbeats == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"retry: 1500", 1500),
        (b"retry: 1.5", None),
        (b"retry: -1", None),
        (b"retry:", None),
        (b"retry: \xc2\xb2", None),
        (b"retry: " + b"9" * 5000, None),
    ],
)
def test_retry_takes_ascii_digits_only(line, expected):
    decoder = sse.Decoder()
    decoder.feed(line + b"\n")
    assert decoder.retry == expected


def byte_by_byte(decoder: sse.Decoder, data: bytes) -> None:
    for at in range(len(data)):
        decoder.feed(data[at : at + 1])


@pytest.mark.parametrize(
    "piece",
    [
        b"data: " + b"x" * 200,
        b"x" * 200,
        b": " + b"x" * 200 + b"\n",
        b"event: " + b"x" * 200 + b"\n\n",
        b"data: x\n" * 50,
        b"data:\n" * 50,
        b"data\n" * 50,
    ],
)
def test_a_line_or_a_frame_that_is_too_long_is_an_error_in_one_piece_and_byte_by_byte(piece):
    with pytest.raises(sse.LineTooLong):
        sse.Decoder(100).feed(piece)
    with pytest.raises(sse.LineTooLong):
        byte_by_byte(sse.Decoder(100), piece)


def test_frames_before_an_over_long_line_are_returned_and_the_error_comes_next():
    decoder = sse.Decoder(100)
    assert [frame.data for frame in decoder.feed(b"data: a\n\n" + b"x" * 101)] == [b"a"]
    assert decoder.failed
    for _ in range(2):
        with pytest.raises(sse.LineTooLong):
            decoder.feed(b"data: b\n\n")


def test_many_frames_of_allowed_size_are_no_error():
    assert len(frames(b"data: 0123456789\n\n" * 1000, max_line=100)) == 1000

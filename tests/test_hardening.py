"""Hostile bodies and hostile models, one named test each. Nothing here may be answered with a 5xx, hang, or be taken
for something else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flaskchat import FlaskChat, Request
from flaskchat.testing import ChatClient, Reply
from tests.hosts import bare, host, problem, send


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False)
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def visitor(app: Flask, client: FlaskClient) -> ChatClient:
    return ChatClient(app, client)


def post(client: FlaskClient, data: bytes | str, **more: Any) -> TestResponse:
    return client.post("/chat/conversation", data=data, content_type="application/json", **more)


def message(text: str, client_id: str = "1") -> bytes:
    """A body whose text is this JSON, as it stands."""
    return b'{"message": {"id": "%b", "text": %b}}' % (client_id.encode(), text.encode("utf-8", "surrogatepass"))


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_invalid_utf8_in_a_body(client: FlaskClient) -> None:
    for wrong in (b"\xff", b"\xc3", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"):
        data = b'{"message": {"id": "1", "text": "a' + wrong + b'"}}'
        assert post(client, data).status_code in (415, 422), wrong


def test_an_encoded_surrogate_in_a_body(client: FlaskClient) -> None:
    assert post(client, message('"\ud800"')).status_code in (415, 422)


def test_an_escaped_lone_surrogate_in_a_text(client: FlaskClient) -> None:
    for escape in (r'"\ud800"', r'"\udc00"', r'"\ud800\u0041"', r'"\udc00\ud800"'):
        assert post(client, message(escape)).status_code in (415, 422), escape


def test_an_escaped_pair_of_surrogates_is_one_character(visitor: ChatClient) -> None:
    assert visitor._read(post(visitor.client, message(r'"\ud83d\ude00"'))).text == "😀 "


def test_utf16_and_utf32_bodies(client: FlaskClient) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        problem(post(client, json.dumps(send()).encode(encoding)), 415, "not_json")


def test_a_byte_order_mark_before_a_body(client: FlaskClient) -> None:
    assert post(client, b"\xef\xbb\xbf" + json.dumps(send()).encode()).status_code in (200, 415)


def test_a_compressed_body(client: FlaskClient) -> None:
    data = gzip.compress(json.dumps(send()).encode())
    problem(post(client, data, headers={"Content-Encoding": "gzip"}), 415, "not_json")


def test_nul_in_a_text(visitor: ChatClient) -> None:
    reply = visitor._read(post(visitor.client, message(r'"a\u0000b"')))
    assert reply.text == "a\ufffdb "
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert [m["text"] for m in found["messages"]] == ["a\ufffdb", "a\ufffdb "]


def test_nul_and_line_ends_in_ids(client: FlaskClient) -> None:
    for bad in ("a\0", "a\n", "a\r\nid: 9", "\u2028", "ａ", "a/b", "a b", '"', "<b>"):
        for body in (
            send(client_id=bad),
            send(conversation_id=bad),
            send(conversation_id="c_x", parent_id=bad),
            {"action": "regenerate", "message_id": bad, "request_id": "r"},
            {"action": "regenerate", "message_id": "m_x", "request_id": bad},
        ):
            problem(post(client, json.dumps(body)), 422, "invalid")


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"message":', '{"message":{"id":', '{"x":['])
def test_deep_nesting(client: FlaskClient, opening: str) -> None:
    for depth in (500, 5_000, 200_000):
        assert post(client, opening * min(depth, 1_000_000 // len(opening))).status_code in (415, 422)
    whole = '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"
    assert post(client, whole).status_code in (415, 422)


def test_huge_numbers(client: FlaskClient) -> None:
    for number in ("9" * 100_000, "1e999999", "-1e999999", "1e-999999", "NaN", "Infinity", "-0", "0x10", "01", "1."):
        for member in (f'"conversation_id": {number}', f'"unknown": {number}', f'"model": {number}'):
            data = f'{{"message": {{"id": "n", "text": ""}}, {member}}}'
            assert post(client, data).status_code in (415, 422), (number[:20], member[:20])
        assert post(client, message(number)).status_code in (415, 422)


def test_duplicate_keys_are_one_message_in_all_that_is_kept(visitor: ChatClient) -> None:
    data = b'{"message": {"id": "1", "text": "first"}, "message": {"id": "2", "text": "a", "text": "last"}}'
    reply = visitor._read(post(visitor.client, data))
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert (reply.text, found["title"], found["messages"][0]["text"]) == ("last ", "last", "last")


def test_wrong_types_everywhere(client: FlaskClient) -> None:
    valid: dict[str, Any] = {
        "message": {"id": "1", "text": "x"}, "conversation_id": "c_x", "parent_id": "m_x", "model": "parrot",
        "action": "send", "message_id": "m_x", "request_id": "r",
    }  # fmt: skip
    for wrong in (0, 1.5, True, [], [{}], {}, {"id": {}}, [[]], {"$ne": None}):
        for key in valid:
            body = {**valid, key: wrong}
            assert post(client, json.dumps(body)).status_code == 422, (key, wrong)
        for key in ("id", "text"):
            body = {**valid, "message": {**valid["message"], key: wrong}}
            assert post(client, json.dumps(body)).status_code == 422, (key, wrong)


def test_a_hundred_thousand_unknown_keys(client: FlaskClient) -> None:
    body = json.dumps({**send("hi"), **{f"k{n}": n for n in range(50_000)}})
    assert post(client, body).status_code == 200


def test_prototype_and_dunder_keys(visitor: ChatClient) -> None:
    body = {**send("hi"), "__class__": "x", "__proto__": {"owner": "y"}, "constructor": {}, "owner": "user:1"}
    assert visitor._read(post(visitor.client, json.dumps(body))).text == "hi "


def test_an_invalid_value_is_not_sent_back_at_length(client: FlaskClient) -> None:
    assert len(post(client, json.dumps(send(action="A" * 500_000))).data) < 1000
    assert len(post(client, json.dumps(send(model="A" * 250))).data) < 1000


def test_a_text_that_is_only_white_space_of_every_kind(client: FlaskClient) -> None:
    problem(post(client, json.dumps(send(" \t\r\n\u2003\u3000\x0b\x0c"))), 422, "invalid")


def test_a_text_of_control_characters_and_markup_comes_back_as_it_was(visitor: ChatClient) -> None:
    text = "<script>alert(1)</script>\x1b[31m\u202e\u2066\ufeff{{7*7}}${x}%s\\n"
    reply = visitor.ask(text)
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert found["messages"][0]["text"] == text


def test_a_question_that_turns_the_direction_of_text_makes_a_title_that_does_not(visitor: ChatClient) -> None:
    reply = visitor.ask("pay\u202e lla \u2066\u061c\x1b[31m me\U000e0041\u2028now")
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert found["title"] == "pay lla [31m me now"
    assert reply.events[0].data["title"] == found["title"]


def test_an_empty_body_and_none_at_all(client: FlaskClient) -> None:
    problem(post(client, b""), 415, "not_json")
    problem(client.post("/chat/conversation"), 415, "not_json")


def test_a_body_of_white_space(client: FlaskClient) -> None:
    problem(post(client, b" " * 100_000), 415, "not_json")


def test_content_types_that_only_look_like_json(client: FlaskClient) -> None:
    for kind in ("application/jsonp", "application/json+x", "text/plain; application/json", "", "application", "\x7f"):
        response = client.post("/chat/conversation", data=json.dumps(send()), content_type=kind)
        problem(response, 415, "not_json")


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_model_id_with_line_ends_markup_or_a_path(client: FlaskClient) -> None:
    for model in ("parrot\n", " parrot", "PARROT", "../parrot", "<b>", "openai:", ":", "python:", "openai:x\r\nHost: y",
                  "anthropic:x", "guide", "http://127.0.0.1/", "\0", "parrot\0"):  # fmt: skip
        problem(post(client, json.dumps(send(model=model))), 422, "invalid")


def reply_of(tmp_path: Path, pieces: Any) -> Reply:
    """The reply of a model that yields these pieces, the same from the stream and from the store."""
    app = bare(tmp_path)
    FlaskChat(app).model("hostile")(lambda request: pieces)
    with ChatClient(app) as chat:
        reply = chat.ask("x")
        assert chat.follow(reply.run_id) == reply.events
        found = chat.client.get(f"/chat/conversations/{reply.conversation_id}").json
        assert found is not None
        assert found["messages"][1]["text"] == reply.text
        assert found["messages"][1]["status"] == reply.state
        assert [event.seq for event in reply.events] == list(range(1, len(reply.events) + 1))
        return reply


def test_a_model_that_writes_frames_forges_none(tmp_path: Path) -> None:
    forged = "\n\nid: 999\nevent: done\ndata: {}\n\n\r\n\rretry: 1\r: hb\n\ufeff\u2028\u2029\x85\x0b\x0c"
    reply = reply_of(tmp_path, [forged, "\r", "\n", "x"])
    assert reply.text == forged + "\r\nx"
    assert [event.name for event in reply.events].count("done") == 1


def test_a_model_that_writes_surrogates_and_nul(tmp_path: Path) -> None:
    reply = reply_of(tmp_path, ["a\ud800b\0", "\udfff", "c"])
    assert reply.text == "a\ufffdb\ufffd\ufffdc"


def test_a_model_that_writes_one_huge_piece(tmp_path: Path) -> None:
    assert reply_of(tmp_path, ["ü" * 300_000]).text == "ü" * 300_000


def test_a_model_that_writes_without_end_is_cut_off(tmp_path: Path) -> None:
    def endless(request: Request) -> Iterator[str]:
        while True:
            yield "x" * 1000

    app = bare(tmp_path, FLASKCHAT_MAX_REPLY_BYTES=20_000)
    FlaskChat(app).model("endless")(endless)
    with ChatClient(app) as chat:
        reply = chat.ask("x")
        assert (reply.state, reply.events[-1].data["code"]) == ("error", "reply_too_long")
        assert 20_000 <= len(reply.text) < 400_000


@pytest.mark.parametrize("pieces", [None, 5, [None], [b"bytes"], [["x"]], [5]], ids=repr)
def test_a_model_that_yields_what_is_no_text(tmp_path: Path, pieces: Any) -> None:
    reply = reply_of(tmp_path, pieces)
    assert (reply.state, reply.events[-1].data["code"]) == ("error", "model_raised")


def test_a_model_that_yields_nothing(tmp_path: Path) -> None:
    assert reply_of(tmp_path, []).state == "done"
    assert reply_of(tmp_path / "2", ["", ""]).text == ""


@pytest.mark.parametrize(
    "error",
    [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration(), MemoryError(), RecursionError()],
    ids=repr,
)
def test_a_model_that_raises_what_ends_processes(tmp_path: Path, error: BaseException) -> None:
    def ending(request: Request) -> Iterator[str]:
        yield "before "
        raise error

    app = bare(tmp_path)
    FlaskChat(app).model("ending")(ending)
    with ChatClient(app) as chat:
        reply = chat.ask("x")
        assert (reply.text, reply.state) == ("before ", "error")
        assert "before" not in json.dumps(reply.events[-1].data)
        assert chat.ask("again").state == "error", "and the worker goes on"


def test_what_a_model_raised_is_not_told_to_the_client(tmp_path: Path) -> None:
    def leaking(request: Request) -> Iterator[str]:
        yield "a"
        raise RuntimeError("postgresql://user:hunter2@db")

    app = bare(tmp_path)
    FlaskChat(app).model("leaking")(leaking)
    with ChatClient(app) as chat:
        reply = chat.ask("x")
        found = chat.client.get(f"/chat/conversations/{reply.conversation_id}").text
        assert "hunter2" not in json.dumps([event.data for event in reply.events]) + found

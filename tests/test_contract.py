"""The HTTP contract, line by line. What is about bytes on the wire is asked of a real gunicorn, the rest of the
application itself."""

from __future__ import annotations

import datetime
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from flaskchat import FlaskChat, Request
from flaskchat.testing import ChatClient
from tests.conftest import Server
from tests.hosts import Gate, bare, host, parrot, send
from tests.server.client import deadline, seqs

PROBLEM = "application/problem+json"
ID = {"conversation_id": r"c_[\w-]{20,}", "message_id": r"m_[\w-]{20,}", "run_id": r"run_[\w-]{20,}"}
EVENTS = "start|delta|reasoning|tool|title|done|error|stopped|interrupted"
FRAME = re.compile(rb"(?:retry: \d+\n)?id: \d+\nevent: (?:" + EVENTS.encode() + rb")\ndata: \{[^\r\n]*\}\n\n")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False)
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def visitor(app: Flask) -> ChatClient:
    return ChatClient(app)


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two gevent workers; one server for all tests here that need one."""
    server = Server(
        tmp_path_factory.mktemp("contract"),
        {"FLASKCHAT_MODEL": "count", "FLASKCHAT_HEARTBEAT": "0.2", "FLASKCHAT_MAX_BODY_BYTES": "4096"},
        workers=2, kind="gevent", app="tests.server.app:app", args=[],
    )  # fmt: skip
    yield server
    server.close()


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The response's problem document, once it is one."""
    assert response.status_code == status, response.text
    assert response.content_type == PROBLEM
    body = response.json
    assert isinstance(body, dict)
    assert (body["status"], body["code"]) == (status, code)
    for member in ("type", "title", "detail", "code"):
        assert isinstance(body[member], str)
        assert body[member]
    return body


# -- POST /conversation ------------------------------------------------------------------------------------------------


def test_a_stream_has_exactly_the_headers_of_the_contract(gunicorn: Server) -> None:
    client = gunicorn.client()
    posted = client.send("3 0")
    posted.rest()
    followed = client.follow(posted.run_id)
    followed.rest()
    for stream in (posted, followed):
        assert stream.status == 200
        assert stream.headers.get_all("Content-Type") == ["text/event-stream; charset=utf-8"]
        assert stream.headers.get_all("Cache-Control") == ["no-cache, no-store, no-transform"]
        assert stream.headers.get_all("X-Accel-Buffering") == ["no"]
        assert stream.headers.get_all("X-Content-Type-Options") == ["nosniff"]
        assert stream.headers.get_all("Flaskchat-Run-Id") == [posted.run_id]
        assert re.fullmatch(ID["run_id"], stream.run_id)
        assert not [name for name in stream.headers if name.lower().startswith("access-control-")]


def test_a_stream_is_frames_as_the_contract_writes_them(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("30 200")
    frames = stream.rest()
    raw = stream.raw
    assert re.match(rb"retry: \d+\nid: 1\nevent: start\ndata: \{", raw), "the retry stands inside the first frame"
    assert raw.count(b"retry:") == 1
    assert 1000 <= int(raw.split(b"\n")[0].split()[1]) <= 3000
    assert b"".join(FRAME.findall(raw)) == raw, "nothing stands between the frames"
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert [frame.event for frame in frames[1:-1]] == ["delta"] * (len(frames) - 2)
    start = json.loads(frames[0].data)
    assert list(start) == ["run_id", "conversation_id", "message_id", "user_message_id", "model", "title"]
    assert start["run_id"] == stream.run_id
    assert re.fullmatch(ID["conversation_id"], start["conversation_id"])
    assert re.fullmatch(ID["message_id"], start["message_id"])
    assert re.fullmatch(ID["message_id"], start["user_message_id"])
    assert (start["model"], start["title"]) == ("count", "30 200")
    assert all(list(json.loads(frame.data)) == ["text"] for frame in frames[1:-1])
    assert list(json.loads(frames[-1].data)) == ["finish_reason", "usage"]
    assert frames[-1].event == "done"


def test_silence_brings_heartbeats_without_a_blank_line_after_them(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("2 1")
    stream.rest()
    raw = stream.raw
    assert stream.heartbeats >= 2
    assert raw.count(b": hb\n") == stream.heartbeats
    assert b": hb\n\n" not in raw
    assert b"".join(FRAME.findall(raw)) == raw.replace(b": hb\n", b"")


def test_a_send_makes_a_conversation_or_goes_on_at_its_leaf(visitor: ChatClient) -> None:
    first = visitor.ask("one")
    second = visitor.ask("two", conversation_id=first.conversation_id)
    assert second.conversation_id == first.conversation_id
    found = visitor.client.get(f"/chat/conversations/{first.conversation_id}").json
    assert found is not None
    roles = [(m["role"], m["text"], m["parent_id"]) for m in found["messages"]]
    ids = [m["id"] for m in found["messages"]]
    assert roles == [
        ("user", "one", None),
        ("assistant", "one ", ids[0]),
        ("user", "two", ids[1]),
        ("assistant", "two ", ids[2]),
    ]
    assert found["current_leaf_id"] == ids[3]


def test_an_edit_is_a_sibling_of_the_edited_message(visitor: ChatClient) -> None:
    first = visitor.ask("one")
    edited = visitor.client.post(
        "/chat/conversation", json=send("uno", "e", conversation_id=first.conversation_id, parent_id=None)
    )
    assert edited.status_code == 200
    edited.close()
    found = visitor.client.get(f"/chat/conversations/{first.conversation_id}").json
    assert found is not None
    assert [m["parent_id"] for m in found["messages"] if m["role"] == "user"] == [None, None]
    assert [m["text"] for m in found["messages"] if m["role"] == "assistant"] == ["one ", "uno "]


def test_a_regeneration_is_a_sibling_of_the_reply(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    body = {"action": "regenerate", "message_id": reply.message_id, "request_id": "r1"}
    again = visitor._read(visitor.client.post("/chat/conversation", json=body))
    assert again.message_id != reply.message_id
    assert again.conversation_id == reply.conversation_id
    assert again.events[0].data["user_message_id"] == reply.events[0].data["user_message_id"]
    repeated = visitor._read(visitor.client.post("/chat/conversation", json=body))
    assert repeated.run_id == again.run_id
    conflict = visitor.client.post("/chat/conversation", json={**body, "model": "parrot"})
    assert problem(conflict, 422, "idempotency_conflict")["errors"] == [{"field": "request_id", "reason": "used before"}]


def test_a_stopped_reply_is_continued_in_the_same_message_and_a_done_one_is_not(tmp_path: Path) -> None:
    app = bare(tmp_path)
    gate = Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        posted = chat.client.post("/chat/conversation", json=send(), buffered=False)
        run_id = posted.headers["Flaskchat-Run-Id"]
        stopped = chat.client.post(f"/chat/runs/{run_id}/stop").json
        assert stopped is not None
        assert (stopped["run_id"], stopped["state"]) == (run_id, "stopped")
        posted.get_data()
        posted.close()
        gate.opened.set()
        start = chat.follow(run_id)[0].data
        body = {"action": "continue", "message_id": start["message_id"], "request_id": "c1"}
        went_on = chat._read(chat.client.post("/chat/conversation", json=body))
        assert went_on.message_id == start["message_id"]
        assert went_on.run_id != run_id
        assert went_on.state == "done"
        problem(chat.client.post("/chat/conversation", json={**body, "request_id": "c2"}), 422, "invalid")


def test_the_same_id_with_the_same_body_follows_the_same_run_from_its_start(visitor: ChatClient) -> None:
    first = visitor._read(visitor.client.post("/chat/conversation", json=send()))
    response = visitor.client.post("/chat/conversation", json=send())
    assert response.headers["Flaskchat-Run-Id"] == first.run_id
    assert visitor._read(response) == first
    with_spaces = json.dumps(send(), indent=2).encode()
    again = visitor.client.post("/chat/conversation", data=with_spaces, content_type="application/json")
    assert visitor._read(again) == first
    other = visitor.client.post("/chat/conversation", json=send("other words"))
    assert problem(other, 422, "idempotency_conflict")["errors"] == [{"field": "message.id", "reason": "used before"}]
    stranger = ChatClient(visitor.client.application)
    assert stranger._read(stranger.client.post("/chat/conversation", json=send("mine"))).text == "mine "


def test_a_reply_that_is_being_written_refuses_another_beside_it(tmp_path: Path) -> None:
    app = bare(tmp_path)
    gate = Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        posted = chat.client.post("/chat/conversation", json=send(), buffered=False)
        run_id = posted.headers["Flaskchat-Run-Id"]
        listed = chat.client.get("/chat/conversations").json
        assert listed is not None
        (item,) = listed["items"]
        assert item["running_run_id"] == run_id
        refused = chat.client.post("/chat/conversation", json=send("more", "2", conversation_id=item["id"]))
        assert problem(refused, 409, "run_in_progress")["run_id"] == run_id
        found = chat.client.get(f"/chat/conversations/{item['id']}").json
        assert found is not None
        reply = found["messages"][-1]
        assert reply["status"] == "running"
        assert found["running"] == [{"run_id": run_id, "message_id": reply["id"]}]
        body = {"action": "regenerate", "message_id": reply["id"], "request_id": "r"}
        problem(chat.client.post("/chat/conversation", json=body), 409, "run_in_progress")
        gate.opened.set()
        assert b"event: done" in posted.get_data()
        posted.close()


@pytest.mark.parametrize("prefix", ["", "openai:"])
def test_a_model_is_chosen_by_its_id_and_only_if_it_is_offered(tmp_path: Path, prefix: str) -> None:
    app = bare(tmp_path)
    chat = FlaskChat(app)
    chat.model("one")(lambda request: ["1"])
    chat.model("two")(lambda request: ["2"])
    with ChatClient(app) as client:
        first = client.ask("x")
        assert first.text == "1"
        second = client.ask("x", model="two", conversation_id=first.conversation_id)
        assert second.text == "2"
        assert client.ask("x", conversation_id=first.conversation_id).text == "2", "the conversation's"
        body = send("x", "u", model=f"{prefix}unheard-of")
        errors = problem(client.client.post("/chat/conversation", json=body), 422, "invalid")["errors"]
        assert [error["field"] for error in errors] == ["model"]


REFUSED: list[tuple[Any, int, str, list[str] | None]] = [
    (b"", 415, "not_json", None),
    (b"{", 415, "not_json", None),
    (b"hello", 415, "not_json", None),
    ([], 422, "invalid", [""]),
    ("text", 422, "invalid", [""]),
    (None, 422, "invalid", [""]),
    ({}, 422, "invalid", ["message"]),
    ({"message": None}, 422, "invalid", ["message"]),
    ({"message": {"id": "1"}}, 422, "invalid", ["message"]),
    ({"message": {"id": "1", "text": 5}}, 422, "invalid", ["message.text"]),
    ({"message": {"id": 5, "text": "x"}}, 422, "invalid", ["message.id"]),
    ({"message": {"id": "", "text": "x"}}, 422, "invalid", ["message.id"]),
    ({"message": {"id": "a b", "text": "x"}}, 422, "invalid", ["message.id"]),
    ({"message": {"id": "x" * 129, "text": "x"}}, 422, "invalid", ["message.id"]),
    ({"message": {"id": "1", "text": " \n\t "}}, 422, "invalid", ["message.text"]),
    ({"message": {"id": "1", "text": "x" * 100_001}}, 422, "invalid", ["message.text"]),
    ({"message": {"id": "", "text": ""}, "model": ""}, 422, "invalid", ["model", "message.id", "message.text"]),
    (send(conversation_id=5), 422, "invalid", ["conversation_id"]),
    (send(conversation_id=""), 422, "invalid", ["conversation_id"]),
    (send(conversation_id="c_unknown"), 404, "not_found", None),
    (send(parent_id="m_unknown"), 422, "invalid", ["parent_id"]),
    (send(action="delete"), 422, "invalid", ["action"]),
    (send(action=None), 422, "invalid", ["action"]),
    (send(model="x" * 256), 422, "invalid", ["model"]),
    (send(model=["parrot"]), 422, "invalid", ["model"]),
    ({"action": "regenerate"}, 422, "invalid", ["message_id", "request_id"]),
    ({"action": "continue", "message_id": "m_x"}, 422, "invalid", ["request_id"]),
    ({"action": "regenerate", "message_id": "m_unknown", "request_id": "r"}, 404, "not_found", None),
    ({"action": "continue", "message_id": "m_unknown", "request_id": "r"}, 404, "not_found", None),
]


@pytest.mark.parametrize(("body", "status", "code", "fields"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_body_that_is_wrong_is_refused_before_any_call_to_a_model(
    tmp_path: Path, body: Any, status: int, code: str, fields: list[str] | None
) -> None:
    asked: list[Request] = []
    app = bare(tmp_path, TESTING=False)
    FlaskChat(app).model("spy")(lambda request: asked.append(request) or [])  # type: ignore[func-returns-value]
    client = app.test_client()
    data = body if isinstance(body, bytes) else json.dumps(body)
    found = problem(client.post("/chat/conversation", data=data, content_type="application/json"), status, code)
    app.extensions["flaskchat"].close()
    assert [error["field"] for error in found.get("errors", [])] == (fields or [])
    assert all(error["reason"] for error in found.get("errors", []))
    assert asked == []


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "*/*"]
)
def test_what_does_not_say_that_it_is_json_is_refused(visitor: ChatClient, kind: str | None) -> None:
    response = visitor.client.post("/chat/conversation", data=json.dumps(send()), content_type=kind)
    problem(response, 415, "not_json")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_say_its_charset(visitor: ChatClient, kind: str) -> None:
    response = visitor.client.post("/chat/conversation", data=json.dumps(send()), content_type=kind)
    assert response.status_code == 200
    response.close()


def test_a_body_too_large_is_refused_by_its_length_and_when_it_comes_in_chunks(gunicorn: Server) -> None:
    client = gunicorn.client()
    large = json.dumps(send("x" * 5000)).encode()
    answers = [client.request("POST", "/conversation", large)]
    connection = client.connect()
    connection.request(
        "POST", "/conversation", iter([large[:2500], large[2500:]]), {"Content-Type": "application/json"},
        encode_chunked=True,
    )  # fmt: skip
    chunked = connection.getresponse()
    assert (chunked.status, chunked.headers["Content-Type"]) == (413, PROBLEM)
    assert json.loads(chunked.read())["code"] == "body_too_large"
    assert (answers[0].status, answers[0].headers["Content-Type"]) == (413, PROBLEM)
    found = answers[0].json()
    assert (found["code"], found["status"]) == ("body_too_large", 413)
    small = json.dumps(send("2 0", "chunked")).encode()
    connection = client.connect()
    connection.request(
        "POST", "/conversation", iter([small[:20], small[20:]]), {"Content-Type": "application/json"},
        encode_chunked=True,
    )  # fmt: skip
    assert b"event: done" in connection.getresponse().read()


def test_a_worker_that_is_full_says_so_and_when_to_try_again(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MAX_STREAMS": "1"}, workers=1)
    client = server.client()
    stream = client.send("100 20")
    stream.take(1)
    for refused in (client.send("1 0"), client.follow(stream.run_id), client.get("/sse")):
        assert (refused.status, refused.headers["Content-Type"]) == (503, PROBLEM)
        found = refused.json()
        assert (found["code"], found["status"]) == ("full", 503)
        assert int(refused.headers["Retry-After"]) >= found["retry_after"] > 0
    not_ready = client.get("/readyz")
    found = not_ready.json()
    assert (not_ready.status, not_ready.headers["Content-Type"]) == (503, PROBLEM)
    assert found["code"] == "not_ready"
    assert list(found["wrong"]) == ["full"]
    assert client.get("/healthz").status == 200
    assert client.get("/conversations").status == 200
    assert client.stop(stream.run_id)["state"] == "stopped", "Stop always gets through"
    stream.rest()
    for _ in deadline(5, "the place to be free again"):
        if client.get("/readyz").status == 200:
            break


# -- GET /runs/<run_id>/events -----------------------------------------------------------------------------------------


def test_a_finished_run_is_followed_from_any_cursor(visitor: ChatClient) -> None:
    reply = visitor.ask("one two")
    path = f"/chat/runs/{reply.run_id}/events"
    whole = visitor._events(visitor.client.get(path))
    assert whole == reply.events
    last = whole[-1].seq
    for cursor in range(last):
        assert visitor._events(visitor.client.get(path, headers={"Last-Event-ID": str(cursor)})) == whole[cursor:]
        assert visitor._events(visitor.client.get(f"{path}?last_event_id={cursor}")) == whole[cursor:]
    for end in (
        visitor.client.get(path, headers={"Last-Event-ID": str(last)}),
        visitor.client.get(f"{path}?last_event_id={last}"),
    ):
        assert (end.status_code, end.data) == (204, b"")
        assert end.headers["Cache-Control"] == "no-store"


def test_the_header_goes_before_the_query_unless_it_is_empty(visitor: ChatClient) -> None:
    reply = visitor.ask("one two")
    path = f"/chat/runs/{reply.run_id}/events"
    last = reply.events[-1].seq
    both = visitor.client.get(f"{path}?last_event_id={last}", headers={"Last-Event-ID": "1"})
    assert visitor._events(both)[0].seq == 2
    empty = visitor.client.get(f"{path}?last_event_id={last}", headers={"Last-Event-ID": ""})
    assert empty.status_code == 204
    assert visitor._events(visitor.client.get(path, headers={"Last-Event-ID": ""})) == reply.events
    assert visitor._events(visitor.client.get(f"{path}?last_event_id=")) == reply.events


def test_a_cursor_that_means_nothing_gets_one_reset_and_then_what_is_live(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("30 30")
    stream.take(5)
    for cursor in ("999999", "abc", "-1", "1.5", "0x1", "1-0"):
        frames = client.follow(stream.run_id, cursor).rest()
        assert frames[0].event == "reset", cursor
        assert frames[0].id == "", "a reset is not numbered"
        reset = json.loads(frames[0].data)
        assert list(reset) == ["seq", "text"]
        assert [frame.event for frame in frames[1:]].count("reset") == 0
        rest = frames[1:]
        assert seqs(rest) == list(range(reset["seq"] + 1, reset["seq"] + 1 + len(rest)))
        text = reset["text"] + "".join(json.loads(f.data)["text"] for f in rest if f.event == "delta")
        assert text == "".join(f"word{n} ü€😀 " for n in range(30))
        assert rest[-1].event == "done"
    stream.close()


def test_an_unknown_run_and_somebody_elses_answer_byte_for_byte_alike(app: Flask, visitor: ChatClient) -> None:
    reply = visitor.ask("mine")
    stranger = app.test_client()
    stranger.get("/chat/")
    unknown_run = "run_" + "A" * (len(reply.run_id) - 4)
    unknown_conversation = "c_" + "A" * (len(reply.conversation_id) - 2)
    unknown_message = "m_" + "A" * (len(reply.message_id) - 2)

    def all_of(response: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
        return response.status_code, response.data, sorted(response.headers)

    for method, path, yours, unknown in (
        ("GET", "/chat/runs/%s/events", reply.run_id, unknown_run),
        ("POST", "/chat/runs/%s/stop", reply.run_id, unknown_run),
        ("GET", "/chat/conversations/%s", reply.conversation_id, unknown_conversation),
    ):
        theirs = stranger.open(path % yours, method=method)
        problem(theirs, 404, "not_found")
        assert all_of(theirs) == all_of(stranger.open(path % unknown, method=method))
    for body, other in (
        (send("x", "1", conversation_id=reply.conversation_id), send("x", "1", conversation_id=unknown_conversation)),
        *(
            (
                {"action": action, "message_id": reply.message_id, "request_id": "1"},
                {"action": action, "message_id": unknown_message, "request_id": "1"},
            )
            for action in ("regenerate", "continue")
        ),
    ):
        theirs = stranger.post("/chat/conversation", json=body)
        problem(theirs, 404, "not_found")
        assert all_of(theirs) == all_of(stranger.post("/chat/conversation", json=other))


def test_somebody_elses_message_is_no_parent(visitor: ChatClient, app: Flask) -> None:
    theirs = visitor.ask("mine")
    stranger = ChatClient(app)
    own = stranger.ask("own")
    body = send("x", "1", conversation_id=own.conversation_id, parent_id=theirs.message_id)
    unknown = send("x", "2", conversation_id=own.conversation_id, parent_id="m_unknown")
    one, two = (stranger.client.post("/chat/conversation", json=json_body) for json_body in (body, unknown))
    assert (one.status_code, one.data) == (two.status_code, two.data)
    assert one.status_code in (404, 422)


# -- POST /runs/<run_id>/stop ------------------------------------------------------------------------------------------


def test_stop_answers_the_same_again_and_leaves_a_finished_run_alone(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    expected = {"run_id": reply.run_id, "state": "done", "upstream_closed_ms": None}
    for kind, data in ((None, b""), ("application/json", b"{}"), ("text/plain", b"x")):
        response = visitor.client.post(f"/chat/runs/{reply.run_id}/stop", data=data, content_type=kind)
        assert (response.status_code, response.json) == (200, expected)
        assert response.content_type == "application/json"
    assert visitor.follow(reply.run_id) == reply.events


# -- GET /sse ----------------------------------------------------------------------------------------------------------


def test_sse_is_a_stream_like_the_others(gunicorn: Server) -> None:
    stream = gunicorn.client().get("/sse")
    assert stream.take(2)[1].data == b"Message number 1"
    assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert "no-store" in stream.headers["Cache-Control"]
    assert stream.raw.startswith(b"id: 1\ndata: Connected to SSE endpoint\n\nid: 2\ndata: Message number 1\n\n")
    stream.close()


@pytest.mark.parametrize(("cursor", "status"), [("12", 204), ("99", 204), ("x", 200), ("-5", 200), ("9" * 5000, 200)])
def test_sse_after_its_last_message_is_over(app: Flask, cursor: str, status: int) -> None:
    response = app.test_client().get("/chat/sse", headers={"Last-Event-ID": cursor}, buffered=False)
    assert response.status_code == status
    response.close()


# -- conversations and models ------------------------------------------------------------------------------------------


def test_the_list_has_the_newest_first_in_pages(visitor: ChatClient) -> None:
    replies = [visitor.ask(f"question {number}") for number in range(7)]
    wanted = [reply.conversation_id for reply in reversed(replies)]
    found, cursor, pages = [], "", 0
    while True:
        page = visitor.client.get("/chat/conversations", query_string={"limit": 3, "cursor": cursor}).json
        assert page is not None
        assert list(page) == ["items", "next_cursor"]
        found += [item["id"] for item in page["items"]]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["items"]) == 3
        assert re.fullmatch(r"[\x21-\x7e]+", cursor)
    assert found == wanted
    assert pages == 3
    exactly = visitor.client.get("/chat/conversations?limit=7").json
    assert exactly is not None
    assert (len(exactly["items"]), exactly["next_cursor"]) == (7, None)


def test_an_item_of_the_list_has_exactly_the_members_of_the_contract(visitor: ChatClient) -> None:
    visitor.ask("hello you")
    listed = visitor.client.get("/chat/conversations")
    assert listed.json is not None
    (item,) = listed.json["items"]
    assert set(item) == {"id", "title", "model", "updated_at", "running_run_id"}
    assert (item["title"], item["model"], item["running_run_id"]) == ("hello you", "parrot", None)
    assert_is_a_time(item["updated_at"])
    assert listed.headers["Cache-Control"] == "no-store"


def assert_is_a_time(text: str) -> None:
    """RFC 3339 in UTC, and of now."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(text)
    assert datetime.timedelta(seconds=-1) < age < datetime.timedelta(minutes=2)


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "x", "", "1.5", "٣", "00000000000000000150", "1e1", " 5", "9" * 5000]
)
def test_a_limit_out_of_bounds_is_refused(visitor: ChatClient, limit: str) -> None:
    found = problem(visitor.client.get("/chat/conversations", query_string={"limit": limit}), 422, "invalid")
    assert found["errors"][0]["field"] == "limit"


@pytest.mark.parametrize("cursor", ["x", "W10", "bnVsbA", "eyJhIjoxfQ", "ü", "=", "WzEsMl0x", "!!!!"])
def test_a_cursor_of_the_list_that_is_none_of_ours_is_refused(visitor: ChatClient, cursor: str) -> None:
    found = problem(visitor.client.get("/chat/conversations", query_string={"cursor": cursor}), 422, "invalid")
    assert found["errors"] == [{"field": "cursor", "reason": "unknown"}]


def test_a_search_finds_words_of_titles_and_of_texts(visitor: ChatClient) -> None:
    both = visitor.ask("the quick fox")
    other = visitor.ask("slow snail")
    visitor.ask("hidden treasure", conversation_id=other.conversation_id)

    def search(query: str) -> set[str]:
        found = visitor.client.get("/chat/conversations", query_string={"q": query}).json
        assert found is not None
        return {item["id"] for item in found["items"]}

    assert search("fox") == {both.conversation_id}
    assert search("FOX quick") == {both.conversation_id}
    assert search("treasure") == {other.conversation_id}
    assert search("fox snail") == set()
    assert search("%") == search("_") == search("absent") == set()
    assert search("") == search("  ") == {both.conversation_id, other.conversation_id}
    assert ChatClient(visitor.client.application).client.get("/chat/conversations?q=fox").json["items"] == []  # type: ignore[index]


def test_a_conversation_has_exactly_the_members_of_the_contract(visitor: ChatClient) -> None:
    reply = visitor.ask("hello")
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert set(found) == {"id", "title", "model", "system_prompt", "current_leaf_id", "messages", "running"}
    assert (found["system_prompt"], found["running"], found["model"]) == (None, [], "parrot")
    promised = {"id", "parent_id", "role", "text", "parts", "model", "status", "run_id", "usage", "created_at"}
    for message in found["messages"]:
        assert promised <= set(message)
        assert re.fullmatch(ID["message_id"], message["id"])
        assert_is_a_time(message["created_at"])
        assert message["status"] == "done"
    question, answer = found["messages"]
    assert (question["role"], question["run_id"]) == ("user", None)
    assert (answer["role"], answer["run_id"], answer["model"]) == ("assistant", reply.run_id, "parrot")
    assert answer["parts"] == [{"type": "text", "text": "hello "}]


def test_the_models_are_listed_the_default_first(tmp_path: Path) -> None:
    app = bare(tmp_path, FLASKCHAT_MODELS="openai:gpt-5, openai:llama3:8b")
    FlaskChat(app).model("parrot")(parrot)
    found = app.test_client().get("/chat/models").json
    assert found is not None
    assert list(found) == ["items"]
    assert all(set(item) == {"id", "label", "default", "capabilities"} for item in found["items"])
    assert [item["id"] for item in found["items"]] == ["parrot", "openai:gpt-5", "openai:llama3:8b"]
    assert [item["default"] for item in found["items"]] == [True, False, False]


@pytest.mark.parametrize("path", ["/chat/", "/chat/c/c_anything"])
def test_the_page_is_html_under_a_policy(app: Flask, path: str) -> None:
    page = app.test_client().get(path)
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "<script>" not in page.text


def test_health_and_readiness(app: Flask) -> None:
    client = app.test_client()
    assert (client.get("/chat/healthz").status_code, client.get("/chat/healthz").json) == (200, {"status": "ok"})
    ready = client.get("/chat/readyz")
    assert ready.status_code == 200
    assert ready.json is not None
    assert ready.json["status"] == "ready"


def test_a_database_that_cannot_be_used_is_not_ready_but_healthy(tmp_path: Path) -> None:
    app = host(tmp_path, TESTING=False)
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / "flaskchat.sqlite3").write_bytes(b"this is no database" * 100)
    client = app.test_client()
    found = problem(client.get("/chat/readyz"), 503, "not_ready")
    assert list(found["wrong"]) == ["store"]
    assert str(tmp_path) not in json.dumps(found)
    assert client.get("/chat/healthz").status_code == 200
    problem(client.get("/chat/conversations"), 500, "internal_error")


# -- methods, origins, errors ------------------------------------------------------------------------------------------

ROUTES = [
    ("/chat/conversation", {"POST"}),
    ("/chat/conversations", {"GET", "HEAD"}),
    ("/chat/conversations/c_x", {"GET", "HEAD"}),
    ("/chat/runs/run_x/events", {"GET", "HEAD"}),
    ("/chat/runs/run_x/stop", {"POST"}),
    ("/chat/models", {"GET", "HEAD"}),
    ("/chat/sse", {"GET", "HEAD"}),
    ("/chat/healthz", {"GET", "HEAD"}),
    ("/chat/readyz", {"GET", "HEAD"}),
    ("/chat/", {"GET", "HEAD"}),
]


@pytest.mark.parametrize(("path", "methods"), ROUTES)
def test_another_method_is_refused_with_those_that_are_allowed(app: Flask, path: str, methods: set[str]) -> None:
    client = app.test_client()
    for method in {"GET", "POST", "PUT", "TRACE", "FOO"} - methods:
        refused = client.open(path, method=method)
        problem(refused, 405, "method_not_allowed")
        assert methods <= set(refused.headers["Allow"].split(", "))
    options = client.options(path)
    assert options.status_code == 200
    assert methods <= set(options.headers["Allow"].split(", "))
    assert not [name for name in options.headers.keys() if name.lower().startswith("access-control-")]  # noqa: SIM118


def test_head_answers_without_a_body_and_holds_no_place(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    state = visitor.client.application.extensions["flaskchat"]
    for path in (f"/chat/runs/{reply.run_id}/events", "/chat/sse", "/chat/conversations", "/chat/"):
        response = visitor.client.head(path)
        assert (response.status_code, response.data) == (200, b"")
        assert response.content_type == visitor.client.get(path, buffered=False).content_type
    assert state.runtime.readers._places == 0


def test_head_of_a_live_run_leaves_no_reader_behind(tmp_path: Path) -> None:
    app = bare(tmp_path)
    gate = Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        posted = chat.client.post("/chat/conversation", json=send(), buffered=False)
        readers = app.extensions["flaskchat"].runtime.readers
        assert len(readers) == 1
        head = chat.client.head(f"/chat/runs/{posted.headers['Flaskchat-Run-Id']}/events")
        assert head.status_code == 200
        head.close()
        assert len(readers) == 1
        gate.opened.set()
        posted.get_data()
        posted.close()
        assert len(readers) == 0


OF_OTHERS: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost:81"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "localhost"},
    {"Origin": "http://"},
]
OURS: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},  # where TLS ends at a proxy that nobody told us about
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
]
GUARDED = [
    ("POST", "/chat/conversation"), ("POST", "/chat/runs/run_x/stop"), ("GET", "/chat/runs/run_x/events"),
    ("GET", "/chat/sse"), ("GET", "/chat/conversations"), ("GET", "/chat/conversations/c_x"), ("GET", "/chat/models"),
]  # fmt: skip


@pytest.mark.parametrize("headers", OF_OTHERS, ids=str)
def test_another_sites_page_is_refused_everywhere(app: Flask, headers: dict[str, str]) -> None:
    client = app.test_client()
    for method, path in GUARDED:
        response = client.open(path, method=method, json=send() if method == "POST" else None, headers=headers)
        problem(response, 403, "cross_origin")
        assert "Set-Cookie" not in response.headers
    assert not Path(app.instance_path, "flaskchat.sqlite3").exists(), "it came to no database"


@pytest.mark.parametrize("headers", OURS, ids=str)
def test_our_own_pages_and_programs_are_served(app: Flask, headers: dict[str, str]) -> None:
    client = app.test_client()
    for method, path in GUARDED:
        body = send() if method == "POST" else None
        response = client.open(path, method=method, json=body, headers=headers, buffered=False)
        assert response.status_code in (200, 404)
        response.close()


def test_the_origin_is_that_of_the_browser_behind_a_proxy(tmp_path: Path) -> None:
    app = host(tmp_path)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1)  # type: ignore[method-assign]
    client = app.test_client()
    proxied = {"X-Forwarded-Host": "chat.example", "X-Forwarded-Proto": "https"}
    for origin, status in (("https://chat.example", 200), ("http://localhost", 403), ("https://evil.example", 403)):
        assert client.get("/chat/models", headers={**proxied, "Origin": origin}).status_code == status
    port = {"X-Forwarded-Host": "chat.example:8443", "X-Forwarded-Proto": "https"}
    assert client.get("/chat/models", headers={**port, "Origin": "https://chat.example:8443"}).status_code == 200
    standard = {"X-Forwarded-Host": "chat.example:443", "X-Forwarded-Proto": "https"}
    assert client.get("/chat/models", headers={**standard, "Origin": "https://chat.example"}).status_code == 200


def provoke(client: FlaskClient) -> Iterator[tuple[TestResponse, int]]:
    """Every endpoint, in every way of going wrong that it has."""
    cross = {"Sec-Fetch-Site": "cross-site"}
    yield client.post("/chat/conversation", data=b"{", content_type="application/json"), 415
    yield client.post("/chat/conversation", json={}), 422
    yield client.post("/chat/conversation", json=send(conversation_id="c_x")), 404
    yield client.post("/chat/conversation", json=send(), headers=cross), 403
    yield client.post("/chat/conversation", data=b" " * (2 << 20), content_type="application/json"), 413
    yield client.get("/chat/conversation"), 405
    yield client.get("/chat/runs/run_x/events"), 404
    yield client.get("/chat/runs/run_x/events", headers=cross), 403
    yield client.post("/chat/runs/run_x/events"), 405
    yield client.post("/chat/runs/run_x/stop"), 404
    yield client.get("/chat/runs/run_x/stop"), 405
    yield client.get("/chat/sse", headers=cross), 403
    yield client.post("/chat/sse"), 405
    yield client.get("/chat/conversations?limit=x"), 422
    yield client.get("/chat/conversations?cursor=x"), 422
    yield client.put("/chat/conversations"), 405
    yield client.get("/chat/conversations/c_x"), 404
    yield client.post("/chat/models"), 405
    yield client.get("/chat/models", headers=cross), 403
    yield client.post("/chat/"), 405
    yield client.post("/chat/c/c_x"), 405
    yield client.post("/chat/healthz"), 405
    yield client.post("/chat/readyz"), 405
    yield client.get("/chat/assets/nothing"), 404
    yield client.get("/chat/nothing"), 404
    yield client.get("/chat/runs/"), 404
    yield client.get("/chat/runs/run_x"), 404


def test_every_error_of_every_endpoint_has_one_shape(app: Flask) -> None:
    for response, status in provoke(app.test_client()):
        where = f"{response.request.method} {response.request.path}"
        assert response.status_code == status, where
        assert response.content_type == PROBLEM, where
        body = response.json
        assert isinstance(body, dict)
        assert {"type", "title", "status", "detail", "code"} <= set(body), where
        assert set(body) <= {"type", "title", "status", "detail", "code", "errors", "retry_after", "run_id"}, where
        assert body["status"] == status, where
        assert re.fullmatch(r"[a-z_]+", body["code"]), where
        assert response.headers["Cache-Control"] == "no-store", where
        assert response.headers["X-Content-Type-Options"] == "nosniff", where
        for error in body.get("errors", []):
            assert set(error) == {"field", "reason"}, where


def test_the_standalone_application_answers_unknown_paths_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASKCHAT_DATA", str(tmp_path / "imported"))
    monkeypatch.setenv("FLASKCHAT_MODEL", "guide")
    from wsgi import create_app

    client = create_app({"FLASKCHAT_DATA": str(tmp_path / "data"), "FLASKCHAT_MODEL": "guide"}).test_client()
    problem(client.get("/nowhere"), 404, "not_found")
    problem(client.get("/conversation"), 405, "method_not_allowed")
    assert client.get("/").status_code == 200


def test_a_request_that_is_no_http_does_no_harm(gunicorn: Server) -> None:
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"\x16\x03\x01\x00", b"GET /" + b"a" * 9000):
        with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            assert b" 200 " not in sock.recv(65536)
    assert gunicorn.client().get("/healthz").status == 200

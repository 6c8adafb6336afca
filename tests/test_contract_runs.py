"""The HTTP contract of following a run, Stop and `/sse`, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flaskchat.testing import ChatClient
from tests.backends import EVERYWHERE, Backend
from tests.hosts import host, problem, send

pytestmark = pytest.mark.backends("sqlite", long=EVERYWHERE[1:])


@pytest.fixture
def app(tmp_path: Path, backend: Backend) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False, **backend.settings())
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def visitor(app: Flask) -> ChatClient:
    return ChatClient(app)


@pytest.mark.backends(*EVERYWHERE)
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


@pytest.mark.backends(*EVERYWHERE)
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


@pytest.mark.backends(*EVERYWHERE)
def test_stop_answers_the_same_again_and_leaves_a_finished_run_alone(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    expected = {"run_id": reply.run_id, "state": "done", "upstream_closed_ms": None}
    for kind, data in ((None, b""), ("application/json", b"{}"), ("text/plain", b"x")):
        response = visitor.client.post(f"/chat/runs/{reply.run_id}/stop", data=data, content_type=kind)
        assert (response.status_code, response.json) == (200, expected)
        assert response.content_type == "application/json"
    assert visitor.follow(reply.run_id) == reply.events


@pytest.mark.parametrize(("cursor", "status"), [("12", 204), ("99", 204), ("x", 200), ("-5", 200), ("9" * 5000, 200)])
def test_sse_after_its_last_message_is_over(app: Flask, cursor: str, status: int) -> None:
    response = app.test_client().get("/chat/sse", headers={"Last-Event-ID": cursor}, buffered=False)
    assert response.status_code == status
    response.close()

"""The HTTP contract of `POST /conversation`, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flaskchat import FlaskChat, Request
from flaskchat.testing import ChatClient
from tests.backends import EVERYWHERE, Backend
from tests.hosts import Gate, bare, host, problem, send

pytestmark = pytest.mark.backends("sqlite", long=EVERYWHERE[1:])


@pytest.fixture
def app(tmp_path: Path, backend: Backend) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False, **backend.settings())
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def visitor(app: Flask) -> ChatClient:
    return ChatClient(app)


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
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
    body = send("uno", "e", conversation_id=first.conversation_id, parent_id=None)
    edited = visitor._read(visitor.client.post("/chat/conversation", json=body))
    assert edited.state == "done"
    found = visitor.client.get(f"/chat/conversations/{first.conversation_id}").json
    assert found is not None
    assert [m["parent_id"] for m in found["messages"] if m["role"] == "user"] == [None, None]
    assert [m["text"] for m in found["messages"] if m["role"] == "assistant"] == ["one ", "uno "]


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
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
    errors = problem(conflict, 422, "idempotency_conflict")["errors"]
    assert errors == [{"field": "request_id", "reason": "used before"}]


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


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
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


def test_a_new_conversation_s_system_prompt_holds_from_its_first_message(tmp_path: Path) -> None:
    asked: list[Request] = []
    app = bare(tmp_path)
    FlaskChat(app).model("spy")(lambda request: asked.append(request) or ["ok"])  # type: ignore[func-returns-value]
    with ChatClient(app) as client:
        first = client._read(client.client.post("/chat/conversation", json=send("one", system_prompt="  Be brief.\0 ")))
        client.ask("two", conversation_id=first.conversation_id)
        client._read(client.client.post("/chat/conversation", json=send("three", "third", system_prompt="")))
        found = client.client.get(f"/chat/conversations/{first.conversation_id}").json
    assert [request.system_prompt for request in asked] == ["Be brief.\ufffd", "Be brief.\ufffd", ""]
    assert found is not None
    assert found["system_prompt"] == "Be brief.\ufffd"


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
    (send(system_prompt=5), 422, "invalid", ["system_prompt"]),
    (send(system_prompt="x" * 100_001), 422, "invalid", ["system_prompt"]),
    (send(system_prompt="x", conversation_id="c_unknown"), 422, "invalid", ["system_prompt"]),
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

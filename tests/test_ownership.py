"""Every route is classified; what belongs to somebody is to others as if it were not there, in answer and in work.

Two users and one whom nobody knows, over every route that names something. The time of an answer is held by what is
asked of the database for it, statement by statement: a clock would be too coarse, and this machine too noisy.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from flask import Flask, session
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flaskchat import FlaskChat, Request
from flaskchat.testing import ChatClient
from tests.backends import Backend
from tests.hosts import Gate, bare

CANARY = "canary-7f3a"

# What every route is. `owner`: names something that belongs to somebody. `own`: is about whoever asks. `page`: a page
# to which any site may link. `public`: says the same to everybody, and nothing of anybody. `operator`: wants a token.
ROUTES = {
    "POST /chat/conversation": "owner",
    "GET /chat/conversations": "own",
    "GET /chat/conversations/<conversation_id>": "owner",
    "PATCH /chat/conversations/<conversation_id>": "owner",
    "DELETE /chat/conversations/<conversation_id>": "owner",
    "GET /chat/conversations/<conversation_id>/export": "owner",
    "GET /chat/runs/<run_id>/events": "owner",
    "POST /chat/runs/<run_id>/stop": "owner",
    "GET /chat/models": "own",
    "GET /chat/": "page",
    "GET /chat/c/<conversation_id>": "page",
    "GET /chat/sse": "public",
    "GET /chat/healthz": "public",
    "GET /chat/readyz": "public",
    "GET /chat/metrics": "operator",
    "GET /chat/assets/<path:filename>": "public",
}


def routes(app: Flask) -> set[str]:
    return {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("flaskchat.")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def app(tmp_path: Path, gate: Gate, backend: Backend) -> Iterator[Flask]:
    app = bare(
        tmp_path, TESTING=False, FLASKCHAT_MODELS="raises", FLASKCHAT_MESSAGES_PER_MINUTE=0, **backend.settings()
    )

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["user"] = name
        return "in"

    chat = FlaskChat(app, identity=lambda: session.get("user"))

    @chat.model("canary")
    def canary(request: Request) -> Iterator[str]:
        yield f"{CANARY} reply "
        if "wait" in request.text:
            gate.opened.wait(60)

    @chat.model("raises")
    def raises(request: Request) -> Iterator[str]:
        yield f"{CANARY} before "
        raise RuntimeError("went wrong")

    app.config["FLASKCHAT_MODEL"] = "canary"
    yield app
    gate.opened.set()
    app.extensions["flaskchat"].close()


class Things(NamedTuple):
    """What ada has: ids of a finished reply, and of one that is being written."""

    conversation: str
    message: str
    run: str
    live_conversation: str
    live_run: str


def login(app: Flask, name: str) -> ChatClient:
    chat = ChatClient(app)
    chat.client.get(f"/login/{name}")
    return chat


@pytest.fixture
def ada(app: Flask) -> ChatClient:
    return login(app, "ada")


@pytest.fixture
def things(ada: ChatClient) -> Iterator[Things]:
    reply = ada.ask(f"{CANARY} question", model="canary")
    ada.client.patch(
        f"/chat/conversations/{reply.conversation_id}",
        json={"title": f"{CANARY} title", "system_prompt": f"{CANARY} system"},
    )
    body = {"message": {"id": "live", "text": f"{CANARY} wait"}, "model": "canary"}
    live = ada.client.post("/chat/conversation", json=body, buffered=False)
    run = live.headers["Flaskchat-Run-Id"]
    listed = ada.client.get("/chat/conversations").json
    assert listed is not None
    conversation = next(item["id"] for item in listed["items"] if item["running_run_id"] == run)
    yield Things(reply.conversation_id, reply.message_id, reply.run_id, conversation, run)
    live.close()


UNKNOWN = {"c": "c_AAAAAAAAAAAAAAAAAAAAAA", "m": "m_AAAAAAAAAAAAAAAAAAAAAA", "run": "run_AAAAAAAAAAAAAAAAAAAA"}
_numbers = itertools.count()

Call = Callable[[FlaskClient, Things], TestResponse]


def send(client: FlaskClient, **body: Any) -> TestResponse:
    if body.get("action", "send") == "send":
        body["message"] = {"id": f"n{next(_numbers)}", "text": "hello"}
    else:
        body["request_id"] = f"n{next(_numbers)}"
    return client.post("/chat/conversation", json=body)


CALLS: dict[str, tuple[str, Call]] = {
    "send into a conversation": (
        "POST /chat/conversation", lambda c, t: send(c, conversation_id=t.conversation)),
    "send below a message": (
        "POST /chat/conversation", lambda c, t: send(c, conversation_id=t.conversation, parent_id=t.message)),
    "regenerate": (
        "POST /chat/conversation", lambda c, t: send(c, action="regenerate", message_id=t.message)),
    "continue": (
        "POST /chat/conversation", lambda c, t: send(c, action="continue", message_id=t.message)),
    "regenerate in a conversation": (
        "POST /chat/conversation",
        lambda c, t: send(c, action="regenerate", message_id=t.message, conversation_id=t.conversation)),
    "read": (
        "GET /chat/conversations/<conversation_id>", lambda c, t: c.get(f"/chat/conversations/{t.conversation}")),
    "rename": (
        "PATCH /chat/conversations/<conversation_id>",
        lambda c, t: c.patch(f"/chat/conversations/{t.conversation}", json={"title": "mine"})),
    "show another leaf": (
        "PATCH /chat/conversations/<conversation_id>",
        lambda c, t: c.patch(f"/chat/conversations/{t.conversation}", json={"current_leaf_id": t.message})),
    "delete": (
        "DELETE /chat/conversations/<conversation_id>", lambda c, t: c.delete(f"/chat/conversations/{t.conversation}")),
    "delete while it is written": (
        "DELETE /chat/conversations/<conversation_id>",
        lambda c, t: c.delete(f"/chat/conversations/{t.live_conversation}")),
    "export": (
        "GET /chat/conversations/<conversation_id>/export",
        lambda c, t: c.get(f"/chat/conversations/{t.conversation}/export?format=markdown")),
    "follow": (
        "GET /chat/runs/<run_id>/events", lambda c, t: c.get(f"/chat/runs/{t.run}/events")),
    "follow from a cursor": (
        "GET /chat/runs/<run_id>/events",
        lambda c, t: c.get(f"/chat/runs/{t.run}/events", headers={"Last-Event-ID": "1"})),
    "follow from nonsense": (
        "GET /chat/runs/<run_id>/events", lambda c, t: c.get(f"/chat/runs/{t.run}/events?last_event_id=x")),
    "follow what is being written": (
        "GET /chat/runs/<run_id>/events", lambda c, t: c.get(f"/chat/runs/{t.live_run}/events")),
    "stop": (
        "POST /chat/runs/<run_id>/stop", lambda c, t: c.post(f"/chat/runs/{t.run}/stop", json={})),
    "stop what is being written": (
        "POST /chat/runs/<run_id>/stop", lambda c, t: c.post(f"/chat/runs/{t.live_run}/stop", json={})),
}  # fmt: skip

NOBODY_S = Things(UNKNOWN["c"], UNKNOWN["m"], UNKNOWN["run"], UNKNOWN["c"], UNKNOWN["run"])


def seen(response: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All of an answer but what is new each time."""
    data = response.get_data()
    response.close()
    headers = [(name, value) for name, value in response.headers if name not in ("Set-Cookie", "Date")]
    return response.status_code, data, sorted(headers)


class Asked(list[str]):
    """The statements that a request makes, without what they ask for."""


@pytest.fixture
def asked(app: Flask) -> Iterator[Asked]:
    found = Asked()
    engine = app.extensions["flaskchat"].runtime.database.engine

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "flaskchat_workers" not in statement and "flaskchat_journal" not in statement:  # the sweep's
            found.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(engine, "before_cursor_execute", note)


def test_every_route_is_classified(app: Flask) -> None:
    assert routes(app) == set(ROUTES), "a route that is new, or gone: say in ROUTES what it is"


def test_every_route_that_names_somebody_s_thing_is_tried_by_others() -> None:
    tried = {route for route, _ in CALLS.values()}
    assert tried == {route for route, kind in ROUTES.items() if kind == "owner"}


@pytest.mark.parametrize("name", CALLS)
def test_another_s_thing_answers_as_one_that_is_not_there(
    app: Flask, ada: ChatClient, things: Things, asked: Asked, name: str
) -> None:
    bob = login(app, "bob").client
    call = CALLS[name][1]
    call(bob, NOBODY_S).close()  # the first of each kind prepares connections
    asked.clear()
    of_nobody, statements = seen(call(bob, NOBODY_S)), list(asked)
    asked.clear()
    of_ada, same = seen(call(bob, things)), list(asked)
    assert of_nobody[0] == 404
    assert of_ada == of_nobody
    assert same == statements, "the work tells them apart"
    assert ada.client.get(f"/chat/conversations/{things.conversation}").status_code == 200, "and nothing happened"
    state = app.extensions["flaskchat"].runtime.store.run(things.live_run, "user:ada").state
    assert state == "running"


@pytest.mark.parametrize("name", CALLS)
def test_who_is_not_signed_in_learns_nothing(app: Flask, things: Things, asked: Asked, name: str) -> None:
    client = app.test_client()
    call = CALLS[name][1]
    asked.clear()
    of_ada, of_nobody = seen(call(client, things)), seen(call(client, NOBODY_S))
    assert of_ada == of_nobody
    assert of_ada[0] == 401
    assert asked == [], "the database is not asked at all"


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_a_search_and_a_list_hold_one_s_own(app: Flask, things: Things) -> None:
    bob = login(app, "bob").client
    for query in ("", CANARY, "canary", "wait"):
        assert bob.get("/chat/conversations", query_string={"q": query}).json == {"items": [], "next_cursor": None}


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_another_s_client_id_begins_a_question_of_one_s_own(app: Flask, ada: ChatClient, things: Things) -> None:
    bob = login(app, "bob")
    body = {"message": {"id": "live", "text": f"{CANARY} wait"}, "model": "canary"}
    response = bob.client.post("/chat/conversation", json=body, buffered=False)
    assert response.status_code == 200
    assert response.headers["Flaskchat-Run-Id"] not in (things.live_run, things.run)
    response.close()


def test_what_one_user_wrote_and_read_is_in_no_other_s_bytes_and_in_no_log(
    app: Flask, ada: ChatClient, things: Things, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ada.ask(f"{CANARY} more", model="raises")
    for client in (login(app, "bob").client, app.test_client()):
        answers = [call(client, things) for _, call in CALLS.values()]
        for route, kind in ROUTES.items():
            method, _, path = route.partition(" ")
            for value in (things.conversation, things.live_run):
                if kind != "owner" and "sse" not in path:
                    named = path.replace("<conversation_id>", value).replace("<path:filename>", "flaskchat.js")
                    answers.append(client.open(named, method=method))
        for answer in answers:
            assert CANARY.encode() not in answer.get_data()
            assert CANARY not in str(answer.headers)
            answer.close()
    ada.client.post(f"/chat/runs/{things.live_run}/stop", json={})
    ada.client.delete(f"/chat/conversations/{things.live_conversation}")
    told = "\n".join(caplog.messages) + "\n".join(record.exc_text or "" for record in caplog.records)
    assert told, "nothing was logged, so this shows nothing"
    assert CANARY not in told

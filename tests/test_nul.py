"""NUL and half code points, wherever they may be sent: the same on every database, and never a fault of ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from flaskchat import FlaskChat, Request
from flaskchat.errors import ConfigurationError
from flaskchat.security import owner_of
from tests.backends import Backend
from tests.hosts import bare, send
from tests.server.client import deadline

HALF = json.loads('"\\ud800"')
CURSOR = base64.urlsafe_b64encode(rb'[1, "c_\u0000"]').decode().rstrip("=")

ADDRESSES = (
    ("GET", "/runs/run_%00/events", None, 404),
    ("POST", "/runs/run_%00/stop", {}, 404),
    ("GET", "/conversations/c_%00", None, 404),
    ("PATCH", "/conversations/c_%00", {"title": "x"}, 404),
    ("DELETE", "/conversations/c_%00", None, 404),
    ("GET", "/conversations/c_%00/export", None, 404),
    ("GET", "/c/c_%00", None, 404),
    ("GET", "/conversations/c_%ED%A0%80", None, 404),
    ("GET", "/conversations?q=a%00b", None, 200),
    ("GET", f"/conversations?cursor={CURSOR}", None, 422),
    ("POST", "/conversation", send(client_id="b", model="raw\0"), 422),
    ("POST", "/conversation", send(client_id="b", conversation_id="c_\0"), 422),
    ("POST", "/conversation", send(client_id="b\0"), 422),
)


@pytest.fixture
def client(backend: Backend, tmp_path: Path) -> Iterator[FlaskClient]:
    app = bare(tmp_path, **backend.settings())
    chat = FlaskChat(app, identity=lambda: "ada")

    @chat.model("raw")
    def raw(request: Request) -> Iterator[str]:
        yield f"{request.text}|\0|{HALF}|"
        yield "end"

    yield app.test_client()
    log = app.extensions["flaskchat"].runtime.log
    for _ in deadline(60, "the connection that hears of news"):
        if backend.postgres is None or log.tells:
            break
    app.extensions["flaskchat"].close()


@pytest.mark.backends("sqlite", "postgres")
def test_nul_wherever_it_may_be_sent(client: FlaskClient) -> None:
    answer = client.post("/chat/conversation", json=send("a\0b", system_prompt="be\0brief"))
    assert answer.status_code == 200, answer.text
    events = answer.get_data()
    assert b"event: done" in events, events
    conversation = json.loads(events.partition(b"data: ")[2].partition(b"\n")[0])["conversation_id"]
    found = client.get(f"/chat/conversations/{conversation}").json
    assert found is not None
    question, reply = found["messages"]
    assert (question["text"], found["system_prompt"]) == ("a\ufffdb", "be\ufffdbrief")
    deltas = [json.loads(line[6:])["text"] for line in events.split(b"\n") if line.startswith(b'data: {"text"')]
    assert "".join(deltas) == reply["text"] == "a\ufffdb|\ufffd|\ufffd|end"

    for method, path, body, status in ADDRESSES:
        answer = client.open(f"/chat{path}", method=method, json=body)
        assert answer.status_code == status, (method, path, body, answer.text)
    changes: tuple[tuple[dict[str, str], int], ...] = (
        ({"title": "a\0b"}, 200), ({"system_prompt": "a\0"}, 200), ({"current_leaf_id": "m_\0"}, 422),
        ({"model": "raw\0"}, 422),
    )  # fmt: skip
    for change, status in changes:
        answer = client.patch(f"/chat/conversations/{conversation}", json=change)
        assert answer.status_code == status, (change, answer.text)


def test_a_users_id_with_nul_is_refused_as_the_host_s_mistake() -> None:
    with pytest.raises(ConfigurationError, match="NUL"):
        owner_of("ada\0")

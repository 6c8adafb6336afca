"""Host projects for tests within this process: a Flask application with a folder of its own and a chat."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from flaskchat import FlaskChat, Request
from flaskchat.testing import ChatClient

PROBLEM = "application/problem+json"
ID = {"conversation_id": r"c_[\w-]{20,}", "message_id": r"m_[\w-]{20,}", "run_id": r"run_[\w-]{20,}"}


def parrot(request: Request) -> Iterator[str]:
    for word in request.text.split():
        yield word + " "


class Gate:
    """A model that says one word and goes on when it is told to."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, request: Request) -> Iterator[str]:
        yield "Well "
        self.opened.wait(60)
        yield "then."


def bare(folder: Path, name: str = "host", **config: Any) -> Flask:
    """A Flask application without a chat; its instance folder is below `folder`."""
    app = Flask(name, root_path=str(folder), instance_path=str(folder / "instance"))
    app.config.update({"SECRET_KEY": "key", "TESTING": True, **config})
    return app


def host(folder: Path, *, url_prefix: str | None = None, identity: Any = None, **config: Any) -> Flask:
    """A host with a chat whose default model is a parrot."""
    app = bare(folder, **config)
    chat = FlaskChat(app, url_prefix=url_prefix, identity=identity)
    chat.model("parrot")(parrot)
    return app


def send(text: str = "hello you", client_id: str = "first", **more: Any) -> dict[str, Any]:
    """The body of a `POST /conversation`."""
    return {"message": {"id": client_id, "text": text}, **more}


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


def visible(chat: ChatClient, conversation_id: str) -> bool:
    """Whether this visitor sees the conversation; the list and the conversation must agree."""
    response = chat.client.get(f"/chat/conversations/{conversation_id}")
    listed = chat.client.get("/chat/conversations").json
    assert listed is not None
    seen = response.status_code == 200
    assert seen == (conversation_id in {item["id"] for item in listed["items"]})
    return seen

"""What a host project needs to test its own chat: ask, and get the reply as text and events.

from flaskchat.testing import ChatClient

def test_the_parrot_repeats(app):
    with ChatClient(app) as chat:
        reply = chat.ask("hello you")
        assert reply.text == "hello you "
        assert reply.state == "done"
"""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from flask import Flask
from flask.testing import FlaskClient

from . import sse
from .models import TERMINAL_EVENTS
from .state import KEY, State


class Event(NamedTuple):
    seq: int
    name: str
    data: dict[str, Any]


class Reply(NamedTuple):
    """One run, read to its end."""

    run_id: str
    conversation_id: str
    message_id: str
    events: list[Event]

    @property
    def text(self) -> str:
        return "".join(event.data["text"] for event in self.events if event.name == "delta")

    @property
    def state(self) -> str:
        """How the run ended: done, error, stopped or interrupted; `running` where the stream ended before it."""
        last = self.events[-1].name if self.events else ""
        return last if last in TERMINAL_EVENTS else "running"


class ChatClient:
    """A visitor of an application's chat, over Flask's test client. Leaving the block closes the application's chat."""

    def __init__(self, app: Flask, client: FlaskClient | None = None) -> None:
        """:param client: to use in place of a new one, because it is signed in, say.
        :raises LookupError: the application has no chat.
        """
        state = app.extensions.get(KEY)
        if not isinstance(state, State):
            raise LookupError(f"the application {app.name!r} has no chat: call FlaskChat(app) first")
        self._state = state
        self._prefix = state.settings.url_prefix
        self.client = client or app.test_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state.close()

    def ask(self, text: str, *, conversation_id: str | None = None, model: str | None = None) -> Reply:
        """Send a message and read the reply to its end.

        :raises AssertionError: the answer is no stream; it says what it was.
        """
        body: dict[str, Any] = {"message": {"id": str(uuid.uuid4()), "text": text}}
        if conversation_id is not None:
            body["conversation_id"] = conversation_id
        if model is not None:
            body["model"] = model
        return self._read(self.client.post(f"{self._prefix}/conversation", json=body))

    def follow(self, run_id: str, *, after: int = 0) -> list[Event]:
        """The events of a run from a cursor on, to its end; none where the cursor stands at the end."""
        headers = {"Last-Event-ID": str(after)}
        return self._events(self.client.get(f"{self._prefix}/runs/{run_id}/events", headers=headers))

    def conversation(self, conversation_id: str) -> dict[str, Any]:
        """A conversation with all its messages, as it is stored."""
        response = self.client.get(f"{self._prefix}/conversations/{conversation_id}")
        assert response.status_code == 200, f"{response.status}: {response.text}"
        found: dict[str, Any] = msgspec.json.decode(response.data)
        return found

    def _read(self, response: Any) -> Reply:
        events = self._events(response)
        assert events, "the stream ended before its first event"
        start = events[0].data
        return Reply(start["run_id"], start["conversation_id"], start["message_id"], events)

    @staticmethod
    def _events(response: Any) -> list[Event]:
        data = response.get_data()
        response.close()
        if response.status_code == 204:
            return []
        assert response.status_code == 200, f"{response.status}: {data.decode(errors='replace')}"
        return [
            Event(int(frame.id or 0), frame.event, msgspec.json.decode(frame.data))
            for frame in sse.Decoder(max_line=1 << 30).feed(data)
        ]

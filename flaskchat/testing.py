"""What a host project needs to test its own chat: ask, and get the reply as text and events.

from flaskchat.testing import ChatClient

def test_the_parrot_repeats(app):
    with ChatClient(app) as chat:
        reply = chat.ask("hello you")
        assert reply.text == "hello you "
        assert reply.state == "done"

The application should be one that is made for the test: with a database in a folder of the test's, a model that costs
nothing, and FLASKCHAT_MESSAGES_PER_MINUTE 0. README.md, "Test your own chat", shows how.
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
    """One run, read to its end, or as far as somebody read who left."""

    run_id: str
    conversation_id: str
    message_id: str
    events: list[Event]

    @property
    def text(self) -> str:
        """What this run wrote; of a continued reply only what was added."""
        return "".join(event.data["text"] for event in self.events if event.name == "delta")

    @property
    def state(self) -> str:
        """How the run ended: done, error, stopped or interrupted; `running` where it was left, or cut, before that."""
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

    def ask(
        self, text: str, *, conversation_id: str | None = None, model: str | None = None, leave_after: int | None = None
    ) -> Reply:
        """Send a message and read the reply to its end.

        :param leave_after: events after which to go, as somebody does who closes the tab; the reply goes on being
            written, and can be stopped, say.
        :raises AssertionError: the answer is no stream; it says what it was.
        """
        body: dict[str, Any] = {"message": {"id": str(uuid.uuid4()), "text": text}}
        if conversation_id is not None:
            body["conversation_id"] = conversation_id
        if model is not None:
            body["model"] = model
        return self._post(body, leave_after)

    def regenerate(self, message_id: str, *, model: str | None = None, leave_after: int | None = None) -> Reply:
        """Have a reply written anew, beside the one there is, and read the new one to its end.

        :param message_id: the reply's, `Reply.message_id`.
        :param leave_after: as of `ask`.
        :raises AssertionError: as of `ask`.
        """
        body: dict[str, Any] = {"action": "regenerate", "message_id": message_id, "request_id": str(uuid.uuid4())}
        if model is not None:
            body["model"] = model
        return self._post(body, leave_after)

    def continue_(self, message_id: str, *, leave_after: int | None = None) -> Reply:
        """Have a stopped or interrupted reply go on, in the same message, and read what is added to its end.

        :param message_id: the reply's, `Reply.message_id`.
        :param leave_after: as of `ask`.
        :raises AssertionError: as of `ask`; a reply that is done, for one, does not go on.
        """
        body = {"action": "continue", "message_id": message_id, "request_id": str(uuid.uuid4())}
        return self._post(body, leave_after)

    def stop(self, run_id: str) -> Reply:
        """Stop a reply that is being written, and read all of it. One that has ended stays as it is.

        :param run_id: the run's, `Reply.run_id`.
        :raises AssertionError: there is no such run of this visitor's.
        """
        response = self.client.post(f"{self._prefix}/runs/{run_id}/stop")
        assert response.status_code == 200, f"{response.status}: {response.text}"
        return self._reply(self.follow(run_id))

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

    def _post(self, body: dict[str, Any], leave_after: int | None) -> Reply:
        return self._read(self.client.post(f"{self._prefix}/conversation", json=body), leave_after)

    def _read(self, response: Any, leave_after: int | None = None) -> Reply:
        return self._reply(self._events(response, leave_after))

    @staticmethod
    def _reply(events: list[Event]) -> Reply:
        assert events, "the stream ended before its first event"
        start = events[0].data
        return Reply(start["run_id"], start["conversation_id"], start["message_id"], events)

    @staticmethod
    def _events(response: Any, leave_after: int | None = None) -> list[Event]:
        events: list[Event] = []
        try:
            if response.status_code == 204:
                return events
            assert response.status_code == 200, f"{response.status}: {response.text}"
            decoder = sse.Decoder(max_line=1 << 30)
            for data in response.iter_encoded():
                events += [
                    Event(int(frame.id or 0), frame.event, msgspec.json.decode(frame.data))
                    for frame in decoder.feed(data)
                ]
                if leave_after is not None and len(events) >= leave_after:
                    return events[:leave_after]
            return events
        finally:
            response.close()

"""The history of a test under faults: what every client sent, saw and was told, written down as it happens.

    history = History()
    alice = history.visitor("alice", server.client())      # an owner of its own; `alice.tab()` is a second device
    reading = alice.ask(tokens=50, rate=20)                # POST /conversation to the misbehaving model
    reading.take(5)                                        # the next events; also rest(), leave(), or iterate over it
    reading = alice.follow(reading.run_id, 5)              # GET /runs/<id>/events with Last-Event-ID
    alice.to_the_end(reading.run_id)                       # comes back with the last id until the terminal event
    history.fault("kill -9", pid)                          # from when on the runs of that process have 15 s to end

and then `check(history, Dump.of(server), model.stats())` of tests/server/checker.py, or both by `judge`.

What comes over the wire is read by a parser of its own, stricter than any client: the product's must not judge itself.
Safe to be used from several threads or greenlets, each with a visitor or tab of its own.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any, NamedTuple

from tests.server.badmodel import text_of
from tests.server.client import TERMINAL, Client, Stream

HEARTBEAT = b": hb\n"
FRAME = re.compile(rb"(?:retry: (\d+)\n)?(?:id: ([1-9]\d*)\n)?event: ([a-z]+)\ndata: ([^\r\n]*)\n\n")
LONGEST_FRAME = 16 << 20


class Event(NamedTuple):
    """One event as it came; `seq` 0 for a reset. Has the fields of `sse.Frame`, so what reads those reads these."""

    seq: int
    event: str
    data: bytes
    at: float

    @property
    def id(self) -> str:
        return str(self.seq)

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def what(self) -> tuple[int, str, bytes]:
        return self.seq, self.event, self.data


class Wire:
    """Bytes split anywhere to events. Notes where they are not exactly as the contract has them."""

    def __init__(self) -> None:
        self.rest = b""
        self.bad: bytes | None = None

    def feed(self, data: bytes, at: float) -> list[Event]:
        found: list[Event] = []
        if self.bad is not None:
            return found
        buffer = self.rest + data
        start = 0
        while start < len(buffer):
            if buffer.startswith(HEARTBEAT, start):
                start += len(HEARTBEAT)
                continue
            end = buffer.find(b"\n\n", start)
            if end < 0:
                break
            match = FRAME.fullmatch(buffer, start, end + 2)
            if match is None or (match[2] is None) != (match[3] == b"reset"):
                self.bad = buffer[start : end + 2]
                break
            found.append(Event(int(match[2] or 0), match[3].decode(), match[4], at))
            start = end + 2
        self.rest = buffer[start:]
        if len(self.rest) > LONGEST_FRAME:
            self.bad = self.rest[:100]
        return found


class Post:
    """One `POST /conversation`: written down before it is sent, since it may be carried out without an answer."""

    def __init__(self, owner: str, client: str, client_id: str, body: dict[str, Any], tag: str | None) -> None:
        self.owner, self.client, self.client_id, self.body, self.tag = owner, client, client_id, body, tag
        self.at = time.monotonic()
        self.status = 0  # 0: no answer came
        self.run_id = ""
        self.code = ""
        self.worker = 0


class Fault(NamedTuple):
    at: float
    until: float
    """When it was over: the same moment, where it has no length."""
    what: str
    pid: int


class Answer(NamedTuple):
    """What a client was told beside the streams: a status, and JSON where there was some."""

    at: float
    owner: str
    client: str
    method: str
    path: str
    status: int
    body: Any


class Reading:
    """One response with events, as one client reads it."""

    def __init__(
        self, history: History, owner: str, client: str, stream: Stream, run_id: str, cursor: object, at: float
    ) -> None:
        """:param cursor: the Last-Event-ID as it was sent; None for none, and for the answer to a POST."""
        self.history, self.owner, self.client, self.stream = history, owner, client, stream
        self.run_id, self.cursor = run_id, cursor
        self.opened_at = at
        self.status = stream.status
        self.worker = stream.worker
        self.events: list[Event] = []
        self.wire = Wire()
        self.how = "open"
        """How it ended: `end` (a proper end of the body), `cut` (it broke off), `left` (this client left)."""
        self._new: list[Event] = []

    def feed(self, data: bytes) -> list[Event]:
        """Write down bytes that have come; for clients that read the socket themselves."""
        found = self.wire.feed(data, time.monotonic())
        self.events += found
        return found

    def __iter__(self) -> Iterator[Event]:
        while True:
            while self._new:
                yield self._new.pop(0)
            try:
                data = self.stream.response.read1(65536)
            except (OSError, HTTPException, ValueError, AttributeError):  # the last two: closed by another task
                if self.how == "open":
                    self.how = "cut"
                return
            if not data:
                if self.how == "open":
                    # Without chunks the end of a body cannot be told from a cut.
                    whole = self.stream.response.isclosed() or self.stream.response.length == 0
                    self.how = "end" if whole else "cut"
                return
            self._new += self.feed(data)

    def take(self, events: int) -> list[Event]:
        """The next so many events, or fewer when it ends before."""
        return list(itertools.islice(self, events))

    def rest(self) -> list[Event]:
        return list(self)

    def leave(self) -> None:
        """As a browser does that closes its tab."""
        if self.how == "open":
            self.how = "left"
        self.stream.close()

    @property
    def ended(self) -> bool:
        """Whether the terminal event has come."""
        return bool(self.events) and self.events[-1].event in TERMINAL

    @property
    def last(self) -> int:
        """The cursor to come back with."""
        for event in reversed(self.events):
            return event.seq or int(event.json["seq"])
        return self.cursor if isinstance(self.cursor, int) else 0

    @property
    def start(self) -> dict[str, Any]:
        return dict(self.events[0].json)


class History:
    """All of one test, or of one chaos run."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.wall_offset = time.time() - time.monotonic()
        """What the wall clock was ahead: the store's times are by it."""
        self.posts: list[Post] = []
        self.readings: list[Reading] = []
        self.answers: list[Answer] = []
        self.faults: list[Fault] = []
        self.expected: dict[str, str] = {}
        """By tag: all that the model would say."""
        self.tags: dict[str, str] = {}
        """The tag of a reply's question, by the reply's message id."""
        self.clients: list[Client] = []
        """Those of tabs, which nobody else closes; `judge` does."""
        self._names: dict[str, int] = {}

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def visitor(self, owner: str, client: Client) -> Visitor:
        """:param owner: a name for whoever the client's cookie stands for."""
        self._names[owner] = self._names.get(owner, 0) + 1
        number = self._names[owner]
        return Visitor(self, owner, owner if number == 1 else f"{owner}/{number}", client)

    def fault(self, what: str, pid: int = 0) -> Fault:
        """Write down that something was done to a process (0: to none in particular)."""
        now = time.monotonic()
        self.faults.append(Fault(now, now, what, pid))
        return self.faults[-1]

    def healed(self, fault: Fault) -> None:
        """Write down that a fault is over: a lock released, a stopped process continued."""
        self.faults[self.faults.index(fault)] = fault._replace(until=time.monotonic())


class Visitor:
    """A client whose every word is written down."""

    def __init__(self, history: History, owner: str, name: str, client: Client) -> None:
        self.history, self.owner, self.name, self.client = history, owner, name, client

    def tab(self) -> Visitor:
        """The same owner in another tab, or on another device."""
        if not self.client.cookie:
            self.client.json("/conversations")
        other = Client(self.client.port, self.client.host, self.client.timeout)
        other.cookie = self.client.cookie
        self.history.clients.append(other)
        return self.history.visitor(self.owner, other)

    def ask(
        self, question: str | None = None, *, client_id: str | None = None, more: dict[str, Any] | None = None,
        **directive: Any,
    ) -> Reading:  # fmt: skip
        """Send a question.

        :param question: for another model; without it `directive` goes to the misbehaving one.
        :param more: of the body: conversation_id, parent_id, model.
        """
        tag = None
        if question is None:
            tag = str(directive.setdefault("tag", uuid.uuid4().hex))
            self.history.expected[tag] = text_of(directive)
            question = json.dumps(directive)
        body = {"message": {"id": client_id or str(uuid.uuid4()), "text": question}, **(more or {})}
        return self.post(body, tag)

    def again(self, action: str, message_id: str, *, client_id: str | None = None) -> Reading:
        """Regenerate or continue a reply."""
        body = {"action": action, "message_id": message_id, "request_id": client_id or str(uuid.uuid4())}
        return self.post(body, self.history.tags.get(message_id))

    def post(self, body: dict[str, Any], tag: str | None = None, **more: Any) -> Reading:
        """`POST /conversation` with this body.

        :param tag: under which the misbehaving model counts what is asked.
        :raises OSError, HTTPException: no answer came; the post is written down all the same.
        """
        client_id = str(body["message"]["id"] if "message" in body else body["request_id"])
        post = Post(self.owner, self.name, client_id, body, tag)
        self.history.posts.append(post)
        stream = self.client.request("POST", "/conversation", body, **more)
        post.status, post.worker, post.run_id = stream.status, stream.worker, stream.run_id
        reading = Reading(self.history, self.owner, self.name, stream, stream.run_id, None, post.at)
        if stream.status == 200:
            self.history.readings.append(reading)
            self._remember(reading, tag)
        else:
            reading.how = "end"
            answer = stream.json()
            post.code = str(answer.get("code", ""))
            post.run_id = str(answer.get("run_id", ""))
        return reading

    def _remember(self, reading: Reading, tag: str | None) -> None:
        """Keep the reply's tag as soon as its id is known."""
        feed = reading.feed

        def first(data: bytes) -> list[Event]:
            found = feed(data)
            if found:
                reading.feed = feed  # type: ignore[method-assign]
                if tag is not None and found[0].event == "start":
                    self.history.tags[str(found[0].json["message_id"])] = tag
            return found

        reading.feed = first  # type: ignore[method-assign]

    def follow(self, run_id: str, cursor: int | str | None = None, **more: Any) -> Reading:
        """:raises OSError, HTTPException: no answer came."""
        at = time.monotonic()
        stream = self.client.follow(run_id, cursor, **more)
        reading = Reading(self.history, self.owner, self.name, stream, run_id, cursor, at)
        if stream.status != 200:
            reading.how = "end"
            stream.response.read()
        self.history.readings.append(reading)
        return reading

    def to_the_end(self, run_id: str, cursor: int | None = None, seconds: float = 60) -> list[Event]:
        """Come back with the last id until the terminal event.

        :returns: the events after `cursor`.
        """
        found: list[Event] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                reading = self.follow(run_id, cursor)
            except (OSError, HTTPException):
                time.sleep(0.05)
                continue
            if reading.status == 204:
                return found
            found += reading.rest()
            if reading.ended:
                return found
            if reading.events:
                cursor = reading.last
            time.sleep(0.05)
        raise AssertionError(f"{self.name}: {run_id} has not ended within {seconds} s")

    def call(self, method: str, path: str, body: object = None, **more: Any) -> Answer:
        """Any other request, such as Stop or the deletion of a conversation."""
        stream = self.client.request(method, path, body, **more)
        data = stream.response.read()
        kind = stream.headers.get("Content-Type", "")
        said = json.loads(data) if "json" in kind and data else None
        answer = Answer(time.monotonic(), self.owner, self.name, method, path, stream.status, said)
        self.history.answers.append(answer)
        return answer

    def stop(self, run_id: str, **more: Any) -> Answer:
        return self.call("POST", f"/runs/{run_id}/stop", {}, **more)

    def delete(self, conversation_id: str) -> Answer:
        return self.call("DELETE", f"/conversations/{conversation_id}")

    def conversation(self, conversation_id: str) -> Answer:
        return self.call("GET", f"/conversations/{conversation_id}")

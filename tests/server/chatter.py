"""The clients of a chaos run: what each does, turn after turn, is a function of the seed; only the timing is not."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
import uuid
from http.client import HTTPException
from typing import Any, NamedTuple

import gevent

from tests.server.badmodel import text_of
from tests.server.client import Client
from tests.server.evidence import Violation
from tests.server.history import Event, History, Reading, Visitor
from tests.server.nodes import Moving

ACTS = {
    "ask": 8,  # and read to the end, whatever comes between
    "leave": 3,  # close the tab and come back
    "mute": 1,  # open a stream and not read it
    "tabs": 3,  # others read the same reply from random cursors
    "stop": 3,
    "delete": 2,
    "equal": 3,  # the same POST several times at once, and once more afterwards
    "edit": 2,
    "regenerate": 2,
    "stranger": 1,  # ask for what is somebody else's
    "astray": 1,  # cursors that mean nothing
}
MODEL_FAULTS: tuple[dict[str, Any], ...] = (
    {"fault": "429", "times": 1, "retry_after": 1},
    {"fault": "503", "times": 1},
    {"fault": "500"},
    {"fault": "401"},
    {"fault": "silent-before-head", "hold": 30},
    {"fault": "silent-before-first-token", "hold": 30},
    {"fault": "stall", "hold": 30},
    {"fault": "error"},
    {"fault": "reset"},
    {"fault": "close"},
    {"fault": "html200"},
    {"fault": "invalid-json"},
    {"fault": "invalid-utf8"},
    {"fault": "no-done"},
    {"fault": "no-finish"},
    {"fault": "one-byte", "tokens": 8},
    {"fault": "split"},
    {"fault": "fields"},
    {"fault": "surrogates"},
    {"fault": "json"},
    {"reasoning": 5, "tool": True},
    {"framing": "close"},
)
PATIENCE = 75.0
"""Seconds after which a client that has not seen its reply's end says so; several faults may follow each other."""
OURS = (OSError, HTTPException)


class Turn(NamedTuple):
    act: str
    directive: dict[str, Any]
    client_id: str
    again_id: str
    new: bool
    """Whether it begins a conversation."""
    after: int
    """Events that are seen before the act."""
    many: int
    cursors: tuple[int, ...]
    pause: float
    think: float


def turn_of(seed: int, number: int, count: int) -> Turn:
    """What client `number` does as its turn `count`."""
    dice = random.Random(f"{seed}/{number}/{count}")
    directive: dict[str, Any] = {
        "tag": f"{seed}-{number}-{count}",
        "tokens": dice.randrange(5, 90),
        "rate": dice.choice((0, 8, 12, 20, 30)),
        "after": dice.randrange(0, 12),
    }
    if dice.random() < 0.25:
        directive.update(dice.choice(MODEL_FAULTS))
    return Turn(
        act=dice.choices(list(ACTS), list(ACTS.values()))[0],
        directive=directive,
        client_id=str(uuid.UUID(int=dice.getrandbits(128))),
        again_id=str(uuid.UUID(int=dice.getrandbits(128))),
        new=dice.random() < 0.4,
        after=dice.randrange(0, 15),
        many=dice.randrange(2, 5),
        cursors=tuple(dice.randrange(0, 30) for _ in range(4)),
        pause=dice.choice((0.0, 0.05, 0.5, 2.0)),
        think=dice.uniform(0.1, 3.0),
    )


class Crowd:
    """What the clients share."""

    def __init__(self, history: History, ports: list[int], seed: int) -> None:
        """:param ports: of the nodes, which everybody asks in turn."""
        self.history, self.ports, self.seed = history, ports, seed
        self._clients = itertools.count()
        self.closing = False
        self.found: list[Violation] = []
        self.public: list[tuple[str, str]] = []
        """Runs that others are to ask for: the owner, and the run."""
        self.turns = 0

    def client(self, cookie: str = "") -> Client:
        # The patience is longer than the heartbeat: who hears nothing for so long comes back.
        client = Moving(self.ports, next(self._clients), timeout=8.0)
        client.cookie = cookie
        return client


class Chatter:
    """One visitor."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd, self.number = crowd, number
        self.owner = f"owner{number}"
        self.cookie = ""
        self.conversation = ""
        self.body: dict[str, Any] = {}
        """Of the question that was sent last in several copies."""
        self.clients: list[Client] = []

    def run(self) -> None:
        gevent.sleep(self.number % 50 / 25)
        count = 0
        while not self.crowd.closing:
            turn = turn_of(self.crowd.seed, self.number, count)
            count += 1
            try:
                self.take(turn)
            except OURS:
                pass  # no answer came, and the client has done with it
            finally:
                for client in self.clients:
                    client.close()
                self.clients.clear()
            self.crowd.turns += 1
            gevent.sleep(turn.think)

    def tab(self) -> Visitor:
        client = self.crowd.client(self.cookie)
        self.clients.append(client)
        return self.crowd.history.visitor(self.owner, client)

    def take(self, turn: Turn) -> None:
        visitor = self.tab()
        while not self.cookie:
            with contextlib.suppress(*OURS):
                visitor.client.get("/conversations").response.read()
                self.cookie = visitor.client.cookie
            if self.crowd.closing:
                return
            gevent.sleep(0.05)
        body = self.question(turn)
        reading = self.post_at_once(body, turn.many) if turn.act == "equal" else self.post(visitor, body)
        if reading is None:
            return
        reading.take(1 + (turn.after if turn.act not in ("ask", "stranger", "astray", "equal") else 0))
        if reading.events and reading.events[0].event == "start":
            self.conversation = reading.start["conversation_id"]
        self.crowd.public = [*self.crowd.public[-20:], (self.owner, reading.run_id)]
        getattr(self, turn.act)(turn, visitor, reading)

    def question(self, turn: Turn) -> dict[str, Any]:
        directive = turn.directive
        body: dict[str, Any] = {"message": {"id": turn.client_id, "text": json.dumps(directive)}}
        if self.conversation and not turn.new:
            body["conversation_id"] = self.conversation
        return body

    # -- what every act is made of ---------------------------------------------------------------------------------

    def post(self, visitor: Visitor, body: dict[str, Any], tag: str | None = None) -> Reading | None:
        """Repeat a POST until it is answered; the client id says that it is one and the same."""
        if "message" in body:
            directive = json.loads(body["message"]["text"])
            tag = str(directive["tag"])
            self.crowd.history.expected[tag] = text_of(directive)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                reading = visitor.post(body, tag)
            except OURS:
                gevent.sleep(0.2)
                continue
            if reading.status == 200:
                return reading
            if reading.status in (409, 404, 422):  # a reply runs here; or the conversation has been deleted
                self.conversation = ""
                return None
            gevent.sleep(0.5)
        self.stuck("no answer to its question")
        return None

    def post_at_once(self, body: dict[str, Any], many: int) -> Reading | None:
        """The same POST several times. All but one are read to the end here."""
        self.body = body
        found: list[tuple[Visitor, Reading]] = []

        def send() -> None:
            visitor = self.tab()
            reading = self.post(visitor, body)
            if reading is not None:
                found.append((visitor, reading))

        gevent.joinall([gevent.spawn(send) for _ in range(many)])
        for visitor, reading in found[1:]:
            self.finish(visitor, reading)
        return found[0][1] if found else None

    def finish(self, visitor: Visitor, reading: Reading) -> list[Event]:
        """Read to the end; come back as often as it takes."""
        until = time.monotonic() + PATIENCE
        cursor, run_id = 0, reading.run_id
        while True:
            reading.rest()
            if reading.ended:
                return reading.events
            if reading.events:
                cursor = reading.last
            while True:
                if time.monotonic() > until:
                    self.stuck("no end of its reply", run_id)
                    return []
                gevent.sleep(0.1)
                with contextlib.suppress(*OURS):
                    reading = visitor.follow(run_id, cursor)
                    if reading.status in (204, 404):
                        return []
                    if reading.status == 200:
                        break
                    gevent.sleep(0.4)

    def stuck(self, words: str, run_id: str = "") -> None:
        self.crowd.found.append(Violation("end", f"{words} within {PATIENCE:.0f} s", run_id, client=self.owner))

    # -- the acts --------------------------------------------------------------------------------------------------

    def ask(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        self.finish(visitor, reading)

    def leave(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        cursor = reading.last
        reading.leave()
        gevent.sleep(turn.pause)
        self.finish(visitor, visitor.follow(reading.run_id, cursor))

    def mute(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        still = self.tab().follow(reading.run_id, None)
        self.finish(visitor, reading)
        gevent.sleep(turn.pause)
        still.leave()

    def tabs(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        def read(cursor: int) -> None:
            with contextlib.suppress(*OURS):
                # Only cursors that somebody may have: those past the log are asked for by `astray`.
                tab = self.tab()
                self.finish(tab, tab.follow(reading.run_id, min(cursor, len(reading.events))))

        readers = [gevent.spawn(read, cursor) for cursor in turn.cursors[: turn.many]]
        self.finish(visitor, reading)
        gevent.joinall(readers)

    def stop(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        gevent.sleep(turn.pause)
        with contextlib.suppress(*OURS):
            self.tab().stop(reading.run_id)
        self.finish(visitor, reading)
        if turn.after % 2 and reading.events and reading.events[0].event == "start":
            message_id = reading.start["message_id"]
            body = {"action": "continue", "message_id": message_id, "request_id": turn.again_id}
            further = self.post(visitor, body, turn.directive["tag"])
            if further is not None:
                self.finish(visitor, further)

    def delete(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        gevent.sleep(turn.pause)
        conversation, self.conversation = self.conversation, ""
        if conversation:
            with contextlib.suppress(*OURS):
                self.tab().delete(conversation)
        self.finish(visitor, reading)

    def equal(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        self.finish(visitor, reading)
        again = self.post(visitor, self.body)
        if again is not None:
            self.finish(visitor, again)

    def edit(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        self.finish(visitor, reading)
        if not self.conversation:
            return
        body = self.question(turn._replace(client_id=turn.again_id, directive={**turn.directive, "tag": turn.again_id}))
        body |= {"conversation_id": self.conversation, "parent_id": None}
        edited = self.post(visitor, body)
        if edited is not None:
            self.finish(visitor, edited)

    def regenerate(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        self.finish(visitor, reading)
        if reading.events and reading.events[0].event == "start":
            body = {"action": "regenerate", "message_id": reading.start["message_id"], "request_id": turn.again_id}
            other = self.post(visitor, body, turn.directive["tag"])
            if other is not None:
                self.finish(visitor, other)

    def stranger(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        for owner, run_id in self.crowd.public[-4:]:
            if owner != self.owner:
                tab = self.tab()
                with contextlib.suppress(*OURS):
                    tab.follow(run_id, turn.cursors[0]).take(1)
                with contextlib.suppress(*OURS):
                    tab.stop(run_id)
        self.finish(visitor, reading)

    def astray(self, turn: Turn, visitor: Visitor, reading: Reading) -> None:
        for cursor in ("abc", -1, 10**9 + turn.cursors[0]):
            tab = self.tab()
            with contextlib.suppress(*OURS):
                tab.follow(reading.run_id, cursor).take(turn.many)
        self.finish(visitor, reading)

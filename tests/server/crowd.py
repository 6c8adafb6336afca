"""Many visitors at once, who ask and read every reply to its end as a browser does, each in two tabs.

What a browser's user would have seen as an error is kept in words, and how long each change to another worker took.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from tests.conftest import Server
from tests.server.client import deadline
from tests.server.history import History, Reading, Visitor


class Crowd:
    """Use as a context manager: leaving it lets everybody finish their reply, and waits for them."""

    def __init__(
        self, server: Server, history: History, number: int, directive: Callable[[random.Random], dict[str, Any]],
        seed: int,
    ) -> None:  # fmt: skip
        """:param directive: of each question, for the misbehaving model."""
        self.server, self.history, self.directive, self.seed = server, history, directive, seed
        self.errors: list[str] = []
        self.moves: list[float] = []
        """Of each stream that moved: seconds from its end to the first bytes of the next."""
        self.refused = 0
        """Questions that a leaving worker sent elsewhere, with 503 and Retry-After."""
        self.replies = 0
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(n,), name=f"visitor {n}") for n in range(number)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.errors.append(f"{thread.name} waits for ever")

    def wait(self, replies: int, seconds: float = 60) -> None:
        """Until so many more replies have been read to their end."""
        before = self.replies
        for _ in deadline(seconds, f"{replies} replies"):
            if self.replies - before >= replies:
                return

    def _visit(self, number: int) -> None:
        chance = random.Random(self.seed + number)
        name = f"visitor {number}"
        try:
            client = self.server.client()
            client.json("/conversations")
            visitor = self.history.visitor(name, client)
            while not self._leave.is_set():
                self._converse(visitor, self.directive(chance))
        except Exception as error:
            self.errors.append(f"{name}: {error!r}")

    def _converse(self, visitor: Visitor, directive: dict[str, Any]) -> None:
        reading = self._ask(visitor, directive)
        if reading is not None:
            second = threading.Thread(target=self._second_tab, args=(visitor, reading.run_id), name=f"{visitor.name}/2")
            second.start()
            self._read(visitor, reading)
            second.join()

    def _second_tab(self, visitor: Visitor, run_id: str) -> None:
        """At whichever worker answers, the run's own or the other."""
        tab = visitor.tab()
        try:
            self._read(tab, tab.follow(run_id))
        except Exception as error:
            self.errors.append(f"{tab.name}: {error!r}")
        finally:
            tab.client.close()

    def _read(self, visitor: Visitor, reading: Reading) -> None:
        """A reply from worker to worker, until its end."""
        run_id, cursor, left_at = reading.run_id, 0, 0.0
        while True:
            for event in reading:
                if left_at:
                    self.moves.append(event.at - left_at)
                    left_at = 0.0
            cursor = max(cursor, reading.last)
            if reading.ended:
                self.replies += 1
                return
            if reading.how != "end":
                self.errors.append(f"{visitor.name}: a stream was {reading.how} after {cursor}")
            left_at = left_at or time.monotonic()
            reading = visitor.follow(run_id, cursor)
            if reading.status != 200:
                self.errors.append(f"{visitor.name}: following answered {reading.status}")
                return

    def _ask(self, visitor: Visitor, directive: dict[str, Any]) -> Reading | None:
        client_id = str(uuid.uuid4())
        for _ in deadline(30, "an answer to a question"):
            try:
                reading = visitor.ask(client_id=client_id, **directive)
            except (OSError, HTTPException) as error:
                self.errors.append(f"{visitor.name}: no answer to a question: {error!r}")
                continue
            if reading.status == 200:
                return reading
            if reading.status != 503 or "Retry-After" not in reading.stream.headers:
                self.errors.append(f"{visitor.name}: a question was answered with {reading.status}")
                return None
            self.refused += 1
        return None

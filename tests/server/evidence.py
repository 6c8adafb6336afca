"""What the checker's rules look at together: the history, the dump, each run's log; and what they find."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.server.dump import Dump
from tests.server.history import Event, History, Reading

_CURSOR = re.compile(r"\d{1,15}\Z", re.ASCII)


class Violation(NamedTuple):
    rule: str
    words: str
    run: str = ""
    seq: int = 0
    client: str = ""

    def __str__(self) -> str:
        named = {"run": self.run, "seq": self.seq, "client": self.client}
        place = ", ".join(f"{name} {value}" for name, value in named.items() if value)
        return f"{self.rule}: {self.words} ({place})"


class Case:
    def __init__(self, history: History, dump: Dump, stats: dict[str, Any] | None) -> None:
        self.history, self.dump, self.stats = history, dump, stats
        self.found: list[Violation] = []
        self.logs: dict[str, list[Event]] = {}
        """By run: what the store or, where the run is gone from it, the journal says."""
        self.gone: dict[str, dict[int, Event]] = defaultdict(dict)
        """By run: what was seen, and was lost with Redis (losses.py)."""
        self.whole: set[str] = set()
        """Runs whose log is known from its beginning to its end."""
        self.by_run: dict[str, list[Reading]] = defaultdict(list)
        for reading in history.readings:
            self.by_run[reading.run_id].append(reading)
        self.workers: dict[str, set[int]] = defaultdict(set)
        """The processes that answered a run's POSTs: one of them writes it."""
        self.stored_owners: dict[str, str] = {}
        """The store's name of each owner of the history."""
        for post in history.posts:
            run = dump.runs.get(post.run_id)
            if post.status == 200:
                self.workers[post.run_id].add(post.worker)
            if post.status == 200 and run is not None:
                self.stored_owners.setdefault(post.owner, run.owner)

    def say(self, rule: str, words: str, run: str = "", seq: int = 0, client: str = "") -> None:
        self.found.append(Violation(rule, words, run, seq, client))


def cursor_of(sent: object) -> int | None:
    """As the contract reads a Last-Event-ID: 0 for none, None for one that is malformed."""
    if sent is None or sent == "":
        return 0
    return int(str(sent)) if _CURSOR.match(str(sent)) else None


def text_of_log(events: Iterable[Event]) -> str:
    return "".join(str(event.json["text"]) for event in events if event.event == "delta")

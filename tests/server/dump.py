"""What is left when a test is over: the store and the log as they stand in the backend, and what the processes hold."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.client import deadline
from tests.server.data import FAILURES, Log, data_of


class Run(NamedTuple):
    id: str
    conversation_id: str
    message_id: str
    user_message_id: str
    owner: str
    state: str
    worker_id: str
    epoch: int
    last_seq: int
    started_at: float
    ended_at: float | None


class Message(NamedTuple):
    id: str
    conversation_id: str
    role: str
    text: str
    status: str
    run_id: str | None


class Request(NamedTuple):
    owner: str
    client_id: str
    run_id: str


class Dump:
    """The database's tables, read in one transaction."""

    def __init__(
        self, runs: list[Run], messages: list[Message], frames: dict[str, bytes], requests: list[Request],
        journal: Log, *, repeats: bool = False,
    ) -> None:  # fmt: skip
        """:param runs: in the order in which they began.
        :param repeats: whether the log may hold the same events twice.
        """
        self.runs = {run.id: run for run in runs}
        self.messages = {message.id: message for message in messages}
        self.frames, self.requests, self.journal, self.repeats = frames, requests, journal, repeats

    @classmethod
    def of(cls, server: Server | Path, tap: Tap | None = None) -> Dump:
        """:param tap: has kept the rows that have left the journal since."""
        data = data_of(server)
        with data.snapshot() as ask:

            def rows(kind: Any, table: str, order: str) -> list[Any]:
                names = ", ".join(kind._fields)
                return [kind(*row) for row in ask(f"SELECT {names} FROM flaskchat_{table} ORDER BY {order}")]

            journal = dict(tap.rows) if tap is not None else {}
            journal.update(data.log(ask, journal))
            frames = {run_id: bytes(f) for run_id, f in ask("SELECT run_id, frames FROM flaskchat_run_events")}
            runs = rows(Run, "runs", "first_row, started_at")
            messages, requests = rows(Message, "messages", "id"), rows(Request, "requests", "client_id")
        return cls(runs, messages, frames, requests, journal, repeats=data.repeats)


class Tap:
    """Keeps every row of the log, which the workers prune after a while. Use as a context manager."""

    def __init__(self, server: Server | Path) -> None:
        self._data = data_of(server)
        self.rows: Log = {}
        self.failed = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tap")

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            ending = self._end.is_set()
            try:
                with self._data.snapshot() as ask:
                    self.rows.update(self._data.log(ask, self.rows))
            except FAILURES:
                self.failed += 1
            if ending:
                return
            self._end.wait(1.0)


class Gauge(NamedTuple):
    """What a server holds at one moment; sums over its workers.

    To be compared, it is first taken after a load of the same kind: workers open connections and import modules as they
    are needed, and keep them.
    """

    workers: int
    descriptors: int
    greenlets: int
    memory: int
    wal: int
    model: int

    @classmethod
    def of(cls, server: Server, model: Running | None = None) -> Gauge:
        """Asks every worker of its own greenlets (`/gauge` of the test application).

        Waits for workers that leave to have left.
        """
        for _ in deadline(60, "the workers to stay the same"):
            with contextlib.suppress(psutil.NoSuchProcess):
                return cls._of(server, server.workers(), model)
        raise AssertionError

    @classmethod
    def _of(cls, server: Server, pids: list[int], model: Running | None) -> Gauge:
        greenlets = 0
        client = server.client()
        for pid in pids:
            connection = client.connect_to(pid)
            greenlets += int(client.request("GET", "/gauge", connection=connection).json()["greenlets"])
            connection.close()
        wal = server.folder / "instance" / "flaskchat.sqlite3-wal"
        return cls(
            workers=len(pids),
            descriptors=sum(psutil.Process(pid).num_fds() for pid in pids),
            greenlets=greenlets,
            memory=sum(psutil.Process(pid).memory_info().rss for pid in pids),
            wal=wal.stat().st_size if wal.exists() else 0,
            model=int(model.stats()["live"]) if model is not None else 0,
        )


NOISE = Gauge(workers=0, descriptors=4, greenlets=4, memory=12 << 20, wal=8 << 20, model=0)
"""What may be left over in all: a kept-alive connection, an allocator's arena, a WAL before its next checkpoint."""


def wait_back(server: Server, before: Gauge, model: Running | None = None, seconds: float = 30) -> list[str]:
    """Wait until the server holds no more than before; memory 10 % more.

    :returns: what was not back after `seconds`, in words.
    """
    until = time.monotonic() + seconds
    while True:
        after = Gauge.of(server, model)
        left = not_back(before, after)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def not_back(before: Gauge, after: Gauge, noise: Gauge = NOISE) -> list[str]:
    """What is not back, in words."""
    found = []
    for name, was, now, floor in zip(Gauge._fields, before, after, noise, strict=True):
        allowed = max(was * 1.1, was + floor) if name == "memory" else was + floor
        if name == "workers":
            if now != was:
                found.append(f"resources: {now} workers, {was} before")
        elif now > allowed:
            found.append(f"resources: {name} {now}, {was} before ({allowed:.0f} allowed)")
    return found

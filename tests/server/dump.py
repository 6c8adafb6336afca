"""What is left when a test is over: the store and the log as they stand in the file, and what the processes hold."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from flaskchat.log.base import Append
from flaskchat.log.rows import decode_row
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.client import deadline


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
        journal: dict[int, tuple[str, list[Append]]],
    ) -> None:  # fmt: skip
        """:param runs: in the order in which they began.
        :param journal: by the row's id: who wrote it, and the appends in it.
        """
        self.runs = {run.id: run for run in runs}
        self.messages = {message.id: message for message in messages}
        self.frames, self.requests, self.journal = frames, requests, journal

    @classmethod
    def of(cls, server: Server | Path, tap: Tap | None = None) -> Dump:
        """:param tap: has kept the rows that have left the journal since."""
        path = server if isinstance(server, Path) else server.folder / "instance" / "flaskchat.sqlite3"
        with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as c:
            c.execute("BEGIN")

            def rows(kind: Any, table: str) -> list[Any]:
                names = ", ".join(kind._fields)
                return [kind(*row) for row in c.execute(f"SELECT {names} FROM flaskchat_{table} ORDER BY rowid")]

            journal = dict(tap.rows) if tap is not None else {}
            journal.update(journal_of(c, 0))
            frames = {run_id: bytes(f) for run_id, f in c.execute("SELECT run_id, frames FROM flaskchat_run_events")}
            return cls(rows(Run, "runs"), rows(Message, "messages"), frames, rows(Request, "requests"), journal)


def journal_of(c: sqlite3.Connection, after: int) -> dict[int, tuple[str, list[Append]]]:
    statement = "SELECT id, worker_id, version, data FROM flaskchat_journal WHERE id > ? ORDER BY id"
    return {
        row_id: (worker, [entry for entry in decode_row(version, data) if isinstance(entry, Append)])
        for row_id, worker, version, data in c.execute(statement, (after,)).fetchall()
    }


class Tap:
    """Keeps every row of the journal, which the workers prune after half a minute. Use as a context manager."""

    def __init__(self, server: Server | Path) -> None:
        self.path = server if isinstance(server, Path) else server.folder / "instance" / "flaskchat.sqlite3"
        self.rows: dict[int, tuple[str, list[Append]]] = {}
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
                with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=1)) as c:
                    self.rows.update(journal_of(c, max(self.rows, default=0)))
            except sqlite3.Error:
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

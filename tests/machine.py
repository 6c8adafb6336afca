"""A host of workers that are driven step by step in one process and may crash at any point.

The workers are the product's own (`Runtime`, never started): no task runs by itself, so a step is a tick, a round of
the sweep or a request. Used by test_log_machine.py. Another database comes in by another `Backend`.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from flaskchat import sse, tasks
from flaskchat.config import Settings
from flaskchat.limits import Visitor
from flaskchat.log.base import Append, Entry, Stop
from flaskchat.models import Event, Request, Stopped
from flaskchat.providers.base import Provider
from flaskchat.reader import Reader
from flaskchat.runtime import Runtime
from flaskchat.store import migrate
from flaskchat.store.base import Begun, Command, Ending, Lease
from flaskchat.store.kinds import open_database
from flaskchat.store.schema import metadata
from tests.backends import PostgresServer
from tests.server.client import TERMINAL

OWNER = "user:1"
SETTINGS = Settings(
    titles=False, database_timeout=0.1, heartbeat=1.0, live_bytes=1 << 16, max_runs_per_owner=0, messages_per_minute=0,
    max_streams_per_owner=0, max_streams_per_address=0, connections_per_second=0,
)  # fmt: skip


class Crash(BaseException):
    """The process is gone from here on. Not an Exception: nothing may handle it."""


class Backend(Protocol):
    """Where a host keeps its log and its store."""

    def worker(self, models: Models) -> Runtime:
        """A new process on the same data. It is not started."""

    def locked(self) -> Any:
        """A context within which somebody else keeps every writer out."""

    def close(self) -> None: ...


class SQLite:
    """One file, copied from one that has its tables already."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "chat.sqlite3"
        made = folder.parent / "made.sqlite3"
        if not made.exists():
            database = open_database(f"sqlite:///{made}", timeout=1.0)
            migrate.upgrade(database)
            database.close()
        shutil.copy(made, self._path)
        self._path.chmod(0o600)

    def worker(self, models: Models) -> Runtime:
        return Runtime(SETTINGS, f"sqlite:///{self._path}", models)

    @contextmanager
    def locked(self) -> Iterator[None]:
        database = open_database(f"sqlite:///{self._path}", timeout=0.1)
        try:
            with database.connect(write=True) as connection, connection.begin():
                yield
        finally:
            database.close()

    def close(self) -> None:
        shutil.rmtree(self._path.parent)


class Still:
    """A task that does nothing by itself."""

    def join(self, timeout: float | None = None) -> None:
        pass


class SQLiteAndRedis(SQLite):
    """The log in Redis, under a prefix of its own."""

    _prefixes = itertools.count(1)

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self._settings = dataclasses.replace(SETTINGS, redis_url=url, redis_prefix=f"machine{next(self._prefixes)}")

    def worker(self, models: Models) -> Runtime:
        runtime = Runtime(self._settings, f"sqlite:///{self._path}", models)
        log: Any = runtime.log
        log._tail._run = lambda current: Still()  # what a worker reads meanwhile, it reads with its turn
        turn = log.turn
        log.turn = lambda *what: [*turn(*what), *(turn(None, [], []) if what[0] is not None else ())]
        return runtime


class Postgres:
    """A database of a real server's, copied from one that has its tables already."""

    MADE = "made_for_the_machine"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        if not server.execute(f"SELECT 1 FROM pg_database WHERE datname = '{self.MADE}'"):
            server.execute(f"CREATE DATABASE {self.MADE}")
            database = open_database(server.url(self.MADE), timeout=1.0)
            migrate.upgrade(database)
            database.close()
        self._stack = ExitStack()
        self._name = self._stack.enter_context(server.database(self.MADE))

    def worker(self, models: Models) -> Runtime:
        return Runtime(SETTINGS, self._server.url(self._name), models)

    @contextmanager
    def locked(self) -> Iterator[None]:
        database = open_database(self._server.url(self._name), timeout=1.0)
        try:
            with database.connect(write=True) as connection, connection.begin():
                for table in metadata.tables:
                    connection.exec_driver_sql(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
                yield
        finally:
            database.close()

    def close(self) -> None:
        self._stack.close()


class Puts:
    """A model that says what the test puts down."""

    def __init__(self) -> None:
        self.waiting: list[Event] = []

    def open(self) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def read(self) -> list[Event]:
        events, self.waiting = self.waiting, []
        return events

    def close(self) -> bool:
        return True


class Models:
    """The one model, and how often it was asked for each run."""

    name = "puts"

    def __init__(self) -> None:
        self.sources: dict[str, Puts] = {}
        self.asked: dict[str, int] = {}

    def resolve(self, model_id: str) -> tuple[Provider, str]:
        return self, model_id

    def pick(self, asked: str | None, before: str | None) -> str:
        return "puts"

    def source(self, request: Request) -> Puts:
        self.asked[request.run_id] = self.asked.get(request.run_id, 0) + 1
        self.sources[request.run_id] = Puts()
        return self.sources[request.run_id]


class CrashingLog:
    """The worker's log, which may take the process with it just before or just after an append is committed."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._log = worker, worker.runtime.pump.log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        if entries:
            self._worker.passes("before an append")
        found = self._log.turn(lease, entries, endings)
        if entries:
            self._worker.passes("between commit and wake")
        return found

    def follow(self) -> list[Entry]:
        return self._log.follow()

    def read(self, run_id: str) -> list[Append]:
        return self._log.read(run_id)

    def close(self) -> None:
        self._log.close()


POINTS = (
    "before an append", "between commit and wake", "before a write", "after a write", "after two writes",
    "after three writes", "between the store and the log",
)  # fmt: skip


class Worker:
    """One process, as long as it lives. `frozen`: it stands still, as after a SIGSTOP."""

    _numbers = itertools.count(1)

    def __init__(self, backend: Backend, models: Models) -> None:
        self.number = next(self._numbers)
        self.runtime = backend.worker(models)
        self.frozen = False
        self.crash_at: str | None = None
        self._writes = 0
        self.runtime.pump.log = CrashingLog(self)
        self._write = self.runtime.database.write
        self.runtime.database.write = self._crashing_write  # type: ignore[method-assign,assignment]
        self.runtime.readers.heartbeat = 0.0  # a reader with nothing to say does not wait, it beats
        self.runtime.pump.refresh = self._refresh  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"worker {self.number}"

    def passes(self, point: str) -> None:
        if self.crash_at == point:
            raise Crash(point)

    def _crashing_write(self, function: Callable[[Any], Any]) -> Any:
        self.passes("before a write")
        found = self._write(function)
        if self.crash_at is not None:
            self._writes += 1
            self.passes(("after a write", "after two writes", "after three writes")[min(self._writes, 3) - 1])
        return found

    def _refresh(self) -> bool:
        look = tasks.Answer()
        self.runtime.pump._looks.append(look)
        self.runtime.pump._needed_at = time.monotonic()
        self.tick()
        return look.wait()

    def tick(self) -> None:
        pump = self.runtime.pump
        pump._tick(time.monotonic())
        if pump.finisher._waiting and pump.finisher.attempt():
            self.passes("between the store and the log")
            pump._tick(time.monotonic())

    def sweep(self) -> None:
        self.runtime.sweeper.round()

    def has(self, run_id: str) -> bool:
        return run_id in self.runtime.pump.feeds

    def stop(self, run_id: str) -> None:
        """What `runs.stop` does before it waits."""
        feed = self.runtime.pump.feeds.get(run_id)
        if feed is not None:
            self.runtime.runs.end(feed, Stopped(), time.monotonic())
        else:
            self.runtime.pump.log.announce(Stop(run_id, time.monotonic()))

    def kill(self) -> None:
        """No lease is given back and nobody is told."""
        self.runtime.watch.close()
        self.runtime.places.close()
        self.runtime.pump.log.close()
        self.runtime.pump.poller.close()
        self.runtime.database.close()


class Run:
    """What the model of the test knows of one run."""

    def __init__(self, begun: Begun, command: Command, before: str, worker: Worker) -> None:
        """:param before: the message's text when the run began; more than nothing where it continues one."""
        self.run_id, self.conversation_id, self.message_id = begun.run_id, begun.conversation_id, begun.message_id
        self.command, self.before, self.worker = command, before, worker
        self.put = ""
        """What its model has said."""
        self.may_end: set[str] = set()
        """States that something which happened explains."""
        self.seen: list[sse.Frame] = []
        """What readers have seen, the longest."""

    def see(self, cursor: int, frame: sse.Frame) -> None:
        """:raises AssertionError: a gap, a second version of an event, or something after the end."""
        assert frame.event != "reset", "continuity was there to be shown"
        assert int(frame.id) == cursor + 1, f"event {frame.id} after {cursor}"
        if cursor < len(self.seen):
            assert frame == self.seen[cursor], "two readers, two versions"
        else:
            assert cursor == len(self.seen)
            assert not self.seen or self.seen[-1].event not in TERMINAL, "something after the end"
            self.seen.append(frame)


class Following:
    """One reader: a browser that keeps its cursor and comes back."""

    def __init__(self, run: Run, cursor: int) -> None:
        self.run, self.cursor = run, cursor
        self.reader: Reader | None = None
        self.worker: Worker | None = None
        self._decoder = sse.Decoder()

    def attach(self, worker: Worker) -> None:
        self.leave()
        self.worker = worker
        self._decoder = sse.Decoder()
        self.reader = worker.runtime.readers.follow(self.run.run_id, Visitor(OWNER), str(self.cursor))
        if self.reader is None:  # 204
            assert self.over, "told that there is nothing more, before the end"

    @property
    def over(self) -> bool:
        return self.cursor > 0 and self.run.seen[self.cursor - 1].event in TERMINAL

    def read(self) -> None:
        """All that is there."""
        if self.reader is None:
            return
        for data in self.reader:
            beating = data == sse.HEARTBEAT
            for frame in self._decoder.feed(data):
                self.run.see(self.cursor, frame)
                self.cursor += 1
            if beating:
                return
        self.leave()

    def leave(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader = self.worker = None

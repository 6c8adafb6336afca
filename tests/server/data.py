"""What a server has written, past the server: its tables and its log as they lie in SQLite, PostgreSQL or Redis.

The same few questions for every backend, so that what looks at a test's data need not know which one it is.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import redis
import sqlalchemy as sa

from flaskchat.log.base import Append
from flaskchat.log.rows import decode_row

if TYPE_CHECKING:
    from tests.backends import RedisServer
    from tests.conftest import Server

Ask = Callable[..., list[Any]]
"""A statement, with a question mark for each of the values that follow it; the rows."""
Log = dict[Any, tuple[str, list[Append]]]
"""By a key that sorts as they were appended: who wrote it, and the appends in it."""

FAILURES = (sa.exc.DBAPIError, OSError)
"""What the questions raise when the data cannot be had at the moment."""


class Data:
    """A database that SQLAlchemy speaks to, with the log in its journal."""

    begin = "BEGIN"
    late = 0
    """Rows that are looked at again: with several writers, one of a smaller id may be seen after one of a larger."""
    repeats = False
    """Whether the log may hold the same events twice, where the answer to an append was lost."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self._engine = sa.create_engine(
            url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
        )  # fmt: skip

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Ask]:
        """All questions within are answered from the same moment."""
        with self._engine.connect() as connection:
            mark = "?" if self._engine.dialect.paramstyle == "qmark" else "%s"

            def ask(statement: str, *values: object) -> list[Any]:
                found = connection.exec_driver_sql(statement.replace("?", mark), values)
                return [tuple(row) for row in found.all()]

            connection.exec_driver_sql(self.begin)
            yield ask
            connection.exec_driver_sql("ROLLBACK")

    def rows(self, statement: str, *values: object) -> list[Any]:
        with self.snapshot() as ask:
            return ask(statement, *values)

    def log(self, ask: Ask, known: Log) -> Log:
        """What is in the log, but for what is known of it already."""
        after = max(known, default=0) - self.late
        statement = "SELECT id, worker_id, version, data FROM flaskchat_journal WHERE id > ? ORDER BY id"
        return {
            row_id: (worker, appends(version, data))
            for row_id, worker, version, data in ask(statement, after)
            if row_id not in known
        }

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else keeps every writer out, and no reader."""
        raise NotImplementedError


def appends(version: int, data: bytes) -> list[Append]:
    return [entry for entry in decode_row(version, data) if isinstance(entry, Append)]


class SQLite(Data):
    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", timeout=30)
        self._path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        # in another process: SQLite's locks are a process's, and end when any of its connections is closed
        code = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
            "print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", code, str(self._path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.communicate()


class PostgreSQL(Data):
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
    late = 1000
    repeats = True

    def __init__(self, url: str) -> None:
        super().__init__(url, connect_timeout=10)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        names = self.rows("SELECT tablename FROM pg_tables WHERE tablename LIKE ?", "flaskchat%")
        lock = f"LOCK TABLE {', '.join(name for (name,) in names)} IN EXCLUSIVE MODE"
        with self._engine.connect() as connection:
            while True:
                connection.exec_driver_sql("BEGIN")
                try:
                    connection.exec_driver_sql(lock)
                    break
                except sa.exc.OperationalError as error:  # somebody took two of them the other way round
                    if not isinstance(error.orig, psycopg.errors.DeadlockDetected):
                        raise
                    connection.exec_driver_sql("ROLLBACK")
            try:
                yield
            finally:
                connection.exec_driver_sql("ROLLBACK")


class Streams:
    """The log in Redis: a stream for each run. Who wrote an entry does not stand in it."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self._server = server
        self._pattern = f"{{{prefix}}}:run:*"
        self._seen: dict[bytes, bytes] = {}
        self._found: Log = {}
        """Of a look that failed: what it had read may be gone at the next."""

    def log(self, ask: Ask, known: Log) -> Log:
        found = self._found
        try:
            with redis.Redis.from_url(self._server.direct, socket_timeout=10) as client:
                for key in client.scan_iter(match=self._pattern, count=1000):
                    for entry, fields in client.xrange(key, min=self._seen.get(key, b"-")):
                        first, _, second = entry.partition(b"-")
                        self._seen[key] = entry
                        found[key, int(first), int(second)] = ("control", appends(int(fields[b"v"]), fields[b"d"]))
        except redis.RedisError as error:
            raise OSError(str(error)) from error
        self._found = {}
        return {key: what for key, what in found.items() if key not in known}


def data_of(server: Server | Path) -> Data:
    """:param server: or a SQLite database's file."""
    if isinstance(server, Path):
        return SQLite(server)
    if server.backend.postgres is None:
        found: Data = SQLite(server.folder / "instance" / "flaskchat.sqlite3")
    else:
        found = PostgreSQL(server.backend.postgres.url(server.backend.database))
    if server.backend.redis is not None:
        found.repeats = True
        # in place of the database's own log: everything else is asked of the database as before
        found.log = Streams(server.backend.redis, server.backend.prefix).log  # type: ignore[method-assign]
    return found

"""The connection to the database: which SQLite, how it is opened, and where a call may wait.

Deliberate choices; do not change one without reading why:

 1. Every call runs in a native thread (`tasks.Offloader`). SQLite waits for locks and syncs files in C, which would
    hold the hub; in a thread its own `busy_timeout` is harmless, and no part of the store needs a second, "safe" way
    to ask.
 2. One connection writes. SQLite has one writer anyway; a second would only wait for the first in C. The lock that
    hands the connection on is taken outside the threads.
 3. Writes begin IMMEDIATE: a deferred transaction that turns into a write fails at once, whatever the timeout.
 4. No automatic checkpoint: it would sync files in whoever's commit happened to be next. `checkpoint()` does it, off
     the hub.
 5. WAL needs a SQLite with the WAL-reset fix (3.51.3, 3.50.7, 3.44.6), since several workers checkpoint and commit at
    once. `pysqlite3` brings one where the interpreter's own is older.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from .. import tasks
from ..errors import ConfigurationError, Unavailable

logger = logging.getLogger("flaskchat")

P = ParamSpec("P")
T = TypeVar("T")

READERS = 3
COMPLAIN_EVERY = 10.0
"""Seconds between lines in the log about calls that the database refuses."""
CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log from which a checkpoint is worth its file syncs."""


def has_wal_fix(version: tuple[int, ...]) -> bool:
    """Whether this SQLite is free of the WAL-reset fault (two connections that checkpoint and commit at once)."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def sqlite_module() -> ModuleType:
    """The DB-API module to use: the interpreter's own SQLite if it is sound, else `pysqlite3`.

    :raises ConfigurationError: neither is.
    """
    if has_wal_fix(sqlite3.sqlite_version_info):
        return sqlite3
    with contextlib.suppress(ImportError):
        import pysqlite3

        if has_wal_fix(pysqlite3.sqlite_version_info):
            return pysqlite3  # type: ignore[no-any-return]
    raise ConfigurationError(
        f"SQLite {sqlite3.sqlite_version} can corrupt a database that several workers use; "
        "install `pysqlite3>=0.6.1` (or SQLite 3.51.3 or newer), or set FLASKCHAT_DATABASE_URL to PostgreSQL"
    )


def code_of(error: object) -> int:
    """SQLite's primary result code of a driver's exception (https://sqlite.org/rescode.html); 0 where it has none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def passing(code: int) -> bool:
    """Whether a fault may be gone with the next call: busy, locked, I/O error, disk full, locking protocol."""
    return code in (5, 6, 10, 13, 15)


def _prepare(path: str) -> None:
    """Make the folder (0700) and the file (0600): SQLite would create it with the umask's rights."""
    if path and path != ":memory:":
        file = Path(path)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            if not os.access(file, os.R_OK | os.W_OK):
                raise PermissionError("not readable and writable by this process")
            if not os.access(file.parent, os.W_OK | os.X_OK):
                raise PermissionError("SQLite keeps files beside it, and this process cannot write into its folder")
        except OSError as error:
            raise ConfigurationError(f"FLASKCHAT_DATABASE_URL: cannot use {path!r}: {error}") from error


def unavailable() -> Unavailable:
    return Unavailable("The database cannot be used at the moment.", code="store_unavailable", retry_after=2)


class Database:
    """The engine, its one writing connection and a few reading ones. One per worker, opened after the fork."""

    def __init__(self, url: str, *, timeout: float) -> None:
        """:param timeout: seconds a call waits for a lock before it is refused."""
        parsed: URL = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise ConfigurationError(
                f"FLASKCHAT_DATABASE_URL={parsed.render_as_string()!r}: only SQLite is supported (sqlite:///path)"
            )
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError("FLASKCHAT_DATABASE_URL: SQLite needs a file, workers cannot share memory")
        self.path = parsed.database
        self.timeout = timeout
        self.module = sqlite_module()
        _prepare(self.path)
        self.engine: Engine = sa.create_engine(parsed, module=self.module, poolclass=NullPool, hide_parameters=True)
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "begin", self._begin)
        self._threads = tasks.Offloader(READERS + 1)
        self._forget = False
        """Whether the write-ahead log is to be emptied, however short it is."""
        self._write_lock = tasks.Lock()
        self._writer: Connection | None = None
        self._read_slots = threading.BoundedSemaphore(READERS)
        self._idle_readers: list[Connection] = []
        self._complained_at = -COMPLAIN_EVERY

    def _configure(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")
        # In kB, of each connection. The default, 2 MB, fills with pages of the journal that nobody asks for again.
        cursor.execute("PRAGMA cache_size = -512")
        cursor.close()

    @staticmethod
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "")
        connection.exec_driver_sql(f"BEGIN {mode}".rstrip())

    def connect(self, *, write: bool) -> Connection:
        """A connection of the caller's own; waits in C when it opens."""
        return self.engine.connect().execution_options(sqlite_begin="IMMEDIATE" if write else "")

    def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what may wait in C in one of this database's threads."""
        return self._threads.call(function, *args, **kwargs)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            self._complain("cannot be used", error.orig)
            raise unavailable() from error

    def _complain(self, what: str, why: object) -> None:
        """Tell the operator, whom the answers do not reach; now and then, as each request brings the same."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = now
            logger.warning("the database %s %s: %s", self.path, what, why)

    def write(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in one transaction that writes; it is committed when this returns.

        :raises Unavailable: `store_unavailable`, when the lock was not had in time or the database failed.
        """
        if not self._write_lock.acquire(timeout=self.timeout):
            raise Unavailable("The database is busy.", code="store_unavailable", retry_after=2)
        try:
            with self._refusals():
                return self._threads.call(self._write, function)
        finally:
            self._write_lock.release()

    def _write(self, function: Callable[[Connection], T]) -> T:
        if self._writer is None:
            self._writer = self.connect(write=True)
        try:
            with self._writer.begin():
                return function(self._writer)
        except exc.DBAPIError:
            writer, self._writer = self._writer, None
            writer.close()  # a connection that failed is not trusted again
            raise

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on one snapshot. It must fetch all that it wants: a cursor left open would stop checkpoints.

        :raises Unavailable: `store_unavailable`.
        """
        if not self._read_slots.acquire(timeout=self.timeout):
            raise Unavailable("The database is busy.", code="store_unavailable", retry_after=2)
        try:
            with self._refusals():
                return self._threads.call(self._read, function)
        finally:
            self._read_slots.release()

    def _read(self, function: Callable[[Connection], T]) -> T:
        try:
            connection = self._idle_readers.pop()
        except IndexError:
            connection = self.connect(write=False)
        try:
            with connection.begin():
                result = function(connection)
        except BaseException:
            connection.close()
            raise
        self._idle_readers.append(connection)
        return result

    def forget(self) -> None:
        """Let nothing of what was deleted stay in the write-ahead log: empty it now, or as soon as nobody reads it."""
        self._forget = True
        self.checkpoint()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database when it has grown, so that it starts anew. Syncs files.

        PASSIVE does the bulk beside the writers; TRUNCATE then has only a few pages left to do under the write lock.
        """
        try:
            if Path(self.path + "-wal").stat().st_size < (1 if self._forget else CHECKPOINT_BYTES):
                self._forget = False
                return
        except OSError:
            return
        self._threads.call(self._checkpoint)

    def _checkpoint(self) -> None:
        connection = self.module.connect(self.path, isolation_level=None, timeout=0.1)
        try:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not busy:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._forget = self._forget and bool(busy)
        except self.module.Error as error:
            if code_of(error) not in (5, 6):  # busy or locked: another worker is at it
                self._complain("cannot be checkpointed, its write-ahead log grows", error)
        finally:
            connection.close()

    def close(self) -> None:
        for connection in [self._writer, *self._idle_readers]:
            if connection is not None:
                connection.close()
        self._writer, self._idle_readers = None, []
        self.engine.dispose()
        self._threads.close()

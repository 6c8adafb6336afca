"""SQLite: which library, how a file is opened, and when its write-ahead log is moved into it.

Deliberate choices; do not change one without reading why:

 1. One connection writes. SQLite has one writer anyway; a second would only wait for the first in C. The slot that
    hands the connection on is taken outside the threads.
 2. Writes begin IMMEDIATE: a deferred transaction that turns into a write fails at once, whatever the timeout.
 3. No automatic checkpoint: it would sync files in whoever's commit happened to be next. `checkpoint()` does it, off
    the hub.
 4. WAL needs a SQLite with the WAL-reset fix (3.51.3, 3.50.7), since several workers checkpoint and commit at once.
    `pysqlite3` brings one where the interpreter's own is older. 3.44 got it too (3.44.6), but takes a search index from
    which something was deleted for damaged (its `integrity_check`, with FTS5's `secure-delete`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.pool import NullPool

from ..errors import ConfigurationError
from .engine import Ask, Database, unavailable
from .schema import VERSION_TABLE

CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log from which a checkpoint is worth its file syncs."""
CHECK_SECONDS = 0.25
"""How long a start looks for damage: tens of megabytes, a large file's beginning."""

_ADVICE = {
    8: "The file and its folder must be writable by this process.",  # SQLITE_READONLY
    11: "Restore a backup, or move the file away together with its -wal and -shm: the next start makes a new one.",
    14: "The file and its folder must be writable by this process.",  # SQLITE_CANTOPEN
    26: "It is no SQLite file: name another one, or move it away and the next start makes a new one.",  # SQLITE_NOTADB
}
_BUSY = 5  # SQLITE_BUSY
_DAMAGED = 11  # SQLITE_CORRUPT


def is_sound(version: tuple[int, ...]) -> bool:
    """Whether this SQLite is free of the WAL-reset fault (two connections that checkpoint and commit at once), and
    tells a search index that is whole from a damaged one.
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51)


def sqlite_module() -> ModuleType:
    """The DB-API module to use: the interpreter's own SQLite if it is sound, else `pysqlite3`.

    :raises ConfigurationError: neither is.
    """
    if is_sound(sqlite3.sqlite_version_info):
        return sqlite3
    with contextlib.suppress(ImportError):
        import pysqlite3

        if is_sound(pysqlite3.sqlite_version_info):
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


class SQLite(Database):
    """One file, used by the workers of one host."""

    writers = 1

    def __init__(self, url: URL, *, timeout: float) -> None:
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("FLASKCHAT_DATABASE_URL: SQLite needs a file, workers cannot share memory")
        self.path = url.database
        self.module = sqlite_module()
        _prepare(self.path)
        engine = sa.create_engine(url, module=self.module, poolclass=NullPool, hide_parameters=True)
        event.listen(engine, "connect", self._configure)
        event.listen(engine, "begin", self._begin)
        super().__init__(engine, timeout=timeout)
        self.error = self.module.Error
        self.name = self.path
        self.version = f"{self.module.sqlite_version} ({self.module.__name__})"
        self.places = Path(f"{self.path}-places")
        self._forget = False
        """Whether the write-ahead log is to be emptied, however short it is."""

    def describe(self) -> str:
        return f"SQLite {self.version}, {self.path}"

    def _configure(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")
        self._switch_to_wal(cursor)
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")
        # In kB, of each connection. The default, 2 MB, fills with pages of the journal that nobody asks for again.
        cursor.execute("PRAGMA cache_size = -512")
        cursor.close()

    def _switch_to_wal(self, cursor: Any) -> None:
        """A file that is new is switched by whoever comes first; the others wait as for any writer.

        The pragma itself does not: it reads first and then asks for the write lock, which SQLite refuses at once
        where another has it, whatever the timeout is (https://sqlite.org/c3ref/busy_handler.html). A transaction of
        its own is waited for, in C.
        """
        until = time.monotonic() + self.timeout
        while True:
            try:
                cursor.execute("PRAGMA journal_mode = WAL")
                return
            except self.module.OperationalError as error:
                if code_of(error) != _BUSY or time.monotonic() > until:
                    raise
            cursor.execute("BEGIN EXCLUSIVE")
            cursor.execute("ROLLBACK")

    @staticmethod
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "")
        connection.exec_driver_sql(f"BEGIN {mode}".rstrip())

    def connect(self, *, write: bool) -> Connection:
        return self.engine.connect().execution_options(sqlite_begin="IMMEDIATE" if write else "")

    def executor(self, c: Connection) -> Ask:
        return c.connection.driver_connection.execute  # type: ignore[no-any-return,union-attr]

    def hurry(self, c: Connection, seconds: float) -> None:
        c.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        c.commit()

    def at_start(self, fault: BaseException) -> Exception:
        code = code_of(fault)
        return unavailable() if passing(code) else self._refused(str(fault), code)

    def _refused(self, why: str, code: int = 0) -> ConfigurationError:
        advice = f". {_ADVICE[code]}" if code in _ADVICE else ""
        return ConfigurationError(f"FLASKCHAT_DATABASE_URL: cannot use the database {self.path!r}: {why}{advice}")

    def look(self) -> None:
        """Whether the file is sound, as far as can be seen in a moment, and not another application's.

        Before it is opened as ours, which would switch it to write-ahead logging. Ours may stand beside a host's own
        tables, so only a file that another application has marked as its own (`PRAGMA application_id`) is refused.
        """
        connection: Any = self.module.connect(self.path, isolation_level=None, timeout=self.timeout)
        try:
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if owner and VERSION_TABLE not in names:
                why = f"it belongs to another application (its application_id is {owner & 0xFFFFFFFF:#010x})"
                raise self._refused(f"{why}. Name a file of the chat's own")
            until = time.monotonic() + CHECK_SECONDS
            connection.set_progress_handler(lambda: time.monotonic() > until, 1000)
            try:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0] if names else "ok"
            except self.module.OperationalError as error:
                if code_of(error) != 9:  # SQLITE_INTERRUPT: the time is over, and no damage was found
                    raise
                found = "ok"
            if found != "ok":
                raise self._refused(f"it is damaged ({' '.join(found.split())})", _DAMAGED)
        finally:
            connection.close()

    def damage(self, c: Connection) -> list[str]:
        found = c.exec_driver_sql("PRAGMA integrity_check(5)").scalars()  # more than `look`: the indexes
        return [" ".join(words.split()) for words in found if words != "ok"]

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
        self.offload(self._checkpoint)

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
                self.complain("cannot be checkpointed, its write-ahead log grows", error)
        finally:
            connection.close()

"""Bringing the tables up to date at start, safely when several workers start at once; and refusing files that are not
for us.

The look at the version costs one query; Alembic is imported only when a migration is due. Migrations run inside one
IMMEDIATE transaction, so the second worker waits, looks again and finds nothing left to do.

A file is looked at before it is opened as ours, which would switch it to write-ahead logging. Ours may stand beside a
host's own tables, so only a file that another application has marked as its own (`PRAGMA application_id`) is refused.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..errors import ConfigurationError
from .engine import Database, code_of, passing, unavailable
from .schema import HEAD, VERSION_TABLE

logger = logging.getLogger("flaskchat")

SCRIPTS = Path(__file__).with_name("migrations")
CHECK_SECONDS = 0.25
"""How long a start looks for damage: tens of megabytes, a large file's beginning."""

_ADVICE = {
    8: "The file and its folder must be writable by this process.",  # SQLITE_READONLY
    11: "Restore a backup, or move the file away together with its -wal and -shm: the next start makes a new one.",
    14: "The file and its folder must be writable by this process.",  # SQLITE_CANTOPEN
    26: "It is no SQLite file: name another one, or move it away and the next start makes a new one.",  # SQLITE_NOTADB
}
_DAMAGED = 11  # SQLITE_CORRUPT


def version(connection: Connection) -> str | None:
    """The migration that the database stands at, or None for an empty one."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def upgrade(database: Database) -> None:
    """Apply what is missing.

    :raises ConfigurationError: the file is no SQLite database, is damaged, belongs to another application, cannot be
        written, or was written by a newer flaskchat.
    :raises Unavailable: it is locked, or the disk is full or fails; that may go by itself.
    """
    try:
        _look(database)
        with database.connect(write=False) as connection:
            if version(connection) == HEAD:
                return
        with database.connect(write=True) as connection, connection.begin():
            if version(connection) != HEAD:
                _run(connection)
    except (exc.DatabaseError, database.module.Error) as error:
        fault = getattr(error, "orig", error)
        code = code_of(fault)
        if passing(code):
            logger.warning("the database %s cannot be used yet: %s", database.path, fault)
            raise unavailable() from error
        raise _refused(database, str(fault), code) from error


def _refused(database: Database, why: str, code: int) -> ConfigurationError:
    advice = f". {_ADVICE[code]}" if code in _ADVICE else ""
    return ConfigurationError(f"FLASKCHAT_DATABASE_URL: cannot use the database {database.path!r}: {why}{advice}")


def _look(database: Database) -> None:
    """Whether the file is sound, as far as can be seen in a moment, and not another application's. Changes nothing.

    :raises ConfigurationError:
    """
    connection: Any = database.module.connect(database.path, isolation_level=None, timeout=database.timeout)
    try:
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if owner and VERSION_TABLE not in names:
            why = f"it belongs to another application (its application_id is {owner & 0xFFFFFFFF:#010x})"
            raise _refused(database, f"{why}. Name a file of the chat's own", 0)
        until = time.monotonic() + CHECK_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > until, 1000)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0] if names else "ok"
        except database.module.OperationalError as error:
            if code_of(error) != 9:  # SQLITE_INTERRUPT: the time is over, and no damage was found
                raise
            found = "ok"
        if found != "ok":
            raise _refused(database, f"it is damaged ({' '.join(found.split())})", _DAMAGED)
    finally:
        connection.close()


def _run(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"FLASKCHAT_DATABASE_URL: the database is of a newer flaskchat: {error}. "
            "Install that version again, or restore the backup made before it."
        ) from error

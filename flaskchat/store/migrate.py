"""Bringing the tables up to date at start, safely when several workers start at once.

The look at the version costs one query; Alembic is imported only when a migration is due. Migrations run inside one
transaction that keeps other starts out, so the second worker waits, looks again and finds nothing left to do.

A database that a newer version has migrated already is used as it is where that version says that it may be: in a
rolling update workers of both run side by side, and one of the old ones may be started anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..errors import ConfigurationError, Unavailable
from .engine import Database
from .schema import HEAD, VERSION_TABLE, compatible

logger = logging.getLogger("flaskchat")

T = TypeVar("T")

SCRIPTS = Path(__file__).with_name("migrations")


def version(connection: Connection) -> str | None:
    """The migration that the database stands at, or None for an empty one."""
    if connection.dialect.name == "postgresql":  # what SQLAlchemy asks takes longer than all else of a start
        there = connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": VERSION_TABLE}).scalar() is not None
    else:
        there = sa.inspect(connection).has_table(VERSION_TABLE)
    if not there:
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def fits(connection: Connection) -> bool:
    """Whether this version can work on the tables as they are."""
    found = version(connection)
    if found is None or found <= HEAD:
        return found == HEAD
    oldest = connection.execute(sa.select(compatible.c.oldest)).scalar()  # every newer one has it
    if oldest is None or oldest > HEAD:
        return False
    logger.info("the database is of a newer flaskchat (%s), which lets this one (%s) work on it", found, HEAD)
    return True


def standing(database: Database) -> str | None:
    """As `version`, of a database that nobody has opened yet.

    :raises ConfigurationError, Unavailable: as `upgrade` does.
    """
    return _look(database, version)


def _look(database: Database, ask: Callable[[Connection], T]) -> T:
    with _told(database):
        database.look()
        with database.connect(write=False) as connection:
            return ask(connection)


def upgrade(database: Database) -> None:
    """Apply what is missing.

    :raises ConfigurationError: the database cannot be used (a file that is damaged, say, or another application's; a
        server that refuses the password), or was written by a newer flaskchat.
    :raises Unavailable: it is locked, or not there yet, or its disk is full or fails; that may go by itself.
    """
    if _look(database, fits):
        return
    with _told(database), database.connect(write=True) as connection, connection.begin():
        database.before_migration(connection)
        if not fits(connection):
            _run(connection)


@contextlib.contextmanager
def _told(database: Database) -> Iterator[None]:
    """Says in words what the driver says of a start."""
    try:
        yield
    except (exc.DatabaseError, database.error) as error:
        fault = getattr(error, "orig", None) or error
        made = database.at_start(fault)
        if isinstance(made, Unavailable):
            logger.warning("the database %s cannot be used yet: %s", database.name, fault)
        raise made from error


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

"""Bringing the tables up to date at start, safely when several workers start at once.

The look at the version costs one query; Alembic is imported only when a migration is due. Migrations run inside one
IMMEDIATE transaction, so the second worker waits, looks again and finds nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..errors import ConfigurationError
from .engine import Database
from .schema import HEAD, VERSION_TABLE

SCRIPTS = Path(__file__).with_name("migrations")


def version(connection: Connection) -> str | None:
    """The migration that the database stands at, or None for an empty one."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def upgrade(database: Database) -> None:
    """Apply what is missing.

    :raises ConfigurationError: the file is no SQLite database, is damaged, or was written by a newer flaskchat.
    """
    try:
        with database.connect(write=False) as connection:
            if version(connection) == HEAD:
                return
        with database.connect(write=True) as connection, connection.begin():
            if version(connection) != HEAD:
                _run(connection)
    except exc.DatabaseError as error:
        raise ConfigurationError(
            f"FLASKCHAT_DATABASE_URL: cannot use the database {database.path!r}: {error.orig}"
        ) from error


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
        raise ConfigurationError(f"FLASKCHAT_DATABASE_URL: the database is of a newer flaskchat: {error}") from error

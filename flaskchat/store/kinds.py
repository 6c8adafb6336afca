"""Which databases there are, by the setting's URL."""

from __future__ import annotations

import contextlib
import importlib

from sqlalchemy import exc
from sqlalchemy.engine import make_url

from ..config import without_passwords
from ..errors import ConfigurationError
from .engine import Database
from .sqlite import SQLite

EXPECTED = "sqlite:////path or postgresql://user:password@host/database"
POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
"""All mean psycopg 3."""


def load(url: str) -> None:
    """Import what a database of this kind needs, if it does: a tenth of a second that no worker's hub should be held
    for. What is missing or wrong is said when it is opened.
    """
    if url.partition(":")[0] in POSTGRES:
        with contextlib.suppress(ImportError):
            importlib.import_module("sqlalchemy.dialects.postgresql")
            importlib.import_module(".postgres", __package__)


def open_database(url: str, *, timeout: float) -> Database:
    """The database that FLASKCHAT_DATABASE_URL names. Connects to nothing yet.

    :param timeout: seconds a call waits for a lock before it is refused.
    :raises ConfigurationError: it is none that can be used.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise ConfigurationError(
            f"FLASKCHAT_DATABASE_URL={without_passwords(url)!r}: expected {EXPECTED}"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        return SQLite(parsed, timeout=timeout)
    if parsed.drivername in POSTGRES:
        try:
            from .postgres import PostgreSQL  # its driver is an extra
        except ImportError as error:
            raise ConfigurationError(
                f"FLASKCHAT_DATABASE_URL: PostgreSQL needs psycopg: pip install 'flaskchat[postgres]' ({error})"
            ) from error
        return PostgreSQL(parsed, timeout=timeout)
    raise ConfigurationError(f"FLASKCHAT_DATABASE_URL={parsed.render_as_string()!r}: expected {EXPECTED}")

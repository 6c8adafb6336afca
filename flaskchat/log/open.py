"""Which log there is: the one that goes with the database."""

from __future__ import annotations

from ..config import Settings
from ..store.engine import Database
from ..store.sqlite import SQLite
from .base import Log
from .journal import Journal


def open_log(settings: Settings, database: Database) -> Log:
    """The log of live replies. Connects to nothing yet."""
    assert isinstance(database, SQLite)
    return Journal(database)

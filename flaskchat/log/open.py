"""Which log there is: Redis where it is configured, else the one that goes with the database."""

from __future__ import annotations

from ..config import Settings
from ..store.engine import Database
from ..store.sqlite import SQLite
from .base import Log
from .journal import Journal
from .tail import Memory


def open_log(settings: Settings, database: Database, memory: Memory) -> Log:
    """The log of live replies. Connects to nothing yet.

    :param memory: the live runs of this worker, its own and those of others that are watched here.
    :raises ConfigurationError: FLASKCHAT_REDIS_URL cannot be used.
    """
    if settings.redis_url is not None:
        from .link import where
        from .redis import RedisLog

        return RedisLog(where(settings.redis_url), settings.redis_prefix, database, memory)
    if isinstance(database, SQLite):
        return Journal(database)
    from ..store.postgres import PostgreSQL  # its driver is an extra
    from .postgres import PostgresLog

    assert isinstance(database, PostgreSQL)
    return PostgresLog(database, memory)

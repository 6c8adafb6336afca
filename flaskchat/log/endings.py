"""Finishing runs in the store on behalf of a log that is not in it: in a transaction of their own, before the log."""

from __future__ import annotations

from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..store import finish
from ..store.base import Ending, Lease
from ..store.engine import Database, said
from .base import LogUnavailable

BUSY_MS = 100
"""How long the database's lock is waited for: the tick comes again, and must not miss heartbeats and Stop meanwhile."""


class Endings:
    """Over one connection, used by one caller at a time (the pump)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    def write(self, lease: Lease, endings: list[Ending]) -> None:
        """All of them or none.

        :param lease: under which they were begun.
        :raises Fenced: somebody else has ended one.
        :raises LogUnavailable: the database cannot be used at the moment.
        """
        self._database.offload(self._write, lease, endings)

    def _write(self, lease: Lease, endings: list[Ending]) -> None:
        try:
            if self._connection is None:
                self._connection = self._database.connect(write=True)
                if self._database.kind == "sqlite":
                    self._connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_MS}")
                    self._connection.commit()
            with self._connection.begin():
                for ending in endings:
                    finish.write(self._database.executor(self._connection), lease, ending)
        except (self._database.error, exc.DBAPIError) as error:
            self._close()
            raise LogUnavailable(said(getattr(error, "orig", error))) from error

    def close(self) -> None:
        self._database.offload(self._close)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

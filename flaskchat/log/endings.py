"""Finishing runs in the store on behalf of a log that is not in it: in a transaction of their own, before the log."""

from __future__ import annotations

from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..store import finish
from ..store.base import Ending, Fenced, Lease
from ..store.engine import Database, said
from .base import LogUnavailable

BUSY = 0.1
"""Seconds that SQLite's lock is waited for; then it is tried again."""
PATIENCE = 1.0
"""Seconds that PostgreSQL has for a statement."""
LARGE = 10.0
"""Seconds that it has where that was not enough: a text of megabytes, whose every part goes into the search's index,
may take longer, and given up it would only be begun again.
"""

_HELD = "SELECT 1 FROM flaskchat_workers WHERE id = ? AND epoch = ?"


class Endings:
    """Over one connection, used by one caller at a time (the finisher)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._patience = 0.0

    def write(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        """All of them or none. What stands already because the answer to its commit was lost is taken for done.

        :param lease: under which they were begun.
        :param patient: they were refused before, perhaps because they take long.
        :raises Fenced: somebody else has taken the lease over.
        :raises LogUnavailable: the database cannot be used at the moment.
        """
        patience = BUSY if self._database.kind == "sqlite" else LARGE if patient else PATIENCE
        self._database.offload(self._write, lease, endings, patience)

    def _write(self, lease: Lease, endings: list[Ending], patience: float) -> None:
        try:
            if self._connection is None:
                self._connection, self._patience = self._database.connect(write=True), 0.0
            if self._patience != patience:
                self._database.hurry(self._connection, patience)
                self._patience = patience
            with self._connection.begin():
                ask = self._database.executor(self._connection)
                # A takeover deletes that row: it waits for us then, or we find that it has been.
                lock = "" if self._database.kind == "sqlite" else " FOR KEY SHARE"
                if ask(_HELD + lock, (lease.worker_id, lease.epoch)).fetchone() is None:
                    raise Fenced(lease.worker_id)
                # In one order for all workers, so that none waits for another that waits for it.
                for ending in sorted(endings, key=lambda ending: ending.conversation_id):
                    finish.write_once(ask, lease, ending)
        except (self._database.error, exc.DBAPIError) as error:
            self.close()
            raise LogUnavailable(said(getattr(error, "orig", error))) from error

    def close(self) -> None:
        """In a native thread, while nothing is written."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

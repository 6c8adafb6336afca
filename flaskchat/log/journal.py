"""The log in SQLite: one row per tick and worker, appended in order, holding what every run of that worker got.

Deliberate choices; do not change one without reading why:

 1. A row per tick, not per run and event: rows keyed by run touch a page of the table per run and commit.
 2. The tick speaks to the driver. A tick without endings is one statement in autocommit: the fence, the append and the
    commit in one call into C, so that the thread needs the interpreter's lock once.
 3. The connection's `busy_timeout` is short: the tick comes again, and must not miss heartbeats and Stop meanwhile.
 4. `PRAGMA data_version` changes only by others' commits. It needs no lock and no row, so looking costs a few µs.
 5. Who has appended rings a bell (bell.py), once a tick, and who waits for others looks then; each tick only where
    nothing can be heard. A ring that was lost costs no more than a look that comes with the next check.
 6. A run that ended is finished in the store and its terminal event appended in the same transaction. Rows are pruned
    some time after, so that a follower which was held up still finds them; one held up for longer asks the store
    (readers.py: `look_after`).
 7. Ids are AUTOINCREMENT: they only grow, also when the newest rows have been deleted. SQLite has one writer, so
    a row with a smaller id never appears after one with a larger.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import Connection

from ..store import finish
from ..store.base import Ending, Fenced, Lease
from ..store.sqlite import SQLite
from .base import Append, Control, Entry, LogUnavailable, Orphan
from .bell import Bell
from .rows import CONTROL, NEWS_ROWS, VERSION, Rows, decode_row, encode_row, in_time, pick

logger = logging.getLogger("flaskchat")

T = TypeVar("T")

BUSY_MS = 100

_APPEND = """
INSERT INTO flaskchat_journal (worker_id, version, data)
SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM flaskchat_workers WHERE id = ? AND epoch = ?)
"""
_NEWER = """
SELECT id, version, CASE worker_id WHEN ? THEN NULL ELSE data END FROM flaskchat_journal WHERE id > ? ORDER BY id
LIMIT ?
"""  # our own rows are not brought back from the file
_RUN = """
SELECT version, data FROM flaskchat_journal
WHERE id > coalesce((SELECT first_row FROM flaskchat_runs WHERE id = ?), 0)
AND worker_id IN (?, (SELECT worker_id FROM flaskchat_runs WHERE id = ?)) ORDER BY id
"""


class Journal(Rows):
    """For the tick, one connection, used by one caller at a time (the pump)."""

    tells = False

    def __init__(self, database: SQLite) -> None:
        super().__init__(database)
        self._file = database
        self.on_news: Callable[[], None] = lambda: None
        self.behind = False
        self._connection: Connection | None = None
        self._raw: Any = None
        self._cursor = 0
        """Id of the last row that was looked at; -1: not following."""
        self._following = False
        self._seen_version = -1
        self._worker_id = ""
        self._bell: Bell | None = None
        self._deaf = False
        """Whether there was nothing to listen with, as where the user's other processes have taken all of it."""
        if sys.platform == "linux":
            try:
                self._bell = Bell(f"{os.path.realpath(database.path)}-bell")
            except OSError as error:
                logger.warning("this process cannot tell others of new events, who look for them instead: %s", error)

    def listen(self, wanted: bool) -> int | None:
        if self._bell is None:
            return None
        try:
            found = self._bell.listen(wanted)
        except OSError as error:
            if not self._deaf:
                logger.warning("this process is not told of new events, and looks for them instead: %s", error)
            self._deaf = True
            return None
        if self._deaf:
            logger.warning("this process is told of new events again")
            self._deaf = False
        return found

    def heard(self) -> None:
        if self._bell is not None:
            self._bell.heard()

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.ring()

    def announce(self, entry: Control) -> None:
        super().announce(entry)
        self._file.offload(self._ring)  # which may wait for the disk

    def end(self, orphans: Sequence[Orphan]) -> list[str]:
        try:
            return super().end(orphans)
        finally:
            self._file.offload(self._ring)

    def _open(self) -> Any:
        if self._raw is None:
            self._connection = self._database.connect(write=True)
            self._raw = self._connection.connection.driver_connection
            assert self._raw is not None
            self._raw.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            # In kB. Only the end of the journal is asked for: a larger one fills with pages that nobody reads again.
            self._raw.execute("PRAGMA cache_size = -128")
        return self._raw

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (self._file.module.Error, exc.DBAPIError) as error:
            original = getattr(error, "orig", error)
            if "locked" not in str(original) and "busy" not in str(original):
                self._disconnect()  # a connection that failed is not trusted again
            elif self._raw is not None and self._raw.in_transaction:
                self._raw.rollback()
            raise LogUnavailable(str(original)) from error

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        return self._guard(lambda: self._turn(lease, entries, endings))

    def _turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        raw = self._open()
        if entries:
            assert lease is not None
            self._worker_id = lease.worker_id
            row = (lease.worker_id, VERSION, encode_row(entries), lease.worker_id, lease.epoch)
            if not endings:
                if raw.execute(_APPEND, row).rowcount != 1:
                    raise Fenced(lease.worker_id)
            else:
                raw.execute("BEGIN IMMEDIATE")
                try:
                    if raw.execute(_APPEND, row).rowcount != 1:
                        raise Fenced(lease.worker_id)
                    for ending in endings:
                        finish.write_once(raw.execute, lease, ending)
                    raw.execute("COMMIT")
                except BaseException:
                    if raw.in_transaction:
                        raw.execute("ROLLBACK")
                    raise
            self._ring()
            self.heard()  # that was ourselves; what others have appended before is read now
        if not self._following:
            return []
        try:
            return self._news(raw)
        except self._file.module.Error:
            if not entries:
                raise
            return []  # the append stands, so this must not fail; the next turn looks again

    def _news(self, raw: Any) -> list[Entry]:
        (version,) = raw.execute("PRAGMA data_version").fetchone()
        if version == self._seen_version:
            return []
        rows = raw.execute(_NEWER, (self._worker_id, self._cursor, NEWS_ROWS)).fetchall()
        self.behind = len(rows) == NEWS_ROWS
        self._seen_version = -1 if self.behind else version
        return in_time(self._entries(rows), time.time)

    def _entries(self, rows: list[tuple[int, int, bytes | None]]) -> list[Entry]:
        found: list[Entry] = []
        for row_id, version, data in rows:
            self._cursor = row_id
            if data is not None:
                found.extend(decode_row(version, data))
        return found

    def follow(self) -> list[Entry]:
        return self._guard(self._follow)

    def _follow(self) -> list[Entry]:
        raw = self._open()
        self._cursor, self._seen_version, self._following = 0, -1, True
        return self._news(raw)

    def unfollow(self) -> None:
        self._following = self.behind = False

    def read(self, run_id: str) -> list[Append]:
        # The rows are looked through as they come: together they may be many times what this run has got.
        return self._guard(lambda: pick(run_id, self._open().execute(_RUN, (run_id, CONTROL, run_id))))

    def close(self) -> None:
        self._disconnect()
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._raw = None
        self._seen_version = -1

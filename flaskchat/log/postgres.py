"""The log in PostgreSQL: the same rows as in SQLite, one per tick and worker, followed by any number of hosts.

Deliberate choices; do not change one without reading why:

 1. The tick speaks to the driver, over a connection of its own in autocommit. It is one statement, and one round trip
    together with its NOTIFY.
 2. The append locks the lease's row FOR KEY SHARE while it looks at it. A takeover deletes that row: so either it
    waits and finds what was appended, or the append finds no lease.
 3. NOTIFY only says that there is something; it carries nothing, and who missed one looks again within SAFETY. It is
    not in the append's transaction: a transaction that notifies takes a lock of the whole server's for its commit, and
    its sync. One that only notifies writes nothing that had to be synced.
 4. Ids become visible out of order: a number is taken when a row is inserted, and the row is seen when its transaction
    is committed. So whoever follows keeps the numbers that it has not seen below the newest one (holes), and asks for
    them with the next look, for as long as a transaction may take (HOLES_FOR). A rolled back one leaves its hole for
    good; that is what the time is for. Of one worker's rows none comes late: it appends the next after the last is
    committed. So the events of a run keep their order, and holes only matter between runs.
 5. Where else an id is compared (log/rows.py): a run's `first_row` is the newest that was seen when it began, and its
    own rows get numbers after that, larger than all that were taken before. Pruning removes what is older than a mark
    set KEEP seconds before, by when a row that comes late has come. `past` and `forget` ask for all rows after the
    first of the run, once nothing is added any more.
 6. A commit that was reported as failed may stand. The tick appends again then, and readers pass over what they have;
    an ending that stands already is taken for done.
 7. A run's past is read in pages, each a statement with a patience of its own: its worker's rows of some minutes may be
    a hundred megabytes, and one answer of that size would be given up, again and again. So is what a worker that is
    gone has left (`past`), or its replies would never end.
 8. A connection that failed is closed and opened anew, at most one attempt a tick: the ticks of a worker whose log is
    away come STOP_POLL apart, and nothing of what was gathered is lost.
 9. Behind a new connection may be another server, a replica that took over before it had the last rows: it counts on
    from its own newest, and what follows would have numbers that were looked at before. So a new connection begins
    LOOK_BACK rows earlier, and never above the newest that is there; what is known already is passed over.
10. Nor has that server the last of our own rows then, and what followed would come after a gap, at which readers leave
    and whoever takes over stops. So behind a new connection our last row is looked for: rows are lost from the end, so
    where it is there all are. Where it is not, all that our live runs have got is appended again.
11. A run is finished in the store beside the tick, as for a log that is elsewhere (finisher.py), and before its end is
    appended: a reply of megabytes, whose every part goes into the search's index, may take seconds, for which all
    others would have to wait. What falls between the two is found in the store (readers.py: `look_after`).
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg
from sqlalchemy.engine import Connection

from .. import tasks
from ..store.base import Ending, Fenced, Lease
from ..store.engine import said
from ..store.postgres import NOW, Postgres, PostgreSQL
from .base import Append, Entry, LogUnavailable
from .endings import Endings
from .rows import CONTROL, NEWS_ROWS, PAGE, VERSION, Rows, decode_row, encode_row, in_time, pick
from .tail import Memory

logger = logging.getLogger("flaskchat")

T = TypeVar("T")

CHANNEL = "flaskchat"
PATIENCE = 1.0
"""Seconds that the server has for a statement of the tick's."""
SAFETY = 1.0
"""Seconds after which a tick looks for news that nobody told of."""
HOLES_FOR = 15.0
HOLES = 256
"""Most that are kept of one gap, the newest: the others were pruned, or are of transactions long over."""
LOOK_BACK = 2000
"""Rows: some seconds of what a few machines write."""
AGAIN = 0.5
"""Seconds between attempts to listen, and as much again by chance."""

_APPEND = """
INSERT INTO flaskchat_journal (worker_id, version, data)
SELECT %s::text, %s::int, %s::bytea FROM flaskchat_workers WHERE id = %s AND epoch = %s FOR KEY SHARE
RETURNING id
"""
_THERE = b"SELECT 1 FROM flaskchat_journal WHERE id = %s AND worker_id = %s"
_NEWEST = b"SELECT coalesce(max(id), 0) FROM flaskchat_journal"
_ROWS = """
SELECT id, version, CASE worker_id WHEN %s THEN NULL ELSE data END FROM flaskchat_journal WHERE {} ORDER BY id
LIMIT %s
"""  # our own rows are not brought back
_NEWER = _ROWS.format("id > %s").encode()
_NEWER_AND_HOLES = _ROWS.format("id >= %s AND (id > %s OR id = ANY(%s::bigint[]))").encode()  # from the first on
_RUN = """
SELECT id, version, data FROM flaskchat_journal
WHERE worker_id IN (%s, (SELECT worker_id FROM flaskchat_runs WHERE id = %s))
AND id > greatest(%s, (SELECT first_row FROM flaskchat_runs WHERE id = %s)) ORDER BY id LIMIT %s
"""
_OF_WORKERS = b"""
SELECT id, version, data FROM flaskchat_journal WHERE worker_id = ANY(%s) AND id > %s ORDER BY id LIMIT %s
"""
_NOTIFY = f"NOTIFY {CHANNEL}"


class PostgresLog(Rows):
    """For the tick, one connection, used by one caller at a time (the pump); for the news another one."""

    apart = True

    def __init__(self, database: PostgreSQL, memory: Memory) -> None:
        """:param memory: the live runs of this worker."""
        super().__init__(database)
        self._memory = memory
        self.on_news: Callable[[], None] = lambda: None
        self.tells = self.behind = False
        self._server = database
        self._raw: Postgres | None = None
        self._cursor = 0
        """The largest id that was looked at."""
        self._holes: dict[int, float] = {}
        """Ids below it that were not seen, and until when (monotonic) they are looked for."""
        self._following = False
        self._told = True
        """Whether somebody has said that there is something new."""
        self._looked_at = 0.0
        self._own_pid = 0
        self._worker_id = ""
        self._last_row = 0
        """The id of the last one that was appended here."""
        self._mended = False
        """Whether it was looked for over this connection."""
        self._endings = Endings(database)
        self._stopped = False

    # -- news --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        tasks.spawn(self._listen, name="flaskchat-listen")

    def stop(self) -> None:
        self._stopped = True

    def _listen(self) -> None:
        complained = False
        with contextlib.suppress(Exception):  # whoever needs them opens them, and says what is wrong
            self._server.offload(self._server.warm)
            self.calls.call(self._open)
        while not self._stopped:
            try:
                connection = self._server.offload(self._open_listener)
            except psycopg.Error as error:
                if not complained:
                    logger.warning("nobody tells of news in the log, which is asked for them instead: %s", said(error))
                complained = True
                tasks.sleep(AGAIN * random.uniform(1, 2))
                continue
            except Exception:
                if not self._stopped:
                    logger.exception("the listener for news has ended")
                return
            complained = False
            try:
                self._hear(connection)
            except (psycopg.Error, OSError) as error:
                if not self._stopped:
                    logger.info("the connection that tells of news has gone: %s", said(error))
            finally:
                self.tells = False
                connection.close()
                self._ring()
            tasks.sleep(AGAIN * random.uniform(0, 1))

    def _open_listener(self) -> Postgres:
        connection = self._server.open(patience=PATIENCE)
        try:
            connection.execute(f"LISTEN {CHANNEL}".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def _hear(self, connection: Postgres) -> None:
        self.tells = True
        self._ring()  # for what came before
        while not self._stopped:
            if not tasks.wait_readable(connection.pgconn.socket, 1.0):
                continue
            connection.pgconn.consume_input()
            others = False
            while (notify := connection.pgconn.notifies()) is not None:
                others = others or notify.be_pid != self._own_pid
            if others:
                self._ring()

    def _ring(self) -> None:
        self._told = True
        self.on_news()

    def _added(self, c: Connection) -> None:
        c.exec_driver_sql(_NOTIFY)

    def _page(self, c: Connection, worker_ids: list[str], after: int) -> Sequence[Any]:
        cursor = self._server.raw(c).cursor(binary=True)  # as text, bytes are twice as long
        return cursor.execute(_OF_WORKERS, (worker_ids, after, PAGE)).fetchall()

    # -- the tick ----------------------------------------------------------------------------------------------------

    def _open(self) -> Postgres:
        if self._raw is None:
            self._raw = self._server.open(patience=PATIENCE)
            self._raw.prepare_threshold = 0
            self._own_pid = self._raw.info.backend_pid
            self._mended = False
            if self._cursor:
                (newest,) = self._raw.execute(_NEWEST).fetchone() or (0,)
                self._cursor = max(0, min(self._cursor, newest) - LOOK_BACK)
        return self._raw

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except psycopg.Error as error:
            self._disconnect()
            raise LogUnavailable(said(error)) from error

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        assert not endings
        return self._guard(lambda: self._turn(lease, entries))

    def finish(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        self._endings.write(lease, endings, patient=patient)

    def _turn(self, lease: Lease | None, entries: list[Append]) -> list[Entry]:
        raw = self._open()
        if lease is not None and not self._mended:
            self._mend(raw, lease)
        if entries:
            assert lease is not None
            self._append(raw, lease, entries)
        if not self._following:
            return []
        if lease is not None and self.tells and not self._told and time.monotonic() - self._looked_at < SAFETY:
            return []
        try:
            return self._news(raw)
        except psycopg.Error:
            self._disconnect()
            if not entries:
                raise
            return []  # the append stands, so this must not fail; the next turn looks again

    def _mend(self, raw: Postgres, lease: Lease) -> None:
        """See 10."""
        mine = [run for run in self._memory.own() if run.last_seq]
        if mine and raw.execute(_THERE, (self._last_row, self._worker_id)).fetchone() is None:
            logger.warning("the database has lost rows of the log; the events of %d runs are written again", len(mine))
            self._last_row = last = 0  # until all are there: the next connection must not take some of them for all
            for run in mine:
                last = self._insert_row(raw, lease, [Append(run.run_id, 1, run.frames)])
            self._last_row = last
            raw.execute(_NOTIFY)
        self._mended = True

    def _insert_row(
        self, raw: Postgres, lease: Lease, entries: list[Append], sync: Callable[[], None] = lambda: None
    ) -> int:
        """:param sync: called between the statement and the look at its answer.
        :returns: the row's id.
        :raises Fenced:
        """
        self._worker_id = lease.worker_id
        row = (lease.worker_id, VERSION, encode_row(entries), lease.worker_id, lease.epoch)
        cursor = raw.execute(_APPEND, row)
        sync()
        found = cursor.fetchone()
        if found is None:
            raise Fenced(lease.worker_id)
        return int(found[0])

    def _append(self, raw: Postgres, lease: Lease, entries: list[Append]) -> None:
        lost: psycopg.Error | None = None
        try:
            with raw.pipeline() as pipeline:
                try:
                    self._last_row = self._insert_row(raw, lease, entries, pipeline.sync)  # which ends the transaction
                    raw.execute(_NOTIFY)
                except psycopg.Error as error:
                    if not raw.closed:
                        raise
                    lost = error  # the pipeline would warn of it in words that say nothing; whoever asked is told
        except psycopg.Error as error:
            raise lost or error from None
        if lost is not None:
            raise lost

    def _news(self, raw: Postgres) -> list[Entry]:
        self._told = False  # first: what is told from here on may be missed by the query
        now = time.monotonic()
        self._holes = {hole: until for hole, until in self._holes.items() if until > now}
        cursor = raw.cursor(binary=True)
        try:
            if self._holes:
                holes = list(self._holes)
                asked = (self._worker_id, min(holes), self._cursor, holes, NEWS_ROWS)
                rows = cursor.execute(_NEWER_AND_HOLES, asked).fetchall()
            else:
                rows = cursor.execute(_NEWER, (self._worker_id, self._cursor, NEWS_ROWS)).fetchall()
        except BaseException:
            self._told = True
            raise
        self.behind = len(rows) == NEWS_ROWS
        if self.behind:  # never the other way: somebody may have told of more during the query
            self._told = True
        self._looked_at = now
        return in_time(self._entries(rows), lambda: float((raw.execute(NOW).fetchone() or (0,))[0]))

    def _entries(self, rows: list[Any]) -> list[Entry]:
        found: list[Entry] = []
        until = time.monotonic() + HOLES_FOR
        for row_id, version, data in rows:
            if row_id > self._cursor:
                self._holes.update(dict.fromkeys(range(max(self._cursor + 1, row_id - HOLES), row_id), until))
                self._cursor = row_id
            else:
                self._holes.pop(row_id, None)
            if data is not None:
                found.extend(decode_row(version, data))
        return found

    def follow(self) -> list[Entry]:
        return self._guard(self._follow)

    def _follow(self) -> list[Entry]:
        raw = self._open()
        self._cursor, self._holes, self._following = 0, {}, True
        return self._news(raw)

    def read(self, run_id: str) -> list[Append]:
        return self._guard(lambda: self._read(run_id))

    def _read(self, run_id: str) -> list[Append]:
        found: list[Append] = []
        cursor, after, full = self._open().cursor(binary=True), 0, True
        while full:
            rows = cursor.execute(_RUN, (CONTROL, run_id, after, run_id, PAGE)).fetchall()
            found.extend(pick(run_id, [(version, data) for _, version, data in rows]))
            after, full = rows[-1][0] if rows else after, len(rows) == PAGE
        return found

    def close(self) -> None:
        self._disconnect()
        self._endings.close()

    def _disconnect(self) -> None:
        raw, self._raw = self._raw, None
        self._told = True
        if raw is not None:
            raw.close()

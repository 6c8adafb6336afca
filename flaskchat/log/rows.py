"""The journal's rows, and what is done with them beside the tick: control, takeover, pruning, deleting.

The same for every SQL database. Goes through the store's connections, each call as a transaction or a few.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .. import tasks
from ..store import finish
from ..store.base import Ending, Fenced, Lease
from ..store.engine import Ask, Database
from ..store.schema import journal, runs
from .base import Append, Control, Entry, Leave, Orphan, clock

logger = logging.getLogger("flaskchat")

VERSION = 1
"""Of the rows' format. Rows of a version we do not know are passed over, so that two versions can share a log for the
time of a rolling update. Whoever passes them over shows those replies when they are over, hears no Stop that is said in
them, and has no text for the replies of a worker that was killed. So another format is read by one release before the
next one writes it; another kind of event needs no other format.
"""
CONTROL = "control"
"""Rows under this name are for everybody, also for the worker that wrote them."""
KEEP = 30.0
"""Seconds that a row stays at least, for followers that were held up."""
PRUNE_ROWS = 2000
"""Rows that are removed in one transaction, at most."""
PRUNE_BYTES = 4 << 20
"""Of their data likewise: SQLite overwrites what is deleted, so that as much goes into its write-ahead log."""
NEWS_ROWS = 100
"""Rows of others that are taken in at once: a journal holds minutes, and all of it would stay in the process's memory.
"""
PAGE = 500
"""Rows of a run's past that are asked for at once: some megabytes of a worker with a few hundred replies."""
FORGET_ROWS = 500
"""Rows that are looked through in one transaction."""

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], list[Entry]] = msgspec.msgpack.Decoder(list[Entry]).decode


def encode_row(entries: Sequence[Entry]) -> bytes:
    return _encode(entries)


def decode_row(version: int, data: bytes) -> list[Entry]:
    """What a row holds. Never raises: whoever reads has just appended, and must not be told that it failed."""
    if version != VERSION:
        return []
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):  # the second where a text of it is damaged
        logger.exception("a row of the log is damaged; what it held is missing")
        return []


def pick(run_id: str, rows: Iterable[tuple[int, bytes]]) -> list[Append]:
    """One run's appends out of rows (version, data) of the journal, in their order."""
    found: list[Append] = []
    for version, data in rows:
        found.extend(entry for entry in decode_row(version, data) if type(entry) is Append and entry.run_id == run_id)
    return found


def in_time(entries: list[Entry], now: Callable[[], float]) -> list[Entry]:
    """Give each Leave of another host, or of before a boot, its time by this host's clock. A row may be read long after
    it was written, by whoever begins to follow, or once more, over another connection: taken for news, it would end
    streams that were opened since. A Stop needs no time, as it names its run.

    :param now: by the database's clock.
    """
    if not any(type(entry) is Leave for entry in entries):
        return entries
    ahead = -now() + time.monotonic()  # in this order: rather a moment late than one too early for a stream
    return [_moved(entry, ahead) if type(entry) is Leave else entry for entry in entries]


def _moved(leave: Leave, ahead: float) -> Leave:
    if leave.clock in ("", clock()) or not leave.at:
        return leave
    return msgspec.structs.replace(leave, asked_at=min(leave.at + ahead, time.monotonic()), clock=clock())


class Rows:
    """Beside the tick."""

    apart = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self.calls: tasks.Caller = tasks.Offloader(1)
        self._marks: deque[tuple[float, int]] = deque()
        """The newest row at some moments (monotonic), oldest first."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def listen(self, wanted: bool) -> int | None:
        return None

    def heard(self) -> None:
        pass

    def without(self, entries: list[Append]) -> Collection[str]:
        return ()  # where these cannot be written, their ends cannot be read in the store either

    def finish(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        raise NotImplementedError  # a turn does it

    def doubt(self) -> None:
        """Rows are where the store is."""

    def unfollow(self) -> None:
        """What comes meanwhile is in the rows."""

    def ready(self) -> None:
        """As the store is, which is asked by itself."""

    def announce(self, entry: Control) -> None:
        def tell(c: Connection) -> None:
            told = entry
            if type(told) is Leave:
                age = time.monotonic() - told.asked_at
                told = msgspec.structs.replace(told, at=self._database.now(c) - age)
            self._insert(c, [told])

        self._database.write(tell)

    def _insert(self, c: Connection, entries: Sequence[Entry]) -> None:
        c.execute(sa.insert(journal).values(worker_id=CONTROL, version=VERSION, data=encode_row(entries)))
        self._added(c)

    def _added(self, c: Connection) -> None:
        """A row was appended in this transaction: tell the others, once it is committed."""

    def past(self, run_ids: Collection[str]) -> dict[str, list[bytes]]:
        # Once for all, and not within the transactions that end them: a row holds a tick of all runs of a worker. In
        # pages, each a read of its own: together they may be too much for the patience that one has. Nothing is added
        # to these runs any more, so that one snapshot would show no more of them than several do.
        began = self._database.read(lambda c: _began(c, run_ids))
        past: dict[str, list[bytes]] = {row.id: [] for row in began}
        worker_ids = list({row.worker_id for row in began})
        at: int | None = min((row.first_row for row in began), default=None)
        while at is not None:
            at = self._database.read(partial(self._take_in, past, worker_ids, at))
        return past

    def _take_in(self, past: dict[str, list[bytes]], worker_ids: list[str], after: int, c: Connection) -> int | None:
        """Add what the next page has of these runs; it may be asked for again after a failure.

        :returns: after which row to go on; None when that was the last.
        """
        rows = self._page(c, worker_ids, after)
        for _, version, data in rows:
            for entry in decode_row(version, data):
                if type(entry) is Append and entry.run_id in past:
                    frames = past[entry.run_id]
                    skip = len(frames) + 1 - entry.seq
                    if skip >= 0:  # else a damaged row lies between: what comes after it has no place any more
                        frames.extend(entry.frames[skip:])
        return rows[-1][0] if len(rows) == PAGE else None

    def _page(self, c: Connection, worker_ids: list[str], after: int) -> Sequence[Any]:
        """:returns: id, version and data of the next PAGE rows of these workers."""
        select = sa.select(journal.c.id, journal.c.version, journal.c.data).where(journal.c.id > after)
        return c.execute(select.where(journal.c.worker_id.in_(worker_ids)).order_by(journal.c.id).limit(PAGE)).all()

    def end(self, orphans: Sequence[Orphan]) -> list[str]:
        def end(c: Connection) -> list[str]:
            ended = finish_orphans(self._database.executor(c), orphans)
            lasts = [orphan.last for orphan in orphans if orphan.ending.run_id in ended and orphan.last.frames]
            if lasts:
                self._insert(c, lasts)
            return ended

        return self._database.write(end)

    def empty(self) -> bool:
        return not self._database.read(lambda c: c.execute(sa.select(sa.select(journal.c.id).exists())).scalar())

    def prune(self) -> None:
        """Rows go when KEEP seconds have passed and no running run began before them."""
        now = time.monotonic()
        newest = self._database.read(lambda c: c.execute(sa.select(sa.func.max(journal.c.id))).scalar())
        if newest is None:
            return
        self._marks.append((now, newest))
        mark = None
        while self._marks and now - self._marks[0][0] > KEEP:
            mark = self._marks.popleft()[1]
        if mark is not None:
            while self._database.write(partial(_delete, mark=mark)):
                self._database.checkpoint()

    def forget(self, run_ids: Collection[str], first_row: int) -> None:
        names = {run_id.encode(): run_id for run_id in run_ids}
        at: int | None = first_row
        while at is not None and names:
            at = self._database.write(partial(_forget, names=names, after=at))


def finish_orphans(ask: Ask, orphans: Sequence[Orphan]) -> list[str]:
    """:param ask: the driver's connection, within a transaction.
    :returns: which were still to be ended.
    """
    ended = []
    # In one order for all workers, so that none waits for another that waits for it.
    for lease, ending, _ in sorted(orphans, key=lambda orphan: orphan.ending.conversation_id):
        with contextlib.suppress(Fenced):  # somebody else was first, and has written the same a moment ago
            if finish.write(ask, lease, ending):  # else it is deleted, and nothing of it comes back into the log
                ended.append(ending.run_id)
    return ended


def _began(c: Connection, run_ids: Collection[str]) -> Sequence[Any]:
    return c.execute(sa.select(runs.c.id, runs.c.worker_id, runs.c.first_row).where(runs.c.id.in_(run_ids))).all()


def _delete(c: Connection, mark: int) -> bool:
    """:returns: whether there is more of it."""
    first = c.execute(sa.select(sa.func.min(runs.c.first_row)).where(runs.c.state == "running")).scalar()
    until = mark if first is None else min(mark, first)
    size = sa.func.length(journal.c.data)
    old = sa.select(journal.c.id, size).where(journal.c.id <= until).order_by(journal.c.id).limit(PRUNE_ROWS)
    found = c.execute(old).all()
    last, taken = 0, 0
    for row_id, its_size in found:
        last, taken = row_id, taken + its_size
        if taken >= PRUNE_BYTES:
            break
    c.execute(sa.delete(journal).where(journal.c.id <= last))
    return bool(found) and last != found[-1][0]


def _forget(c: Connection, names: dict[bytes, str], after: int) -> int | None:
    """:returns: after which row to go on; None when that was the last."""
    select = sa.select(journal.c.id, journal.c.version, journal.c.data).order_by(journal.c.id)
    rows = c.execute(select.where(journal.c.id > after).limit(FORGET_ROWS)).all()
    ids = [row.id for row in rows if any(name in row.data for name in names)]
    # Locked and looked at anew: another deletion may be taking its runs out of the same row, and they would come back.
    for row in c.execute(select.where(journal.c.id.in_(ids)).with_for_update()).all() if ids else ():
        found = {run_id for name, run_id in names.items() if name in row.data}
        if found and row.version == VERSION:
            entries = decode_row(row.version, row.data)
            kept = [entry for entry in entries if type(entry) is not Append or entry.run_id not in found]
            c.execute(sa.update(journal).where(journal.c.id == row.id).values(data=encode_row(kept)))
    return rows[-1].id if len(rows) == FORGET_ROWS else None

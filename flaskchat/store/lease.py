"""A worker's lease: the row in `flaskchat_workers` under whose name it appends.

It is written down before the first run and taken back when the worker has none, so that an idle worker leaves nothing
behind that others would have to watch.

Deliberate choices; do not change one without reading why:

 1. It is written down in a transaction of its own, before that of the run which needs it. Where several transactions
    write at once, a second run's would not see what the first has not committed yet, and take the lease for lost.
 2. Whoever begins a run locks the row against its end (FOR KEY SHARE) until the run is committed; whoever takes over
    deletes it, and so waits, and finds that run. SQLite, with its one writer, needs no lock and ignores the words.
 3. Taking it back locks the row first and looks for runs with the next statement: one statement would look at what was
    there before it waited for a run that was just being begun.
 4. Taking it back may be rolled back, when we think already that it is gone. So whoever then begins a run says again
    that it is there: it is, by its own lock, also where that transaction fails later. Else nobody would count up for
    the run.
 5. So writing it down may find it there, also where the answer to an earlier writing was lost. Nobody has counted up
    meanwhile, and others are about to take it for gone: it counts then, or they would take the run that follows.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import FlaskChatError
from ..models import new_id
from .base import Fenced, Lease
from .schema import runs, workers

_ROW = sa.select(workers.c.id).where(workers.c.id == sa.bindparam("worker"), workers.c.epoch == sa.bindparam("term"))
_HELD = _ROW.with_for_update(read=True, key_share=True)
_MINE = _ROW.with_for_update()
_REGISTER = sa.text(
    "INSERT INTO flaskchat_workers (id, epoch, beats, host, pid) VALUES (:id, :epoch, :beats, :host, :pid) "
    "ON CONFLICT (id) DO UPDATE SET beats = excluded.beats"
)


class Unregistered(FlaskChatError):
    """The lease is not written down: register it and begin again."""


class Holding:
    def __init__(
        self, mark: Callable[[str], Callable[[], object]] = lambda worker_id: lambda: None, host: str | None = None
    ) -> None:
        """:param mark: lets others on the host see that whoever has the lease is alive, until what it returns is called
            or the process is gone.
        :param host: where that can be seen.
        """
        self._mark = mark
        self._host = host or socket.gethostname()
        self.lease = Lease(new_id("w"), 1)
        self._unmark = mark(self.lease.worker_id)
        self._registered: Lease | None = None
        """What is written down, as far as we know. Compared with `lease`, which others may renew meanwhile."""
        self._beats = itertools.count(1)
        """Never the same twice, though the row may be written down anew: who looks must not see it stand still."""

    @property
    def registered(self) -> bool:
        """Whether the row is there as far as we know; if it is not then, somebody has taken over."""
        return self._registered == self.lease

    def register(self, c: Connection) -> Lease:
        """Write the lease down. Nothing may be begun under it before this is committed, and `confirm` called.

        :returns: what to confirm.
        """
        lease = self.lease
        values = {"beats": next(self._beats), "host": self._host[:255], "pid": os.getpid()}
        c.execute(_REGISTER, {"id": lease.worker_id, "epoch": lease.epoch, **values})
        return lease

    def confirm(self, lease: Lease) -> None:
        self._registered = lease

    def ensure(self, c: Connection) -> Lease:
        """The lease, which cannot be taken over before the end of this transaction.

        :raises Unregistered: it is not written down, or was taken back meanwhile.
        :raises Fenced: somebody has taken it over.
        """
        lease = self.lease
        if self._registered != lease:
            raise Unregistered
        if c.execute(_HELD, {"worker": lease.worker_id, "term": lease.epoch}).scalar() is None:
            if self._registered != lease:
                raise Unregistered
            raise Fenced(lease.worker_id)
        self._registered = lease  # see 4.
        return lease

    def beat(self, c: Connection) -> bool:
        """Count up.

        :returns: whether the lease is still held.
        """
        lease = self.lease
        if self._registered != lease:
            return True
        mine = sa.and_(workers.c.id == lease.worker_id, workers.c.epoch == lease.epoch)
        return c.execute(sa.update(workers).where(mine).values(beats=next(self._beats))).rowcount == 1

    def release(self, c: Connection) -> None:
        """Take the row back, if no run is under it."""
        lease = self.lease
        if self._registered != lease:
            return
        c.execute(_MINE, {"worker": lease.worker_id, "term": lease.epoch})
        mine = sa.and_(workers.c.id == lease.worker_id, workers.c.epoch == lease.epoch)
        running = sa.exists().where(runs.c.state == "running", runs.c.worker_id == lease.worker_id)
        if c.execute(sa.delete(workers).where(mine, ~running)).rowcount:
            self._registered = None

    def renew(self, lost: Lease) -> bool:
        """Take a new lease in place of `lost`.

        :returns: False when that has been done before.
        """
        if self.lease != lost:
            return False
        unmark = self._unmark
        lease = Lease(new_id("w"), lost.epoch + 1)
        self._unmark = self._mark(lease.worker_id)  # first: nobody may see the new one without it
        self.lease = lease
        unmark()
        return True

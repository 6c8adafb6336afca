"""A worker's lease: the row in `flaskchat_workers` under whose name it appends.

It is written down with the first run and taken back when the worker has none, so that an idle worker leaves nothing
behind that others would have to watch. Every call but `renew` is made inside a writing transaction of this worker's
one writing connection, so they never overlap.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..models import new_id
from .base import Fenced, Lease
from .schema import runs, workers

_HELD = sa.select(workers.c.id).where(workers.c.id == sa.bindparam("worker"), workers.c.epoch == sa.bindparam("term"))


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
        self._registered = False
        self._beats = 0
        """Never the same twice, though the row may be written down anew: who looks must not see it stand still."""

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(workers.c.id == self.lease.worker_id, workers.c.epoch == self.lease.epoch)

    @contextlib.contextmanager
    def ensure(self, c: Connection) -> Iterator[Lease]:
        """The lease, written down, for a block whose failure takes the row back with all else that it wrote.

        :raises Fenced: somebody has taken it over.
        """
        before = self._registered
        try:
            if c.execute(_HELD, {"worker": self.lease.worker_id, "term": self.lease.epoch}).scalar() is None:
                if before:
                    raise Fenced(self.lease.worker_id)
                self._beats += 1
                c.execute(
                    sa.insert(workers).values(
                        id=self.lease.worker_id, epoch=self.lease.epoch, beats=self._beats,
                        host=self._host, pid=os.getpid(),
                    )
                )  # fmt: skip
            self._registered = True
            yield self.lease
        except BaseException:
            self._registered = before
            raise

    def beat(self, c: Connection) -> bool:
        """Count up.

        :returns: whether the lease is still held.
        """
        if not self._registered:
            return True
        self._beats += 1
        return c.execute(sa.update(workers).where(self._mine()).values(beats=self._beats)).rowcount == 1

    def release(self, c: Connection) -> None:
        """Take the row back, if no run is under it."""
        if self._registered:
            running = sa.exists().where(runs.c.state == "running", runs.c.worker_id == self.lease.worker_id)
            if c.execute(sa.delete(workers).where(self._mine(), ~running)).rowcount:
                self._registered = False

    @property
    def registered(self) -> bool:
        return self._registered

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
        self._registered = False
        return True

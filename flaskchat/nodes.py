"""Places that the nodes share: how many streams an owner or an address has open, over all machines on one PostgreSQL.

On one host the kernel counts (places.py). Several hosts count in two small tables: a row for each process that holds
something, and one for each key of which it holds some, with how many.

Deliberate choices; do not change one without reading why:

 1. A process writes how many it has, never one more or one less. Written twice, late, or anew after the tables were
    lost, it is the same.
 2. Looking and writing are one transaction in which nobody else looks at the key (`Database.alone`), so that two nodes
    never both take the last place.
 3. A process shows by a counter that it is alive, as leases do (sweep.py): no clock is compared with another. One that
    stands still for GONE_AFTER rounds is removed, with all that it held. Was it only held up, it writes itself anew.
 4. Nobody waits to give a place back: a task writes, all that came meanwhile at once.
 5. A place of the host is taken first. So a database that cannot be asked, or is asked in vain, lets each host's own
    number in and refuses no reader; what was let in is written down as soon as that can be done.
 6. The tables need not outlive the server's crash: they are not synced (UNLOGGED), and choice 1 fills them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import random
import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import tasks
from .errors import Unavailable
from .models import new_id
from .places import Place, Places
from .store.engine import Database
from .store.schema import holders, places

logger = logging.getLogger("flaskchat")

ROUND = 2.0
"""Seconds between beats."""
GONE_AFTER = 4
"""Rounds in which another's counter stood still."""
TOGETHER = 0.02
"""Seconds in which what is given back is collected."""

_BEAT = sa.text(
    "INSERT INTO flaskchat_holders (id, host, beats) VALUES (:id, :host, :beats) "
    "ON CONFLICT (id) DO UPDATE SET beats = excluded.beats RETURNING (xmax = 0) AS made"
)
_HERE = sa.text(
    "INSERT INTO flaskchat_holders (id, host, beats) VALUES (:id, :host, :beats) ON CONFLICT (id) DO NOTHING"
)
_WRITE = sa.text(
    "INSERT INTO flaskchat_places (key, holder, number) VALUES (:key, :holder, :number) "
    "ON CONFLICT (key, holder) DO UPDATE SET number = excluded.number"
)
_OTHERS = sa.select(sa.func.coalesce(sa.func.sum(places.c.number), 0)).where(
    places.c.key == sa.bindparam("name"), places.c.holder != sa.bindparam("me")
)


class SharedPlace:
    """One place that is held over all nodes. Giving it back again changes nothing."""

    __slots__ = ("_here", "_name", "_nodes")

    def __init__(self, nodes: Nodes, name: str, here: Place) -> None:
        self._nodes: Nodes | None = nodes
        self._name = name
        self._here = here

    def release(self) -> None:
        nodes, self._nodes = self._nodes, None
        if nodes is not None:
            self._here.release()
            nodes.less(self._name)


class Nodes:
    """One process's side of it. As `Places`, but `take` waits for the database."""

    def __init__(self, database: Database, here: Places, gone: Callable[[str, str], bool]) -> None:
        """:param here: the places of this host.
        :param gone: whether a holder's process, on this host, is certainly gone; must not wait.
        """
        self._database = database
        self._here = here
        self._gone = gone
        self.holder = new_id("h")
        self._lock = tasks.native_lock()
        self._held: dict[str, int] = {}
        """By key, as it is known to be or is to be written."""
        self._changed: set[str] = set()
        """Keys whose number in the database is another."""
        self._known = False
        """Whether our row is there, as far as we know."""
        self._beats = itertools.count(1)
        self._still: dict[str, tuple[int, int]] = {}
        """Of each other holder: its counter, and for how many rounds it has stood there."""
        self._bell = tasks.Event()
        self._closed = False
        self._task: tasks.Task | None = None

    def start(self) -> None:
        self._task = tasks.spawn(self._run, name="flaskchat-nodes")

    def close(self) -> None:
        """Give everything back."""
        self._closed = True
        self._bell.set()
        if self._task is not None:
            self._task.join(2.0)
        if self._known:
            with contextlib.suppress(Unavailable):
                self._database.write(lambda c: c.execute(sa.delete(holders).where(holders.c.id == self.holder)))

    def take(self, key: str, most: int) -> SharedPlace | None:
        """A place of the key's, if fewer than `most` are held over all nodes; None otherwise."""
        here = self._here.take(key, most)
        if here is None:
            return None
        name = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        counted: list[str] = []
        try:
            free = self._database.write(lambda c: self._count(c, name, most, counted))
        except Unavailable:
            free = True
            if not counted:
                self._more(name, 1)
            self._write_later(name)
        except BaseException:  # a request whose time was over; what it asked for has been done all the same
            here.release()
            if counted:
                self.less(name)
            raise
        if not free:
            here.release()
            return None
        return SharedPlace(self, name, here)

    def less(self, name: str) -> None:
        self._more(name, -1)
        self._write_later(name)

    def _more(self, name: str, number: int) -> int:
        with self._lock:
            number = self._held[name] = self._held.get(name, 0) + number
            if not number:
                del self._held[name]
        return number

    def _write_later(self, *names: str) -> None:
        with self._lock:
            self._changed.update(names)
        self._bell.set()

    def _count(self, c: Connection, name: str, most: int, counted: list[str]) -> bool:
        if counted:  # the transaction before was rolled back
            counted.clear()
            self._more(name, -1)
        self._database.alone(c, f"places {name}")
        if c.execute(_HERE, self._row()).rowcount:
            self._anew()
        others = c.execute(_OTHERS, {"name": name, "me": self.holder}).scalar_one()
        if others + self._held.get(name, 0) >= most:
            return False
        counted.append(name)
        c.execute(_WRITE, {"key": name, "holder": self.holder, "number": self._more(name, 1)})
        return True

    def _row(self) -> dict[str, object]:
        return {"id": self.holder, "host": self._here.host, "beats": next(self._beats)}

    def _anew(self) -> None:
        """Our row was not there, and so none of our numbers."""
        self._known = True
        with self._lock:
            held = list(self._held)
        if held:
            self._write_later(*held)

    # -- beside ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_round = time.monotonic() + ROUND
        while not self._closed:
            self._bell.wait(max(0.0, next_round - time.monotonic()))
            self._bell.clear()
            try:
                if time.monotonic() >= next_round:
                    next_round = time.monotonic() + ROUND * random.uniform(0.9, 1.0)
                    self.round()
                tasks.sleep(TOGETHER)
                self._write()
            except Unavailable:
                tasks.sleep(0.5)
            except Exception:
                logger.exception("counting streams over all nodes failed; it is tried again")
                tasks.sleep(1.0)

    def _write(self) -> None:
        with self._lock:
            names, self._changed = sorted(self._changed), set()  # in one order, so that nobody waits for each other
        if not names:
            return
        try:
            self._database.write(lambda c: self._write_all(c, names))
        except BaseException:
            self._write_later(*names)
            raise

    def _write_all(self, c: Connection, names: list[str]) -> None:
        if c.execute(_HERE, self._row()).rowcount:
            self._anew()
        for name in names:
            self._database.alone(c, f"places {name}")
            number = self._held.get(name, 0)  # now: nobody else counts it any more
            if number > 0:
                c.execute(_WRITE, {"key": name, "holder": self.holder, "number": number})
            else:
                c.execute(sa.delete(places).where(places.c.key == name, places.c.holder == self.holder))

    def round(self) -> None:
        """Show that we are alive where we hold something, and remove others that are not.

        :raises Unavailable:
        """
        if self._known or self._held or self._still:
            self._database.write(self._beat)

    def _beat(self, c: Connection) -> None:
        if not self._held and not self._changed:
            c.execute(sa.delete(holders).where(holders.c.id == self.holder))
            self._known = False
        elif c.execute(_BEAT, self._row()).scalar_one():
            self._anew()
        seen = {}
        for row in c.execute(sa.select(holders).where(holders.c.id != self.holder)).all():
            beats, rounds = self._still.get(row.id, (-1, 0))
            rounds = rounds + 1 if beats == row.beats else 0
            if rounds >= GONE_AFTER or self._gone(row.host, row.id):
                c.execute(sa.delete(holders).where(holders.c.id == row.id, holders.c.beats == row.beats))
            else:
                seen[row.id] = (row.beats, rounds)
        self._still = seen

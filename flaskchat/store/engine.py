"""The connection to the database: where a call may wait, and what becomes of a connection that failed.

The same for every kind of database; `store/kinds.py` says which there are.

Deliberate choices; do not change one without reading why:

 1. Every call runs in a native thread (`tasks.Offloader`). SQLite waits for locks and syncs files in C, which would
    hold the hub; a server's answer is waited for there as well, so that no part of the store needs a second way to
    ask, and a greenlet that is killed never leaves a connection behind with half an answer in it.
 2. A connection that failed is closed and never used again.
 3. A transaction that failed before its commit was asked for has changed nothing, so it is run once more where that
    may help: see `again`. What `function` does to anything but the database has to bear that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from .. import tasks
from ..errors import Unavailable

logger = logging.getLogger("flaskchat")

P = ParamSpec("P")
T = TypeVar("T")
Ask = Callable[[str, tuple[Any, ...]], Any]
"""Executes a statement with `?` for each value on the driver's connection; returns the driver's cursor."""

READERS = 3
ATTEMPTS = 3
"""Of one transaction."""
COMPLAIN_EVERY = 10.0
"""Seconds between lines in the log about calls that the database refuses."""


def said(error: object) -> str:
    """A driver's error as it may be logged, on one line. PostgreSQL adds the row that it refuses (its DETAIL), and that
    is what users and models wrote.
    """
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return " ".join(str(primary or error).split())


def _original(error: BaseException) -> BaseException:
    """The driver's error behind SQLAlchemy's; what was asked in the driver's own terms raises it as it is."""
    return getattr(error, "orig", None) or error


def unavailable() -> Unavailable:
    return Unavailable("The database cannot be used at the moment.", code="store_unavailable", retry_after=2)


class Database:
    """The engine, its writing connections and a few reading ones. One per worker, opened after the fork."""

    writers: int
    """Transactions that may write at once."""
    error: type[Exception]
    """What the driver raises."""
    name: str
    """As it may be logged: without a password."""
    version: str
    places: Path
    """Folder for the files by which the workers of this host count together; see places.py."""

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        """:param timeout: seconds a call waits for a lock before it is refused."""
        self.engine = engine
        self.timeout = timeout
        self._threads = tasks.Offloader(READERS + self.writers)
        self._write_slots = threading.BoundedSemaphore(self.writers)
        self._read_slots = threading.BoundedSemaphore(READERS)
        self._idle: dict[bool, list[Connection]] = {True: [], False: []}
        """By whether they write."""
        self._complained_at = -COMPLAIN_EVERY

    @property
    def kind(self) -> str:
        return self.engine.dialect.name

    # -- what differs ------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Product, version and place, for the log."""
        raise NotImplementedError

    def connect(self, *, write: bool) -> Connection:
        """A connection of the caller's own; waits in C when it opens."""
        raise NotImplementedError

    def executor(self, c: Connection) -> Ask:
        """For statements in the driver's own terms, within the transaction of `c`."""
        raise NotImplementedError

    def hurry(self, c: Connection, seconds: float) -> None:
        """Let what is asked over this connection be refused after so long, whatever it waits for."""
        raise NotImplementedError

    def look(self) -> None:
        """Whether it can be ours. Changes nothing.

        :raises ConfigurationError:
        """

    def at_start(self, fault: BaseException) -> Exception:
        """What a start makes of a driver's error: Unavailable where it may go by itself, else ConfigurationError."""
        raise NotImplementedError

    def alone(self, c: Connection, key: str) -> None:
        """Keep every other transaction that asks for the same key waiting until the end of this one."""

    def now(self, c: Connection) -> float:
        """Seconds since 1970, by a clock that all who use the database can read."""
        return time.time()

    def before_migration(self, c: Connection) -> None:
        """Keep other starts out of the transaction in which migrations run."""

    def alive(self, c: Connection) -> bool:
        """Whether a connection that nobody has used for a while may be tried at all; must not wait."""
        return True

    def again(self, fault: BaseException) -> bool:
        """Whether running the same transaction once more may help."""
        return False

    def damage(self, c: Connection) -> list[str]:
        """What is wrong with the database's own structure, in its words, as far as it can say; may take long."""
        return []

    def forget(self) -> None:
        """Let nothing of what was deleted stay where this process can reach it."""

    def checkpoint(self) -> None:
        """What the database wants done from time to time."""

    # -- asking ------------------------------------------------------------------------------------------------------

    def offload(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what may wait in C in one of this database's threads."""
        return self._threads.call(function, *args, **kwargs)

    def complain(self, what: str, why: object) -> None:
        """Tell the operator, whom the answers do not reach; now and then, as each request brings the same."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY:
            self._complained_at = now
            logger.warning("the database %s %s: %s", self.name, what, why)

    @contextlib.contextmanager
    def _slot(self, slots: threading.BoundedSemaphore) -> Iterator[None]:
        if not slots.acquire(timeout=self.timeout):
            raise Unavailable("The database is busy.", code="store_unavailable", retry_after=2)
        try:
            yield
        except (exc.DBAPIError, self.error) as error:
            self.complain("cannot be used", said(_original(error)))
            raise unavailable() from error
        finally:
            slots.release()

    def write(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in one transaction that writes; it is committed when this returns.

        :raises Unavailable: `store_unavailable`, when the lock was not had in time or the database failed.
        """
        with self._slot(self._write_slots):
            return self._threads.call(self._transact, function, True)

    def read(self, function: Callable[[Connection], T]) -> T:
        """Run `function` on one snapshot. It must fetch all that it wants: a cursor left open would stop checkpoints.

        :raises Unavailable: `store_unavailable`.
        """
        with self._slot(self._read_slots):
            return self._threads.call(self._transact, function, False)

    def _transact(self, function: Callable[[Connection], T], write: bool) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            connection = self._take(write)
            committing = kept = False
            try:
                with connection.begin() as transaction:
                    result = function(connection)
                    committing = True
                    transaction.commit()
                kept = True
                return result
            except (exc.DBAPIError, self.error) as error:
                if committing or attempt == ATTEMPTS or not self.again(_original(error)):
                    raise
            except Exception:
                kept = True  # an answer, such as a refusal; it was rolled back
                raise
            finally:
                if kept:
                    self._idle[write].append(connection)
                else:
                    connection.close()
        raise AssertionError("the last attempt returns or raises")

    def _take(self, write: bool) -> Connection:
        while True:
            try:
                connection = self._idle[write].pop()
            except IndexError:
                return self.connect(write=write)
            if self.alive(connection):
                return connection
            connection.close()

    def close(self) -> None:
        for connections in self._idle.values():
            while connections:
                connections.pop().close()
        self.engine.dispose()
        self._threads.close()

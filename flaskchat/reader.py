"""One response that follows one live run: what it is to be sent next, and how it gets there.

Either the server iterates over it, which needs a task that waits; or, once the response's head is out, its connection
is taken over (`outlet`), and whoever wakes it writes. Both take from the same cursor, by the same rules.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from typing import Protocol

from . import metrics, sse, tasks
from .limits import Visitor
from .live import LiveRun
from .outlet import HandedOver, Offer, Outlet
from .poller import HANGUP, Poller

logger = logging.getLogger("flaskchat")

PIECES = 4
"""Writes to a reader that is behind before others have their turn."""


class Keeper(Protocol):
    """Who holds the readers of a worker."""

    heartbeat: float
    metrics: metrics.Metrics
    parting: bool
    poller: Poller

    def detach(self, reader: Reader) -> None: ...

    def from_log(self, reader: Reader) -> bytes: ...


class Reader:
    __slots__ = (
        "_closed", "_first", "_gone", "_keeper", "_outlet", "_prefix", "_socket", "_waiter", "_writing", "cursor", "fd",
        "idle_since", "offer", "run", "visitor", "writing_since",
    )  # fmt: skip

    def __init__(self, keeper: Keeper, run: LiveRun, cursor: int, prefix: bytes, first: bytes, client: Visitor) -> None:
        """:param prefix: goes in front of the first frame.
        :param first: what comes before the log's events, such as a reset.
        :param client: whose response it is, with the places it has taken, and its socket where the server gives it.
        """
        self._keeper = keeper
        self.run = run
        self.cursor = cursor
        self._prefix = prefix
        self._first = first
        self.visitor = client
        self._socket = client.sock
        self._gone = False
        self._closed = False
        self._waiter: tasks.Waiter | None = tasks.waiter()
        self._outlet: Outlet | None = None
        self._writing = False
        """Whether the outlet is asked when it takes more, or the log for what memory has let go of."""
        self.offer: Offer | None = None
        """The connection, where it may be taken over once the response has begun."""
        self.fd: int | None = None
        self.idle_since = time.monotonic()
        self.writing_since = 0.0

    # -- what comes next -------------------------------------------------------------------------------------------

    def _next(self) -> bytes:
        """:raises LookupError: the log has it, and memory has not."""
        if self._first:
            data, self._first = self._first, b""
        elif self._gone or self._closed:
            return b""
        else:
            data, self.cursor = self.run.take(self.cursor)
            if not data and not self._over() and time.monotonic() - self.idle_since >= self._keeper.heartbeat:
                data = sse.HEARTBEAT
                self._keeper.metrics.add(metrics.HEARTBEATS)
        if data:
            self.idle_since = time.monotonic()
            if self._prefix and data is not sse.HEARTBEAT:
                data, self._prefix = self._prefix + data, b""
        return data

    @property
    def live(self) -> bool:
        """Whether more may come than what is there."""
        return not self._over()

    def _over(self) -> bool:
        """Whether nothing more will come than what is there."""
        run = self.run
        # Those of others' runs end where this worker leaves, though the runs go on; one of its own ends with its run.
        return run.ended or run.closed or self._gone or self._closed or (self._keeper.parting and not run.own)

    # -- the server iterates ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.offer is not None and self.writing_since and not self._over():
            self._take_over(self.offer)
        self.writing_since = 0.0
        while True:
            over = self._over()  # before: what comes with the end may come after nothing was there
            try:
                data = self._next()
            except LookupError:
                self._first = self._keeper.from_log(self)
                if not self._first:
                    raise StopIteration from None
                continue
            if data:
                self.writing_since = self.idle_since
                return data
            if over:
                raise StopIteration
            assert self._waiter is not None
            self._waiter.wait()

    def close(self) -> None:
        """The server is done with the response."""
        if self._outlet is None:
            self._end()

    # -- the connection is ours ------------------------------------------------------------------------------------

    def _take_over(self, offer: Offer) -> None:
        """The head has been sent, and all that was given to the server.

        :raises HandedOver:
        """
        self.offer = None
        try:
            self._outlet = Outlet(offer)
        except OSError:
            return  # the server will notice what it is
        self.watch(self._outlet.fileno())
        self._socket = self._waiter = None
        self.writing_since = 0.0
        self.push()
        raise HandedOver

    def push(self) -> None:
        """Write what there is for this reader; never waits."""
        outlet = self._outlet
        if outlet is None:
            return
        run = self.run
        try:
            if not outlet.rest or outlet.flush():
                for _ in range(PIECES):
                    data = self._next()
                    if data and not outlet.write(data):
                        break
                    if not data or (self.cursor >= run.last_seq and not self._first):
                        if self._over():
                            if not outlet.finish():
                                break
                            self._end()
                        elif self._writing:
                            self._write_on(False)
                        return
            self._write_on(True)
        except LookupError:
            self._write_on(False)
            self._writing = True
            tasks.spawn(self._catch_up)
        except OSError:
            self._vanished()
            self._end()
        except MemoryError:  # what was taken may not have been sent: who comes back is given it
            self.cut()

    def _write_on(self, writing: bool) -> None:
        """Whether to be asked again when the kernel takes more."""
        self.writing_since = time.monotonic() if writing else 0.0
        if writing is not self._writing:
            self._writing = writing
            if self.fd is not None:
                self._keeper.poller.modify(self.fd, writing=writing)

    def _catch_up(self) -> None:
        try:
            self._first = self._keeper.from_log(self)
        except Exception:  # it must not stay here, waiting for nobody; its client comes back
            logger.exception("a reader of run %s could not be given what the log has", self.run.run_id)
        self._writing = False
        if self._first:
            self.push()
            return
        with contextlib.suppress(OSError):
            if self._outlet is not None:
                self._outlet.finish()
        self._end()

    # -- woken -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is news, or it is time for a heartbeat, or to leave."""
        if self._waiter is not None:
            self._waiter.wake()
        elif not self._writing:
            self.push()

    def on_ready(self, gone: bool) -> None:
        """:param gone: the client has closed its side; otherwise its connection takes more."""
        if not gone:
            return self.push()
        self._vanished()
        if self._outlet is not None:
            self._end()
        else:
            self._gone = True
            with contextlib.suppress(OSError, AttributeError):
                # Reading the error takes it off the socket. Else the server's last write would raise it, and of a
                # network that went away (ETIMEDOUT) gunicorn logs a stack for every reader.
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._unwatch()
            self.wake()

    def _vanished(self) -> None:
        if not self._gone and not self._closed:
            self._keeper.metrics.add(metrics.STREAMS_LOST, "vanished")

    def leave(self) -> None:
        """End the stream, though there is more to come, and let others have its places at once."""
        if not self._gone and not self._closed:
            self._keeper.metrics.add(metrics.STREAMS_LOST, "sent_away")
        self.visitor.release()
        if self.writing_since:
            return self.cut()
        self._gone = True
        self.wake()

    def cut(self) -> None:
        """End the writing that waits for a client which does not read."""
        if self._outlet is not None:
            self._outlet.abort()
            return self._end()
        self._gone = True
        with contextlib.suppress(OSError, AttributeError):
            tasks.shut(self._socket, socket.SHUT_RDWR)

    def _unwatch(self) -> None:
        if self.fd is not None:
            self._keeper.poller.unregister(self.fd)
            self.fd = None

    def watch(self, fd: int) -> None:
        """Have the pump's selector tell when the client of this descriptor goes."""
        self._unwatch()
        with contextlib.suppress(OSError, ValueError):
            self._keeper.poller.register(fd, HANGUP, self)
            self.fd = fd

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.close()
        elif self._waiter is not None:
            self._waiter.wake()
        self._keeper.detach(self)

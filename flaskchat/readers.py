"""Following a log from a cursor: replay, then live, as one loop. Heartbeats; vanished, slow and stalled readers.

Deliberate choices; do not change one without reading why:

 1. A reader is an iterator with `close`, not a generator: a generator that was never started runs no `finally`, and the
    server drops responses before their first byte. It holds nothing of Flask's: an application context kept for the
    length of a stream would keep the host's database connections with it.
 2. It has no queue. It has a cursor into events that all readers share, and takes what is there, joined, at most CHUNK
    bytes a time; so a slow reader costs the same as a fast one.
 3. It has no timer. The pump's checks look at all readers and wake those that are due a heartbeat.
 4. The client's FIN is watched for by the pump's selector. A server that waits to write notices only with its second
    write, which may be two heartbeats later.
 5. A client that does not read blocks its own writer only. It is cut off by `check`, which shuts its socket down, and
    by TCP_USER_TIMEOUT where the network is gone; the send buffer is bounded, so it does not pin megabytes of the
    kernel's.
 6. A stream that ends without a terminal event means: come back with the last id. So a worker that leaves, a run whose
    memory was let go of and a log that is gone for long all end the stream, and need no words of their own.
 7. `retry:` goes into the first frame, each with its own jitter, so that a worker's readers do not come back at once.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from . import metrics, sse, tasks
from .config import Settings
from .errors import NotFound, Unavailable
from .feed import Feed
from .limits import Limits, Visitor, bound
from .live import CHUNK, Live, LiveRun
from .log.base import Leave, LogUnavailable, clock
from .models import Reset
from .past import Past, unreadable
from .pump import Pump
from .reader import Reader
from .store.sql import Store

KEEP_ENDED = 10.0
"""Seconds another worker's ended run stays in memory for readers that come back."""
FORGET_SIGN_OUT = 60.0
LATE = 2.0
"""Seconds after a sign-out in which a browser may come back with the cookie that is void: the answer that takes it away
is on its way still, and a session that lies in the browser is as good as before."""
END_PATIENCE = 2.0
"""Seconds that an end may be in the store and not in the log, for whoever has read it there and is ahead of the log."""
LOG_PATIENCE = 15.0
"""Seconds without a usable log after which readers are sent away to try elsewhere."""


class Readers:
    """All readers of one worker."""

    def __init__(
        self, settings: Settings, pump: Pump, live: Live, store: Store, limits: Limits, *, capacity: int
    ) -> None:
        """:param capacity: open streams at most, so that other requests always find a place."""
        self.pump = pump
        self.poller = pump.poller
        self.metrics = pump.metrics
        self.heartbeat = settings.heartbeat
        self.capacity = capacity
        self.leaving = False
        """Nothing new is begun here."""
        self.parting = False
        """Streams end, though their runs go on elsewhere."""
        self._live = live
        self._store = store
        self._limits = limits
        self._retry = settings.retry
        self._timeout = settings.database_timeout
        self._stall = settings.stall_timeout
        self._send_buffer = settings.send_buffer
        self._open: set[Reader] = set()
        self._signed_out: dict[str, float] = {}
        """Who signed out lately, and when (monotonic)."""
        self._late: deque[Leave] = deque()  # to be asked when their time has come: who came back with the old cookie
        self._places = 0
        self._silent: dict[str, int] = {}
        """Others' runs that are followed here, and how far they had come when they were looked after last."""
        self._loading = tasks.Lock()
        self._past = Past(pump, store)
        self.metrics.set(metrics.STREAMS_CAPACITY, capacity)
        pump.checks.append(self.check)
        pump.busy = lambda: bool(self._open)
        pump.on_leave = self._leave_asked

    def __len__(self) -> int:
        return len(self._open)

    def admit(self) -> None:
        """Whether one more stream, or a run, has a place here.

        :raises Unavailable: `full`, `draining` or `log_unavailable`.
        """
        if self.leaving:
            raise Unavailable("This worker is leaving; try again.", code="draining", retry_after=1)
        self._check_places()
        since = self.pump.unavailable_since
        if since is not None and time.monotonic() - since > 1.0:
            raise Unavailable("Replies cannot be kept at the moment.", code="log_unavailable", retry_after=2)

    def _check_places(self) -> None:
        if len(self._open) + self._places >= self.capacity:
            raise Unavailable("All streams of this worker are taken.", code="full", retry_after=2)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Count a stream among the open ones that follows no run, or none yet: while it asks the store, others must not
        be admitted to the same place.
        """
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    # -- attaching -------------------------------------------------------------------------------------------------

    def follow(self, run_id: str, visitor: Visitor, last_event_id: str | None) -> Reader | None:
        """A response that follows a run, from wherever it is.

        A worker that is leaving answers too, for as long as it is there: a browser's EventSource takes any status but
        200 for the end, and until the worker's sockets are closed it gets its share of the connections. So does one
        that cannot write its log: what is in memory can be read.

        :param last_event_id: as the client sent it; absent: from the start.
        :returns: None when the cursor stands at the terminal event (204).
        :raises NotFound: no such run, or not this visitor's.
        :raises TooMany: the visitor has as many streams as may be.
        :raises Unavailable: no place for one more stream, or the run cannot be read at the moment.
        """
        self._check_places()
        with self.place():
            return self.join(run_id, visitor, last_event_id)

    def join(self, run_id: str, visitor: Visitor, last_event_id: str | None) -> Reader | None:
        """As `follow`, for whoever has a place already."""
        run = self._locate(run_id, visitor.owner)
        cursor = _cursor(last_event_id)
        visitor.returning = visitor.returning or cursor != 0
        if run is None:
            return self._finished(run_id, cursor, visitor)
        if cursor is not None and cursor > run.last_seq and not self._caught_up(run):
            raise unreadable()  # the cursor may be right
        if cursor is None or cursor > run.last_seq:
            with self._entered(run_id, visitor):  # first: a reset is dear, and may be asked for in any number
                reset = self._past.reset(run)
                return self.attach(run, reset.seq, visitor, first=sse.encode_reset(reset))
        if run.ended and cursor == run.last_seq:
            return None
        # With nothing to say yet, say that the connection stands: the response's head goes out with its first bytes.
        return self.attach(run, cursor, visitor, first=sse.HEARTBEAT if cursor == run.last_seq else b"")

    def attach(self, run: LiveRun, cursor: int, visitor: Visitor, *, first: bytes = b"") -> Reader:
        """:raises TooMany: the visitor has no place yet, and there is none."""
        with self._entered(run.run_id, visitor):
            retry = sse.retry(int(self._retry * 1000 * random.uniform(0.5, 1.5)))
            reader = Reader(self, run, cursor, retry, first, visitor)
            self.pump.attend(run, reader)
            self._open.add(reader)
        self.metrics.add(metrics.STREAMS_OPENED)
        self.metrics.set(metrics.STREAMS_OPEN, len(self._open))
        if visitor.sock is not None:
            self._prepare(reader, visitor.sock)
        if visitor.since < self._signed_out.get(visitor.owner, 0.0):  # while the request was on its way
            reader.leave()
        return reader

    @contextlib.contextmanager
    def _entered(self, run_id: str, visitor: Visitor) -> Iterator[None]:
        """Take the visitor's places, unless it has them, and give them back where what is done for it fails.

        :raises TooMany:
        """
        self._limits.enter_again(visitor, lambda: self._make_room(run_id, visitor))
        try:
            yield
        except BaseException:
            visitor.release()
            raise

    def detach(self, reader: Reader) -> None:
        """It has ended."""
        self._live.unwatch(reader.run, reader)
        self._open.discard(reader)
        self.metrics.set(metrics.STREAMS_OPEN, len(self._open))
        reader.visitor.release()

    def _make_room(self, run_id: str, visitor: Visitor) -> None:
        """End the oldest stream that follows a run for this visitor's owner, here or on another worker."""
        leave = Leave(visitor.owner, run_id, visitor.since, clock())
        if not self._leave_asked(leave):
            self.pump.log.announce(leave)

    def _leave_asked(self, leave: Leave) -> bool:
        """:returns: whether there was a stream of those that are to end."""
        if not leave.run_id:  # it may be old: whoever begins to follow the log reads it again
            self._late.append(Leave(leave.owner, "", min(time.monotonic(), leave.here() + self._timeout) + LATE))
        return self._end_meant(leave)

    def _end_meant(self, leave: Leave) -> bool:
        if not leave.run_id:
            self._signed_out[leave.owner] = max(self._signed_out.get(leave.owner, 0.0), leave.here())
        meant = [reader for reader in tuple(self._open) if reader.visitor.meant(leave, reader.run.run_id)]
        meant.sort(key=lambda reader: reader.visitor.since)
        for reader in meant[:1] if leave.run_id else meant:
            reader.leave()
        return bool(meant)

    def visitors(self) -> list[Visitor]:
        """Whose streams are open."""
        return [reader.visitor for reader in tuple(self._open)]

    def end(self, visitor: Visitor) -> None:
        """End a visitor's stream."""
        for reader in tuple(self._open):
            if reader.visitor is visitor:
                reader.leave()

    def sign_out(self, owner: str) -> None:
        """End all streams of an owner, on all workers, now and once more (`LATE`). Who is still signed in comes back.

        :raises Unavailable: the other workers could not be told.
        """
        leave = Leave(owner, "", time.monotonic(), clock())
        self._leave_asked(leave)
        self.pump.log.announce(leave)

    def _prepare(self, reader: Reader, sock: Any) -> None:
        bound(sock, send_buffer=self._send_buffer, stall=self._stall)
        reader.watch(sock.fileno())

    def _locate(self, run_id: str, owner: str) -> LiveRun | None:
        """The run in memory, brought there if another worker writes it; None if it has ended.

        :raises NotFound:
        """
        feed: Feed | None = self.pump.feeds.get(run_id)
        if feed is not None and feed.begun.owner == owner:
            return feed.live
        # Somebody else's run is looked for like one that is not there: the time must not tell them apart either.
        row = self._store.run(run_id, owner)
        if row is None:
            raise NotFound("There is no such run.")
        if row.state != "running":
            return None
        return self.bring(run_id)

    def bring(self, run_id: str) -> LiveRun:
        """A run that another worker writes, as far as it is in the log by now; while the log cannot be read, as far as
        memory has it.

        :raises Unavailable: neither has it.
        """
        came = self.pump.refresh()
        feed = self.pump.feeds.get(run_id)
        run = feed.live if feed is not None else self._live.get(run_id)
        if run is None or run.held is not None:
            with self._loading:  # whoever comes while it is being read must not find it half
                run = self._live.get(run_id)
                if run is None:
                    run = self._load(run_id, came)
        return run

    def _load(self, run_id: str, came: bool) -> LiveRun:
        if not came:
            raise unreadable()
        run = self._live.loading(run_id)
        try:
            self._live.loaded(run, self.pump.read(run_id))
        except LogUnavailable:
            raise unreadable() from None
        finally:
            if run.held is not None:  # it could not be read, or whoever read it was killed
                self._live.drop(run)
                run.close()
        return run

    def _finished(self, run_id: str, cursor: int | None, visitor: Visitor) -> Reader | None:
        """The events of a run that has ended, as one more reader: it may be long, and its client stall or leave.

        :raises NotFound: it was deleted since it was located.
        """
        frames = self._store.frames(run_id)
        if not frames:
            raise NotFound("There is no such run.")
        start = 0
        if cursor is not None and cursor > 0:
            start = frames.find(b"\n\nid: %d\n" % (cursor + 1)) + 2
            if start == 1:
                if frames.startswith(b"id: %d\n" % cursor) or b"\n\nid: %d\n" % cursor in frames:
                    return None
                cursor = None
        first = b""
        if cursor is None:
            # The terminal event follows the reset, so that whoever lost its place still learns how the run ended.
            start = frames.rfind(b"\n\nid: ") + 2
            last = int(frames[start + 4 : frames.index(b"\n", start)])
            with self._entered(run_id, visitor):
                first = sse.encode_reset(Reset(last - 1, self._past.text(frames)))
        run = LiveRun(run_id, own=True)
        run.extend([frames[at : at + CHUNK] for at in range(start, len(frames), CHUNK)], True)
        self.pump.poller.ring()  # an idle pump looks at its readers seldom
        return self.attach(run, 0, visitor, first=first)

    def _caught_up(self, run: LiveRun) -> bool:
        """Wait until memory has what the log has of a run. Also of our own: other workers' readers may see what a tick
        has committed before it has come back, or though it came back with an error.
        """
        until = time.monotonic() + END_PATIENCE
        while (came := self.pump.refresh()) and self.pump.finishing(run) and time.monotonic() < until:
            tasks.sleep(0.05)
        return came and (not run.own or self.pump.unavailable_since is None)

    def from_log(self, reader: Reader) -> bytes:
        """Events that memory has let go of."""
        run = reader.run
        try:
            past = self._past.frames(run)[reader.cursor : run.base]
        except LogUnavailable:
            past = []
        if not past:  # who comes back finds the run anew, or its end in the store
            self._live.drop(run)
            run.close()
        reader.cursor += len(past)
        return b"".join(past)

    # -- looked at by the pump -------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        since = self.pump.unavailable_since
        hopeless = since is not None and now - since > LOG_PATIENCE
        for reader in tuple(self._open):
            if reader.writing_since and now - reader.writing_since > self._stall:
                self.metrics.add(metrics.STREAMS_LOST, "stalled")
                reader.cut()
            elif hopeless:
                reader.leave()
            elif now - reader.idle_since >= self.heartbeat:
                reader.wake()
        self._live.tidy(keep_ended=KEEP_ENDED)
        while self._late and now >= self._late[0].asked_at:
            self._end_meant(self._late.popleft())
        for owner in [owner for owner, at in tuple(self._signed_out.items()) if now - at > FORGET_SIGN_OUT]:
            del self._signed_out[owner]

    def look_after(self) -> None:
        """Send the readers of others' runs that are over to where their end is: the store, or nowhere, where they were
        deleted. Usually the log has told of it. It cannot where it lost that, where the entry was taken out with the
        conversation before this worker had read it, or was pruned while this worker was held up. So whatever has been
        silent for a round is asked for.

        :raises Unavailable: the store could not be asked.
        """
        live = (run for run in self._live.foreign() if run.held is None and not (run.ended or run.closed))
        followed = {run.run_id: run for run in live}
        before, self._silent = self._silent, {run_id: run.last_seq for run_id, run in followed.items()}
        silent = {run_id for run_id, seq in self._silent.items() if before.get(run_id) == seq}
        if not silent:
            return
        over = silent - self._store.still_running(silent)
        if over:
            self.pump.refresh()  # it may be on its way
        for run_id in over:
            run = followed[run_id]
            if not run.ended:
                self._live.drop(run)
                run.close()

    def leave(self) -> None:
        """The worker is going. Streams stay as long as it does: at a reload the workers that follow are still starting,
        and whoever was sent away would wait for them in silence.
        """
        self.leaving = True

    def followed(self) -> bool:
        """Whether anybody follows runs of other workers here."""
        return any(not reader.run.own and reader.live for reader in tuple(self._open))

    def part(self) -> None:
        """End every stream after what is there for it, but those of our own runs, which end with them."""
        if not self.parting:
            self.parting = True
            for reader in tuple(self._open):
                reader.wake()


def _cursor(last_event_id: str | None) -> int | None:
    """:returns: the seq; 0 for no cursor; None for one that is none of ours."""
    if last_event_id is None or last_event_id == "":
        return 0
    if last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 15:
        return int(last_event_id)
    return None

"""What others append to the runs that are watched here: one blocking XREAD of one task, over all of them and control.

Deliberate choices; do not change one without reading why:

 1. Each run is read from the cursor that memory has. What was missed meanwhile is in the stream, so there is no gap to
    close and no double to find; and only what somebody asked for here is read at all.
 2. BLOCK is short. Which runs are watched changes by the second, and a blocked client would have to be woken over
    another connection, at a moment when it may not be blocked yet. A run that has just been added waits for BLOCK at
    most, once; what it has by then its reader got when it came.
 3. What was read waits here for the pump's next turn, and no more is read while much waits.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .. import tasks
from . import streams
from .base import Append, Entry, LogUnavailable
from .link import Link

logger = logging.getLogger("flaskchat")

BLOCK = b"100"
"""Milliseconds."""
AT_ONCE = b"100"
"""Entries of one stream that are read at once."""
MOST = 5000
"""Entries that may wait for the pump."""


class Held(Protocol):
    """A run in memory, as live.LiveRun has it."""

    run_id: str
    own: bool
    ended: bool
    closed: bool
    held: list[Append] | None
    bells: Any

    @property
    def last_seq(self) -> int: ...

    @property
    def frames(self) -> list[bytes]: ...

    def close(self) -> None: ...


class Memory(Protocol):
    """This worker's runs and those of others that are watched here, as live.Live has them."""

    def get(self, run_id: str) -> Any: ...

    def own(self) -> Sequence[Any]: ...

    def foreign(self) -> Sequence[Any]: ...

    def drop(self, run: Any) -> None: ...


class Tail:
    """:param link: makes a connection for the task.
    :param ring: called when something waits here.
    """

    def __init__(
        self, link: Callable[[], Link], keys: streams.Keys, memory: Memory, ring: Callable[[], None]
    ) -> None:
        self._link = link
        self._keys = keys
        self._memory = memory
        self._ring = ring
        self._kept: deque[Entry] = deque()
        self._control: streams.Id = (0, 0)
        self._at: dict[str, tuple[Any, streams.Id]] = {}
        """Of each run: which of those that had this id in memory, and how far it has been read."""
        self._lock = threading.Lock()
        self._task: tasks.Task | None = None
        self._current = 0
        """Which start the task belongs to; it ends when there is another."""
        self.failed: LogUnavailable | None = None
        """Why nothing could be read the last time it was tried."""

    @property
    def running(self) -> bool:
        return self._task is not None

    def start(self, control: streams.Id) -> None:
        """:param control: from where on."""
        self.stop()
        self._control, self.failed = control, None
        self._current += 1
        self._task = tasks.spawn(self._run, self._current, name="flaskchat-tail")

    def stop(self) -> None:
        self._task = None
        self._current += 1
        self._kept.clear()
        self._at.clear()

    def join(self) -> None:
        """End, and wait until nothing is read any more."""
        task, self._task = self._task, None
        self._current += 1
        if task is not None:
            task.join(3.0)

    def put(self, entry: Entry) -> None:
        self._kept.append(entry)
        self._ring()

    def taken(self) -> list[Entry]:
        """What has been read since the last call."""
        found = []
        while self._kept:
            found.append(self._kept.popleft())
        return found

    def look(self, link: Link) -> None:
        """Read what is there at this moment.

        :raises LogUnavailable:
        """
        while self._read(link) >= int(AT_ONCE):
            tasks.sleep(0)

    def _run(self, current: int) -> None:
        link, checked = self._link(), 0
        try:
            while current == self._current:
                try:
                    if not link.usable() or link.generation != checked:
                        self._check_control(link)
                        checked = link.generation
                    found = self._read(link, b"BLOCK", BLOCK)
                    self.failed = None
                except LogUnavailable as error:
                    self.failed = error
                    tasks.sleep(random.uniform(0.05, 0.25))
                    continue
                if found and current == self._current:
                    self._ring()
                while len(self._kept) > MOST and current == self._current:
                    tasks.sleep(0.02)
        except Exception:
            logger.exception("reading the log failed; it is begun anew")
            tasks.sleep(0.5)
            if current == self._current:
                self.start(self._control)
        finally:
            link.close()

    def _read(self, link: Link, *block: bytes) -> int:
        """:returns: how many entries there were, of the stream that had the most."""
        watched = self._watched()
        names = {self._keys.run(run.run_id): run for run, _ in watched}
        keys, ids = [self._keys.control, *names], [self._control, *[cursor for _, cursor in watched]]
        (found,) = link.ask([b"XREAD", b"COUNT", AT_ONCE, *block, b"STREAMS", *keys, *[b"%d-%d" % at for at in ids]])
        if isinstance(found, Exception):
            raise LogUnavailable(f"Redis: {found}") from found
        for key, rows in found or ():
            self._take(names.get(key), rows)
        return max((len(rows) for _, rows in found or ()), default=0)

    def _watched(self) -> list[tuple[Any, streams.Id]]:
        """:returns: the runs to read, and from where on: the pump's own look may put others in their place at once."""
        watched = [run for run in self._memory.foreign() if not (run.ended or run.closed) and run.held is None]
        with self._lock:
            at = {}
            for run in watched:
                known, cursor = self._at.get(run.run_id, (None, (0, 0)))
                at[run.run_id] = (run, cursor if known is run else (run.last_seq, 0))
            self._at = at
            return list(at.values())

    def _take(self, run: Any, rows: list[Any]) -> None:
        """Keep what has not been read before: the pump's own look may have been first."""
        with self._lock:
            if run is None:
                new = [row for row in rows if streams.parse_id(row[0]) > self._control]
                self._kept.extend(streams.controls(new))
                if new:
                    self._control = streams.parse_id(new[-1][0])
                return
            known, cursor = self._at.get(run.run_id, (None, (0, 0)))
            if known is not run:
                return
            new = [row for row in rows if streams.parse_id(row[0]) > cursor]
            self._kept.extend(entry for entry in streams.appends(new) if entry.run_id == run.run_id)
            if new:
                self._at[run.run_id] = (run, streams.parse_id(new[-1][0]))

    def _check_control(self, link: Link) -> None:
        """After a failover to a server that lacks the last of control, or whose clock is behind, its new entries would
        be behind the cursor.
        """
        (rows,) = link.ask(streams.newest(self._keys.control))
        if isinstance(rows, Exception):
            raise LogUnavailable(f"Redis: {rows}")
        self._control = min(self._control, streams.parse_id(rows[0][0]) if rows else (0, 0))

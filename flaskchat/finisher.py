"""Finishing runs in the store beside the ticks, for a log that is somewhere else than the store (`Log.apart`).

A run ends in the store first, whole, and then in its log. While the store stands still the runs that have ended wait
here, and the ticks append what the others get. Nothing of a run is appended while it waits: its last events go out with
its end. Knows nothing of readers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from . import tasks
from .feed import Feed
from .log.base import Log, LogUnavailable
from .store.base import Fenced, Lease

logger = logging.getLogger("flaskchat")

AGAIN = 0.05
AGAIN_AT_MOST = 1.0
"""Seconds between attempts: the first pause, which is doubled as long as the store refuses, and the longest."""
TOGETHER = 20
"""Runs that are finished in one transaction. Of those that were refused each is tried alone, so that one that the store
never takes keeps none of the others.
"""
DOUBT_AFTER = 10.0
"""Seconds without the store after which others may have taken our runs over; only the log can tell us then."""


class Finisher:
    """One per worker, in a task of its own, one transaction at a time."""

    def __init__(
        self, log: Callable[[], Log], touch: Callable[[Feed], None], on_fenced: Callable[[Lease], None]
    ) -> None:  # fmt: skip
        """:param touch: called when the store has a run's end, so that the next tick appends it."""
        self._log = log
        self._touch = touch
        self._on_fenced = on_fenced
        self._waiting: dict[Feed, None] = {}
        self._refused_since: float | None = None
        self._doubted_at = 0.0
        self._bell = tasks.Event()
        self._closing = False
        self._task: tasks.Task | None = None

    def start(self) -> None:
        if self._log().apart:
            self._task = tasks.spawn(self._run, name="flaskchat-finisher")

    def close(self, timeout: float) -> bool:
        """:returns: whether it has ended within `timeout` seconds: nothing of the log's is in use."""
        self._closing = True
        self._bell.set()
        if self._task is None:
            return True
        self._task.join(timeout)
        return not self._task.is_alive()

    def may_append(self, feed: Feed) -> bool:
        """Whether the log is to have what the feed has got: of one that has ended, where the log is elsewhere, only
        once the store has it. It is seen to from here on, and touched then.
        """
        if feed.terminal is None or feed.finished or not self._log().apart:
            return True
        if feed not in self._waiting:
            self._waiting[feed] = None
            if feed.finished:  # by the other thread, since it was looked at
                self.drop(feed)  # type: ignore[unreachable]  # it knows of one thread
                return True
            self._bell.set()
        return False

    def drop(self, feed: Feed) -> None:
        """Its lease is lost: somebody else ends it."""
        self._waiting.pop(feed, None)

    def _run(self) -> None:
        pause = AGAIN
        while not (self._closing and not self._waiting):
            self._bell.wait()
            self._bell.clear()
            while self._waiting:
                if self._attempt():
                    pause = AGAIN
                    continue
                if self._closing:
                    return
                tasks.sleep(pause)
                pause = min(2 * pause, AGAIN_AT_MOST)

    def _attempt(self) -> bool:
        try:
            return self.attempt()
        except Exception:  # whatever it was, the others that wait must not be left
            logger.exception("finishing replies failed; it is tried again")
            return False

    def attempt(self) -> bool:
        """:returns: whether the store has taken some of those that waited, or they are not ours to end."""
        waiting = list(self._waiting)
        if not waiting:
            return True
        lease = waiting[0].begun.lease
        assert lease is not None
        some = [feed for feed in waiting if feed.begun.lease == lease]
        some = some[: TOGETHER if self._refused_since is None else 1]
        try:
            self._log().finish(lease, [feed.ending(feed.pending) for feed in some])
        except Fenced:
            self._on_fenced(lease)
            for feed in some:
                self.drop(feed)
            return True
        except Exception as error:
            self._refused(error)
            for feed in some:  # the next time it is the others' turn
                if feed in self._waiting:
                    self._waiting[feed] = self._waiting.pop(feed)
            if isinstance(error, LogUnavailable):
                return False
            raise
        if self._refused_since is not None:
            logger.warning("ended replies can be kept again after %.1f s", time.monotonic() - self._refused_since)
            self._refused_since = None
        for feed in some:
            feed.finished = True
            self.drop(feed)
            self._touch(feed)
        return True

    def _refused(self, error: Exception) -> None:
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = self._doubted_at = now
            logger.warning("replies that have ended cannot be kept yet, trying again: %s", error)
        elif now - self._doubted_at > DOUBT_AFTER:
            self._doubted_at = now
            self._log().doubt()

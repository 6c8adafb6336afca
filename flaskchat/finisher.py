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
"""Seconds between attempts."""


class Finisher:
    """One per worker, in a task of its own, one transaction at a time with all that wait by then."""

    def __init__(
        self, log: Callable[[], Log], touch: Callable[[Feed], None], on_fenced: Callable[[Lease], None]
    ) -> None:  # fmt: skip
        """:param touch: called when the store has a run's end, so that the next tick appends it."""
        self._log = log
        self._touch = touch
        self._on_fenced = on_fenced
        self._waiting: dict[Feed, None] = {}
        self._refused_since: float | None = None
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
            self._bell.set()
        return False

    def drop(self, feed: Feed) -> None:
        """Its lease is lost: somebody else ends it."""
        self._waiting.pop(feed, None)

    def _run(self) -> None:
        while not (self._closing and not self._waiting):
            self._bell.wait()
            self._bell.clear()
            while self._waiting and not self.attempt():
                if self._closing:
                    return
                tasks.sleep(AGAIN)

    def attempt(self) -> bool:
        """:returns: whether the store has taken those that waited, or they are not ours to end."""
        waiting = list(self._waiting)
        if not waiting:
            return True
        lease = waiting[0].begun.lease
        assert lease is not None
        some = [feed for feed in waiting if feed.begun.lease == lease]
        try:
            self._log().finish(lease, [feed.ending(feed.pending) for feed in some])
        except LogUnavailable as error:
            if self._refused_since is None:
                self._refused_since = time.monotonic()
                logger.warning("replies that have ended cannot be kept yet, trying again: %s", error)
            return False
        except Fenced:
            for feed in some:
                self.drop(feed)
            self._on_fenced(lease)
            return not self._waiting
        except Exception:
            logger.exception("replies that have ended could not be kept; it is tried again")
            return False
        if self._refused_since is not None:
            logger.warning("ended replies can be kept again after %.1f s", time.monotonic() - self._refused_since)
            self._refused_since = None
        for feed in some:
            feed.finished = True
            self.drop(feed)
            self._touch(feed)
        return not self._waiting

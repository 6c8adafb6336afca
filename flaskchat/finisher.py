"""Finishing runs in the store beside the ticks, for a log that is not SQLite's journal (`Log.apart`): it is somewhere
else than the store, or the store takes too long for a tick.

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
from .log.base import Append, Log, LogUnavailable
from .store.base import Ending, Fenced, Lease

logger = logging.getLogger("flaskchat")

AGAIN = 0.05
AGAIN_AT_MOST = 1.0
"""Seconds between attempts: the first pause, which is doubled as long as the store refuses, and the longest."""
TOGETHER = 20
"""Runs that are finished in one transaction. Of those that were refused each is tried alone, after all others: so one
that takes the store too long, or that it never takes, keeps none of them.
"""
DOUBT_AFTER = 10.0
"""Seconds without the store after which others may have taken our runs over; only the log can tell us then."""


Moved = tuple[Feed, list[bytes], bool]
"""A feed, what it has to append, and whether that is its end."""


def take(moved: list[Moved]) -> tuple[list[Append], list[Ending], list[Moved], list[Feed]]:
    """Make of each what is to be appended, and of those that end what is to be finished.

    An ending holds copies of the whole reply, for which there may be no memory. Who raises keeps what it has.

    :returns: both, of whom they are, and who has to be tried again.
    """
    entries, endings, taken, left = [], [], [], []
    for one in moved:
        feed, frames, ended = one
        try:
            if ended and not feed.finished:
                endings.append(feed.ending(frames))
        except Exception:
            logger.exception("run %s: its end could not be made, and is tried again", feed.begun.run_id)
            left.append(feed)
            continue
        feed.pending = []
        entries.append(Append(feed.begun.run_id, feed.seq - len(frames) + 1, frames, ended))
        taken.append(one)
    return entries, endings, taken, left


class Finisher:
    """One per worker, in a task of its own, one transaction at a time."""

    def __init__(
        self, log: Callable[[], Log], touch: Callable[[Feed], None], on_fenced: Callable[[Lease], None]
    ) -> None:  # fmt: skip
        """:param touch: called when the store has a run's end, so that the next tick appends it."""
        self._log = log
        self._touch = touch
        self._on_fenced = on_fenced
        self._waiting: dict[Feed, float] = {}
        """And when each may be tried alone (monotonic); 0: it may be tried together with others."""
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
        """Whether the log is to have what the feed has got: of one that has ended, where the log is apart, only
        once the store has it. It is seen to from here on, and touched then.
        """
        if feed.terminal is None or feed.finished or not self._log().apart:
            return True
        if feed not in self._waiting:
            self._waiting[feed] = 0.0
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
            self._bell.wait(pause if self._waiting else None)
            self._bell.clear()
            if self._attempt():
                pause = AGAIN
                if self._waiting:
                    self._bell.set()
            elif self._closing:
                return
            else:
                pause = min(2 * pause, AGAIN_AT_MOST)

    def _attempt(self) -> bool:
        try:
            return self.attempt()
        except Exception:  # whatever it was, the others that wait must not be left
            logger.exception("finishing replies failed; it is tried again")
            return False

    def _due(self) -> list[Feed]:
        """Those that are tried next, of one lease."""
        waiting = list(self._waiting.items())
        fresh = [feed for feed, at in waiting if not at]
        if fresh:
            return [feed for feed in fresh if feed.begun.lease == fresh[0].begun.lease][:TOGETHER]
        now = time.monotonic()
        return [feed for feed, at in sorted(waiting, key=lambda one: one[1])[:1] if at <= now]

    def attempt(self) -> bool:
        """:returns: whether the store has taken some of those that waited, or nothing waits, or they are not ours."""
        some = self._due()
        if not some:
            return not self._waiting
        lease, patient = some[0].begun.lease, self._waiting.get(some[0], 0.0) > 0
        assert lease is not None
        began = time.monotonic()
        try:
            self._log().finish(lease, [feed.ending(feed.pending) for feed in some], patient=patient)
        except Fenced:
            self._on_fenced(lease)
            for feed in some:
                self.drop(feed)
            return True
        except Exception as error:
            now = time.monotonic()
            for feed in some:
                if feed in self._waiting:
                    self._waiting[feed] = now + (max(AGAIN, 2 * (now - began)) if patient else 0.0)
            self._refused(error, now)
            if isinstance(error, LogUnavailable):
                return False
            raise
        for feed in some:
            feed.finished = True
            self.drop(feed)
            self._touch(feed)
        self._taken()
        return True

    def _taken(self) -> None:
        """The store can be used: those that were put off because it could not need not wait as long."""
        now = time.monotonic()
        alone = [feed for feed, at in list(self._waiting.items()) if at]
        for feed in alone:
            if feed in self._waiting:
                self._waiting[feed] = min(self._waiting[feed], now + AGAIN_AT_MOST)
        if self._refused_since is not None and not alone:
            logger.warning("ended replies can be kept again after %.1f s", now - self._refused_since)
            self._refused_since = None

    def _refused(self, error: Exception, now: float) -> None:
        if self._refused_since is None:
            self._refused_since = self._doubted_at = now
            logger.warning("replies that have ended cannot be kept yet, trying again: %s", error)
        elif now - self._doubted_at > DOUBT_AFTER:
            self._doubted_at = now
            self._log().doubt()

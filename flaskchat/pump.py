"""The tick: gather what every source has, commit it as one row of the log, wake the readers of the runs that moved.

Deliberate choices; do not change one without reading why:

 1. One task per worker does it for all runs. A greenlet, timer, lock or commit per run or token is what makes others
    dear.
 2. A tick comes at once after silence, then at most every TICK seconds (AFTER_WAIT where the last brought nothing of
    ours): what came in between is one event per run.
 3. The commit does not hold the hub (the log says how it is called; a file's may be slow), and nothing is gathered
    meanwhile: the models' sockets hold what comes, and the next tick has it all.
 4. When the log cannot be written, what was gathered is kept and tried again; past a bound the sources are not read.
    Heartbeats, deadlines and Stop go on, because the log is asked with a short patience. It is read all the same: a
    lock or a full disk stops the writers, not the readers of other workers' runs.
 5. Nothing is published before the commit, and everything in the order of the commits.
 6. What is committed is published, whatever happens to others in the same tick: who raises costs only itself.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from . import metrics, tasks
from .ear import Ear
from .feed import Feed
from .finisher import Finisher, Moved, take
from .live import Bell, Live, LiveRun
from .log.base import Append, Entry, Leave, Log, LogUnavailable, Stop
from .models import Interrupted
from .poller import READ, Poller
from .store.base import Ending, Fenced, Lease

logger = logging.getLogger("flaskchat")

TICK = 0.02
AFTER_WAIT = 0.015
"""The same after a tick that brought nothing of ours. Shorter: so a worker that rings every TICK, a little unevenly, is
followed as it rings.
"""
IDLE = 5.0
STOP_POLL = 0.05
"""Seconds between looks at the log for a Stop from another worker, while our models are silent."""
UNFOLLOW_AFTER = 30.0
BREATH = 500
"""Entries of the log that are taken in before others may run."""
TURNS = 400
"""Sources that are read, or readers that are written to, before others may run."""

class Pump:
    """One per worker."""

    def __init__(
        self, log: Log, live: Live, lease: Callable[[], Lease], *, check_period: float,
        counts: metrics.Metrics | None = None,
    ) -> None:  # fmt: skip
        """:param lease: this worker's, as it is at the moment.
        :param check_period: seconds between calls of the `checks`.
        """
        self.log = log
        self.metrics = counts or metrics.Metrics()
        self.live = live
        self._lease = lease
        self.poller = Poller()
        log.on_news = self.poller.ring
        self.feeds: dict[str, Feed] = {}
        self.checks: list[Callable[[float], None]] = []
        """Called with the monotonic time every `check_period` seconds: deadlines, heartbeats, the drain."""
        self.on_stop: Callable[[Stop], None] = lambda stop: None
        self.on_leave: Callable[[Leave], object] = lambda leave: None
        self.on_fenced: Callable[[Lease], None] = lambda lease: None
        self.on_ended: Callable[[Feed], object] = lambda feed: None
        """Called when a run's end is committed; must not wait."""
        self.busy: Callable[[], bool] = lambda: False
        """Whether `checks` have anything to look at though no run is live here."""
        self.unavailable_since: float | None = None
        """Since when the log has refused every commit (monotonic)."""
        self._check_period = check_period
        self._next_check = 0.0
        self._touched: deque[Feed] = deque()
        self._again: list[Feed] = []
        self._news: list[Entry] = []
        self._following = False
        self._moving = False
        """Whether the last tick brought something: then the next one looks without waiting for a socket first."""
        self._needed_at = 0.0
        self._looks: deque[tasks.Answer] = deque()
        self.ear = Ear(lambda: self.log, self.poller)
        self.finisher = Finisher(lambda: self.log, self.touch, lambda lease: self.on_fenced(lease))
        self._task: tasks.Task | None = None
        self._closing = False

    def start(self) -> None:
        self.finisher.start()
        self._task = tasks.spawn(self._run, name="flaskchat-pump")

    def add(self, feed: Feed) -> None:
        """Take a new run in; its start event goes out with the next tick."""
        self.feeds[feed.begun.run_id] = feed
        self.metrics.add(metrics.REPLIES_STARTED)
        self.touch(feed)

    def watch(self, feed: Feed) -> None:
        """The feed's source is open: read it from now on."""
        source = feed.source
        if source is None:
            return
        feed.fd = source.fileno()
        if feed.fd is not None:
            self.poller.register(feed.fd, READ, feed)
        self.touch(feed)

    def touch(self, feed: Feed) -> None:
        """Something about the feed changed: look at it in the next tick."""
        self._touched.append(feed)
        self.poller.ring()

    def let_go(self, feed: Feed) -> bool:
        """Close the feed's source.

        :returns: whether the model's connection is closed.
        """
        if feed.fd is not None:
            self.poller.unregister(feed.fd)
            feed.fd = None
        return feed.close_source()

    def refresh(self) -> bool:
        """Return when everything that was in the log at the time of the call is in `live`; starts to follow the log.

        :returns: False when the log cannot be read at the moment: nobody waits for it here.
        """
        self._needed_at = time.monotonic()
        look = tasks.Answer()
        self._looks.append(look)
        self.poller.ring()
        return not self._closing and look.wait()

    def attend(self, run: LiveRun, bell: Bell) -> None:
        """Ring `bell` whenever the run moves; another worker's run is looked for in the log from now on."""
        self.live.watch(run, bell)
        if not run.own:
            self.poller.ring()

    def abandon(self) -> None:
        """A lease is lost: another worker ends the runs under it. Forget them, and send their readers there.

        Closing a source may wait, so others begin runs under the next lease meanwhile; those stay.
        """
        for feed in list(self.feeds.values()):
            if feed.begun.lease != self._lease():
                self._forget(feed)

    def _forget(self, feed: Feed) -> None:
        self.feeds.pop(feed.begun.run_id, None)
        self.finisher.drop(feed)
        self.live.drop(feed.live)
        feed.decide(Interrupted("The lease was lost."))  # for whoever still opens its source; nobody is sent it
        feed.live.close()
        self.let_go(feed)

    def finishing(self, run: LiveRun) -> bool:
        """Whether a run of ours has ended, and the log does not have its end yet."""
        feed = self.feeds.get(run.run_id)
        return feed is not None and feed.live is run and feed.terminal is not None

    def read(self, run_id: str) -> list[Append]:
        """One run's entries, from the log's beginning. Waits its turn behind the tick.

        :raises LogUnavailable: the log cannot be read at the moment.
        """
        return self.log.calls.call(self.log.read, run_id)

    def close(self, timeout: float) -> None:
        """Commit what is pending and end; at most `timeout` seconds."""
        self._closing = True
        self.poller.ring()
        if self._task is not None:
            self._task.join(timeout)
        if self.finisher.close(0.1) and (self._task is None or not self._task.is_alive()):
            self.log.calls.call(self.log.close)
            self.poller.close()
        self.log.calls.close()

    def _run(self) -> None:
        last = 0.0
        try:
            while not (self._closing and not self.feeds):
                if not self._closing:
                    if not self._moving:
                        self.poller.wait(self._patience())
                    early = last + (TICK if self._moving else AFTER_WAIT) - time.monotonic()
                    if early > 0:
                        tasks.sleep(early)
                else:
                    tasks.sleep(TICK)
                last = time.monotonic()
                try:
                    self._tick(last)
                except Exception:
                    logger.exception("a tick failed; its runs go on with the next")
                    tasks.sleep(0.1)
        finally:
            self._closing = True
            while self._looks:  # others may add to them
                self._looks.popleft().give(False)

    def _patience(self) -> float:
        """Seconds that may be waited for a socket or the bell."""
        if self._looks:
            return 0.0
        if self._touched or self._again:
            return STOP_POLL if self.unavailable_since is not None else 0.0
        told = self.log.tells or self.ear.hears
        if not told and self.live.watchers:
            return TICK
        if self.feeds:
            return self._check_period if told else min(STOP_POLL, self._check_period)
        return self._check_period if self.live.watchers or self.busy() or self.unavailable_since is not None else IDLE

    def _tick(self, now: float) -> None:
        looks = [self._looks.popleft() for _ in range(len(self._looks))]  # others may add to them
        came = False
        try:
            lease, touched = self._gather()
            if now >= self._next_check:
                self._next_check = now + self._check_period
                for check in self.checks:
                    _alone(check, now)
            refused, came = self._commit(now, lease, touched, bool(looks))
            self._note(now, refused)
        finally:
            if came and self.log.behind:
                self._looks.extendleft(reversed(looks))  # what they wait for is not all here yet
            else:
                for look in looks:
                    look.give(came)

    def _note(self, now: float, refused: LogUnavailable | None) -> None:
        if refused is None:
            if self.unavailable_since is not None:
                logger.warning("the log can be used again after %.1f s", now - self.unavailable_since)
                self.unavailable_since = None
        elif self.unavailable_since is None:
            self.unavailable_since = now
            logger.warning("the log cannot be used, trying again: %s", refused)
        self.metrics.ticked(len(self.feeds), refused is not None)

    def _gather(self) -> tuple[Lease, list[Feed]]:
        """Read every source that has something.

        Only those that are still ours: a run that was abandoned with its lease may yet be touched by its source, or
        be added by a start that had begun before; it must not be written under the lease that followed.

        :returns: the lease, and the feeds under it that were looked at.
        """
        touched = dict.fromkeys(self._again)
        while self._touched:
            touched[self._touched.popleft()] = None
        for owner, gone in self.poller.ready():
            if type(owner) is Feed:
                touched[owner] = None
            else:
                _alone(owner.on_ready, gone)
        self._again = []
        lease = self._lease()  # after the feeds were collected: whatever was begun under it is not taken for older
        ours = []
        for number, feed in enumerate(touched, 1):
            if number % TURNS == 0:
                tasks.sleep(0)
            if self.feeds.get(feed.begun.run_id) is not feed:
                continue
            if feed.begun.lease is not lease and feed.begun.lease != lease:
                self._forget(feed)
                continue
            ours.append(feed)
            feed.pull()
            if feed.terminal is not None:
                _alone(self.let_go, feed)
            elif feed.full() or getattr(feed.source, "pending", False):
                # Not read, and nobody tells of its text again; or decrypted bytes, or an error, unseen by the selector.
                self._again.append(feed)
        return lease, ours

    def _commit(
        self, now: float, lease: Lease, touched: list[Feed], looked_for: bool
    ) -> tuple[LogUnavailable | None, bool]:
        """:param looked_for: whether somebody waits for what others have appended.
        :returns: why the log could not be used, what had to be appended is kept then; and whether it could be read.
        """
        may = self.finisher.may_append
        moved = [(feed, feed.pending, feed.terminal is not None) for feed in touched if feed.pending and may(feed)]
        self._moving = False
        if self.feeds or self.unavailable_since is not None:  # until it can be used again, though nobody needs it
            self._needed_at = now
        follow = self.live.watchers > 0 or self.busy() or now - self._needed_at < UNFOLLOW_AFTER
        if not moved and not follow:
            self.ear.listen(False)
            self._stop_following()
            return None, True
        entries, endings, moved, left = take(moved)
        self._again.extend(left)
        try:
            self.ear.listen(self.live.watchers > 0 or bool(self.feeds))
            refused, came = self.log.calls.call(self._turn, lease, entries, endings, follow, looked_for)
        except BaseException as error:
            self._keep(moved)
            if isinstance(error, Fenced):
                self.on_fenced(lease)
                return None, False
            raise
        if refused is None:
            self._moving = bool(moved)
        else:
            self._keep([one for one in moved if one[0].begun.run_id not in refused.finished])
            moved = [one for one in moved if one[0].begun.run_id in refused.finished]
        if moved:
            self.metrics.committed(sum(len(frames) for _, frames, _ in moved), now)
        for number, (feed, frames, ended) in enumerate(moved, 1):
            _alone(self._publish, feed, frames, ended)
            if number % TURNS == 0:
                tasks.sleep(0)
        self._take_in()
        while came and self.log.behind and time.monotonic() < now + TICK:
            came = self.log.calls.call(self._read_on)
            self._take_in()
        self._moving = self._moving or (came and self.log.behind)  # the rest with the next ticks: ours have their turn
        return refused, came

    def _keep(self, moved: list[Moved]) -> None:
        """What could not be appended waits for the next tick."""
        for feed, frames, _ in moved:
            feed.pending = frames + feed.pending
            self._touched.append(feed)

    def _take_in(self) -> None:
        news, self._news = self._news, []
        for number, entry in enumerate(news, 1):
            if number % BREATH == 0:
                tasks.sleep(0)  # whoever begins to follow gets all that the log holds, which may be minutes of it
            if type(entry) is Append:
                _alone(self.live.apply, entry)
            else:
                _alone(self.on_stop if type(entry) is Stop else self.on_leave, entry)

    def _turn(
        self, lease: Lease, entries: list[Append], endings: list[Ending], follow: bool, looked_for: bool
    ) -> tuple[LogUnavailable | None, bool]:
        """Append, then see what is new, also where nothing could be appended. See `_commit`."""
        refused: LogUnavailable | None = None
        try:
            if follow and not self._following:
                self._news = self.log.follow()
                self._following = True
            self._news.extend(self.log.turn(lease, entries, endings))
        except LogUnavailable as error:
            refused = error.bare()
            refused.finished = self.log.without(entries)
        # A turn that appends must not fail over what it reads, so it does not say either whether it could read; and one
        # of a log that tells has not looked.
        if (refused is not None or (looked_for and (entries or self.log.tells))) and not self._read_on():
            return refused, False
        return refused, self._following or not follow

    def _read_on(self) -> bool:
        """:returns: whether it could be read."""
        try:
            self._news.extend(self.log.turn(None, [], []))
        except LogUnavailable:
            return False
        return True

    def _publish(self, feed: Feed, frames: list[bytes], ended: bool) -> None:
        feed.backlog = sum(map(len, feed.pending))
        feed.live.extend(frames, ended)
        if ended:
            self.feeds.pop(feed.begun.run_id, None)
            self.live.drop(feed.live)
        feed.live.wake()
        if ended and feed.terminal is not None:
            self.metrics.reply_ended(feed.terminal, feed.started_at, feed.first_at)
            self.on_ended(feed)

    def _stop_following(self) -> None:
        if self._following:
            self._following = False
            self.log.unfollow()
            self.live.drop_foreign()


def _alone(function: Callable[..., object], *args: object) -> None:
    """Call what must not keep the tick from the rest of its work: see 6."""
    try:
        function(*args)
    except Exception:
        logger.exception("a part of a tick failed; the rest goes on")

"""The life of a run: start, the attempts to open its source, deadlines, Stop, the drain.

A run belongs to a worker, not to a request: the client may leave. What happens between its start and its terminal
event is the pump's; here stands who decides that it ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from . import metrics, tasks
from .config import Settings
from .errors import (
    ModelBusy,
    ModelError,
    ModelTimeout,
    ModelTooSlow,
    ModelUnreachable,
    NotFound,
    ReplyNotKept,
    Unavailable,
)
from .feed import Feed
from .live import Live, LiveRun
from .log.base import Stop, clock
from .models import Interrupted, Request, Stopped, Terminal
from .providers.base import Provider
from .pump import Pump
from .readers import Readers
from .store.base import Begun, Command, Fenced, Lease, RunRow
from .store.lease import Holding
from .store.sql import Store
from .sweep import orphaned
from .titles import Titles

logger = logging.getLogger("flaskchat")

STOP_PATIENCE = 15.0
"""Seconds a Stop waits for the run's end; a worker that is gone is noticed within them."""
STOP_AGAIN = 2.0
"""Seconds after which a worker that has not ended its run is told of the Stop once more."""
FORGET_STOP = 30.0
GIVE_UP = 12.0
"""Seconds without a usable log after which replies are given up: a lock of ten is waited out, and the promised end
comes within fifteen, or with the log."""

LEAVING = "The server was restarted while it wrote this reply. What it had written is kept."


class Models(Protocol):
    """The choice of models, as the registry makes it."""

    def resolve(self, model_id: str) -> tuple[Provider, str]:
        """The provider of a model id, and the model's name there."""

    def pick(self, asked: str | None, before: str | None) -> str:
        """The model that answers: the one asked for, else the conversation's, else the default.

        :raises Invalid: the one asked for is not offered.
        """


class Runs:
    """The runs of one worker."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        live: Live,
        pump: Pump,
        readers: Readers,
        holding: Holding,
        models: Models,
    ) -> None:
        self._settings = settings
        self._store = store
        self._live = live
        self._pump = pump
        self._readers = readers
        self._holding = holding
        self._models = models
        self._starting: list[float] = []
        """When the starts that are under way were entered (monotonic)."""
        self._missing: dict[str, float] = {}
        """Runs that the store has under our lease and the pump has not, and when that was first seen (monotonic)."""
        self._early_stops: dict[str, float] = {}
        """Stops that came before their run was here, and when (monotonic)."""
        self._titles = Titles(store, models.resolve, pump.touch) if settings.titles else None
        self._queued = 0
        """Bytes of all replies that are being written here, when they were looked at last."""
        self._drain_until: float | None = None
        self.on_started: Callable[[Feed], object] | None = None
        """Called when a run has begun; must not wait."""
        pump.checks.append(self.check)
        pump.on_stop = self._stop_asked
        pump.on_fenced = self.fenced

    def busy(self) -> bool:
        return bool(self._pump.feeds)

    def _full(self) -> bool:
        s = self._settings
        return len(self._pump.feeds) + len(self._starting) >= s.max_runs or self._queued > s.max_queued_bytes

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self, owner: str, command: Command) -> tuple[Begun, LiveRun | None]:
        """Carry a command out: one generation per client id, however often it is repeated.

        :returns: the run, and its events where this call began it.
        :raises RequestError: with a code of README.md (*The codes of errors*); always before any call to a model.
        """
        if self._readers.leaving or self._full():
            known = self._store.known(owner, command)
            if known is not None:
                return known, None
            if self._readers.leaving:
                raise Unavailable("This worker is leaving; try again.", code="draining", retry_after=1)
            raise Unavailable("As many replies as fit are being written.", code="full", retry_after=5)
        entered = time.monotonic()
        self._starting.append(entered)
        try:
            return self._start(owner, command)
        finally:
            self._starting.remove(entered)

    def _start(self, owner: str, command: Command) -> tuple[Begun, LiveRun | None]:
        for _ in range(3):
            lease = self._holding.lease
            try:
                begun = self._store.begin(
                    owner, command, self._holding, lambda before: self._models.pick(command.model, before)
                )
                break
            except Fenced:
                self.fenced(lease)
        else:
            raise Unavailable("This worker could not renew its lease.", code="store_unavailable", retry_after=2)
        if not begun.created or begun.lease != self._holding.lease:  # taken over meanwhile: it is ended elsewhere
            return begun, None
        if self._titles is not None:
            self._titles.drop(begun.conversation_id)
        feed = self._feed(begun, self._live.add(LiveRun(begun.run_id, own=True)))
        self._pump.add(feed)
        stopped_at = self._early_stops.pop(begun.run_id, None)
        try:
            if self.on_started is not None:
                self.on_started(feed)
        except Exception:  # whoever is not told of it costs nobody the reply
            logger.exception("run %s: its start could not be told", begun.run_id)
        try:
            if stopped_at is None:
                tasks.spawn(self._open, feed, name="flaskchat-open")
        except RuntimeError as error:  # no thread is to be had, in a server of threads: nobody would ask the model
            self.end(feed, feed.blame(ModelError(f"it could not be started: {error}")))
        if stopped_at is not None:
            self.end(feed, Stopped(), stopped_at)
        return begun, feed.live

    def _feed(self, begun: Begun, live: LiveRun) -> Feed:
        return Feed(begun, live, self._settings.max_reply_bytes, log_words=self._settings.log_model_errors)

    def claim(self) -> None:
        """End the runs that the store has under our lease and the pump has not; called every round of the sweep.

        Their start died after its commit: the request's greenlet was killed, or the commit stood though it was reported
        as failed. Or they had ended, and the database has lost that with a failover: the log may know. As long as we
        count up, nobody else ends them.
        """
        lease = self._holding.lease
        under = self._store.running_under(lease) if self._holding.registered else []
        missing = [begun.run_id for begun in under if begun.run_id not in self._pump.feeds]
        self._missing = {run_id: self._missing.get(run_id, time.monotonic()) for run_id in missing}
        # Only a start that was entered before a run was missed can add it yet.
        under_way = min(self._starting, default=math.inf)
        lost = {run_id for run_id, since in self._missing.items() if since < under_way}
        if lost:  # asked again: some were missing because they had just ended
            lost &= {begun.run_id for begun in self._store.running_under(lease)} - self._pump.feeds.keys()
        if not lost:
            return
        with contextlib.suppress(Unavailable):  # the log; the next round tries again
            past = self._pump.log.past(lost)
            for run_id in self._pump.log.end(self._store.database.read(partial(orphaned, past=past))):
                logger.warning("run %s: its start died, or its end was lost; ended as the log has it", run_id)

    def _open(self, feed: Feed) -> None:
        """Ask the model, as often as is allowed before its first byte. In a task of its own."""
        try:
            self._attempt(feed)
        except ModelError as error:
            feed.decide(feed.blame(error))
        except Exception:
            logger.exception("run %s: its source could not be opened", feed.begun.run_id)
            feed.decide(feed.blame(ModelError("opening the source failed")))
        self._pump.touch(feed)

    def _attempt(self, feed: Feed) -> None:
        begun = feed.begun
        provider, name = self._models.resolve(begun.model)
        request = Request(
            model=name, turns=begun.turns, system_prompt=begun.system_prompt or self._settings.system_prompt,
            partial=begun.partial, conversation_id=begun.conversation_id, message_id=begun.message_id,
            run_id=begun.run_id, owner=begun.owner,
        )  # fmt: skip
        deadline = feed.started_at + self._settings.first_byte_timeout
        for attempt in range(self._settings.retries + 1):
            source = provider.source(request)
            if hasattr(source, "on_ready"):
                source.on_ready = lambda: self._pump.touch(feed)
            feed.source = source
            if feed.over():  # stopped while no source was there to close
                feed.close_source()
                return
            try:
                source.open()
            except (ModelBusy, ModelUnreachable) as error:
                source.close()
                delay = error.retry_after
                if delay is None:
                    delay = min(8.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
                if feed.over() or attempt == self._settings.retries or time.monotonic() + delay > deadline:
                    raise
                logger.info("run %s: %s, trying again in %.1f s", begun.run_id, error.code, delay)
                feed.bell = tasks.Event()
                feed.source = None
                if not feed.over():
                    feed.bell.wait(delay)
                feed.bell = None
                if feed.over():
                    return
            else:
                self._pump.watch(feed)
                if self._titles is not None:
                    self._titles.begin(feed)
                return

    # -- the end, decided from outside -----------------------------------------------------------------------------

    def end(self, feed: Feed, terminal: Terminal, asked_at: float | None = None) -> None:
        """End a run of this worker now.

        :param asked_at: monotonic time of the Stop, from which the closing of the model's connection is measured.
        """
        if feed.over():
            return  # whoever was first closes the source, and the verdict waits for that
        feed.closing = True
        try:
            if feed.decide(terminal):
                if self._titles is not None:
                    self._titles.drop(feed.begun.conversation_id)
                closed = self._pump.let_go(feed)
                if closed and asked_at is not None:
                    feed.upstream_closed_ms = round(max(0.0, time.monotonic() - asked_at) * 1000, 1)
        finally:  # a request's time may be over while it waits here: the verdict stands, and nobody else carries it out
            feed.closing = False
            self._pump.touch(feed)

    def stop(self, run_id: str, owner: str) -> RunRow:
        """Stop a run, on whatever worker it is, and wait for its end.

        :raises NotFound: no such run, or not this owner's.
        """
        asked_at = time.monotonic()
        feed = self._pump.feeds.get(run_id)
        if feed is not None and feed.begun.owner == owner:
            self.end(feed, Stopped(), asked_at)  # before the store is asked, which may be slow, or away
        row = self._row(run_id, owner)
        asked = False
        # Of a run of ours also the log has to have its end: what is deleted next must not be written after that.
        while (row.state == "running" or run_id in self._pump.feeds) and time.monotonic() - asked_at < STOP_PATIENCE:
            feed = self._pump.feeds.get(run_id)
            if feed is None and row.state != "running":
                break  # its end has just come
            if feed is None:
                with contextlib.suppress(*[Unavailable] if asked else []):
                    self._pump.log.announce(Stop(run_id, asked_at, clock()))
                asked = True  # and again each time: a log that has failed over may have lost it
            run = feed.live if feed is not None else self._readers.bring(run_id)
            ended = _Ended(run)
            self._pump.attend(run, ended)
            try:
                if feed is not None:
                    self.end(feed, Stopped(), asked_at)
                ended.wait(STOP_AGAIN)
            finally:
                self._live.unwatch(run, ended)
            row = self._row(run_id, owner)
        return row

    def _row(self, run_id: str, owner: str) -> RunRow:
        row = self._store.run(run_id, owner)
        if row is None:
            raise NotFound("There is no such run.")
        return row

    def _stop_asked(self, stop: Stop) -> None:
        # First: whoever adds the run meanwhile looks here after that, so that one of the two sees the other.
        self._early_stops[stop.run_id] = stop.here()
        feed = self._pump.feeds.get(stop.run_id)
        if feed is not None:
            self._end_beside(feed, Stopped(), stop.here())
            self._early_stops.pop(stop.run_id, None)

    def _end_beside(self, feed: Feed, terminal: Terminal, asked_at: float | None = None) -> None:
        """Not in the pump's own task: closing a generator may wait a moment, and there may be hundreds of them."""
        tasks.spawn(self.end, feed, terminal, asked_at)

    def fenced(self, lease: Lease) -> None:
        """The lease is lost: forget what was under it, and take another."""
        if self._holding.renew(lease):
            logger.warning(
                "the lease %s was taken over while this worker was held up; its runs are ended", lease.worker_id
            )
            self._pump.metrics.add(metrics.LEASES_LOST)
            self._pump.abandon()

    # -- looked at by the pump -------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        s = self._settings
        feeds = list(self._pump.feeds.values())  # others may add to them
        self._queued = sum(feed.held() for feed in feeds)
        for feed in feeds:
            if feed.over():
                continue
            refused = self._pump.unavailable_since
            late: ModelError | None = None
            if refused is not None and now - refused > GIVE_UP:
                late = ReplyNotKept(f"the log could not be used for {GIVE_UP:g} s")
            elif now - feed.started_at > s.run_timeout:
                late = ModelTooSlow(f"the reply took more than {s.run_timeout:g} s")
            elif not feed.heard and now - feed.started_at > s.first_byte_timeout:
                late = ModelTimeout(f"nothing came within {s.first_byte_timeout:g} s")
            elif feed.heard and now - feed.heard_at > s.gap_timeout and self._pump.unavailable_since is None:
                late = ModelTimeout(f"silent for {s.gap_timeout:g} s")
            if late is not None:
                self._end_beside(feed, feed.blame(late))
            elif self._drain_until is not None and now >= self._drain_until:
                self._end_beside(feed, Interrupted(LEAVING))
        if self._titles is not None:
            self._titles.check(now)
        for run_id, asked_at in list(self._early_stops.items()):
            if now - asked_at > FORGET_STOP:
                del self._early_stops[run_id]

    def drain(self) -> None:
        """The worker is going: take nothing new, and end what is not done when the drain's time is over."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._settings.drain

    def drained(self, now: float) -> bool:
        """Whether the drain's time is over."""
        return self._drain_until is not None and now >= self._drain_until

    def wait(self, followed: Callable[[], bool]) -> None:
        """Until no run is left here and none elsewhere is `followed` from here, at most the rest of the drain's time;
        and for our own, a moment for the last commit.
        """
        assert self._drain_until is not None
        if self._titles is not None:
            self._titles.close()
        while time.monotonic() < self._drain_until + 2.0:
            if not self.busy() and (self.drained(time.monotonic()) or not followed()):
                return
            tasks.sleep(0.02)


class _Ended:
    """A bell that rings once its run has ended or is closed."""

    def __init__(self, run: LiveRun) -> None:
        self._event = tasks.Event()
        self._run = run

    def wake(self) -> None:
        if self._run.ended or self._run.closed:
            self._event.set()

    def wait(self, timeout: float) -> None:
        self.wake()
        self._event.wait(timeout)

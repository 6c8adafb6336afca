"""Everything of one application that lives in one worker process: opened at first use, after the fork; closed at exit.

The only place where the rooms below are put together.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from . import forget, memory, metrics, server, tasks
from .bodies import Bodies
from .config import Settings
from .errors import Unavailable
from .limits import Limits
from .live import Live
from .log.open import open_log
from .nodes import Nodes
from .places import Places
from .pump import Pump
from .readers import Readers
from .rechecks import Rechecks, Still
from .runs import Models, Runs
from .store import migrate
from .store.kinds import open_database
from .store.lease import Holding
from .store.sql import Store
from .store.usage import Quota
from .sweep import Sweeper
from .watch import Watch

logger = logging.getLogger("flaskchat")

QUIET = 5.0
"""Seconds without a reply and without a reader after which a rush is taken to be over."""
START_AGAIN = 1.0
"""Seconds between looks at a database that could not be used at the start."""


class Runtime:
    """:param url: of the database.
    :param still: whether a request with this WSGI environment would be this owner's now; absent: nobody is asked again.
    :raises ConfigurationError: the database or the server's kind of worker cannot be used.
    """

    def __init__(self, settings: Settings, url: str, models: Models, still: Still | None = None) -> None:
        self.settings = settings
        self.models = models
        self.pid = os.getpid()
        self.worker: Any = server.gunicorn_worker()
        if self.worker is not None:
            server.refuse_sync(self.worker)
        self.watch = Watch(settings.hub_limit)
        self.watch.start()  # first: the start must not hold the hub either
        self.database = open_database(url, timeout=settings.database_timeout)
        try:
            self.database.offload(migrate.upgrade, self.database)
        except BaseException:
            self.database.close()  # its threads: whoever comes next tries again
            self.watch.close()
            raise
        quota = Quota(settings.max_runs_per_owner, settings.messages_per_minute, settings.tokens_per_day)
        self.store = Store(self.database, quota)
        self.places = Places(self.database.places)
        self.nodes = None
        if self.database.kind == "postgresql":
            self.nodes = Nodes(self.database, self.places, lambda host, holder: self.places.gone(host, alive(holder)))
            self._mark(self.nodes.holder)
        self.limits = Limits(settings, self.places, self.nodes)
        self.metrics = metrics.Metrics(self.database.places)
        self.live = Live(settings.live_bytes)
        self.holding = Holding(self._mark, self.places.host)
        self.log = open_log(settings, self.database, self.live)
        self.pump = Pump(
            self.log,
            self.live,
            lambda: self.holding.lease,
            check_period=min(0.5, max(0.02, settings.heartbeat / 5)),
            counts=self.metrics,
        )
        self.readers = Readers(
            settings, self.pump, self.live, self.store, self.limits,
            capacity=settings.max_streams or server.capacity(self.worker),
        )  # fmt: skip
        self.bodies = Bodies(self.pump, settings.body_timeout, server.waiting(self.worker))
        self.rechecks = Rechecks(self.readers, still or (lambda environ, owner: True))
        self.runs = Runs(settings, self.store, self.live, self.pump, self.readers, self.holding, models)
        self.sweeper = Sweeper(
            self.database, self.log, self.holding, busy=self.runs.busy, on_fenced=self.runs.fenced,
            gone=lambda host, worker_id: self.places.gone(host, alive(worker_id)), claim=self.runs.claim,
            look_after=self.readers.look_after,
            chores=lambda: forget.chores(self.database, settings.retention_days),
            counts=self.metrics,
        )  # fmt: skip
        self.pump.checks.append(self._check)
        self._holds = (0, 0.0)
        """What the watch had found when it was counted last."""
        self._worked_at: float | None = None
        """When a reply or a reader was here last, unless what they needed was given back since."""
        self._closed = False

    def _mark(self, name: str) -> Callable[[], object]:
        place = self.places.take(alive(name), 1)
        return place.release if place is not None else lambda: None

    def start(self) -> None:
        self.log.start()
        self.pump.start()
        self.sweeper.start()
        if self.nodes is not None:
            self.nodes.start()
        self.rechecks.start()
        atexit.register(self.close)
        logger.info("flaskchat: %s", self.database.describe())
        if self.worker is not None:
            server.warn_of_drain(self.worker, self.settings.drain)

    def _check(self, now: float) -> None:
        holds, held = self.watch.holds, self.watch.held_seconds
        if holds != self._holds[0]:
            self.metrics.add(metrics.HUB_HOLDS, amount=holds - self._holds[0])
            self.metrics.add(metrics.HUB_HELD, amount=held - self._holds[1])
            self._holds = (holds, held)
        if self.runs.busy() or self.readers:
            self._worked_at = now
        elif self._worked_at is not None and now - self._worked_at > QUIET:
            self._worked_at = None
            tasks.spawn(self.database.offload, memory.give_back)
        if self.worker is not None and not self.worker.alive and not self.readers.leaving:
            self.drain()
        elif self.runs.drained(now):
            self.readers.part()

    def drain(self) -> None:
        """The worker is told to leave: it begins nothing new, and runs and streams get the drain's time."""
        self.runs.drain()
        self.readers.leave()

    def close(self) -> None:
        """Finish the runs within the drain's time, end the others as interrupted, and let go of everything."""
        if self._closed or os.getpid() != self.pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.drain()
        self.runs.wait(self.readers.followed)
        self.readers.part()
        self.sweeper.close()
        self.rechecks.close()
        self.log.stop()
        self.pump.close(2.0)
        self._release()
        self.live.close()
        if self.nodes is not None:
            self.nodes.close()
        self.places.close()
        self.metrics.close()
        self.database.close()
        self.watch.close()

    def _release(self) -> None:
        try:
            self.database.write(self.holding.release)
        except Exception:
            logger.warning("the lease could not be given back; others will find it expired")


def alive(name: str) -> str:
    """The key of the place that shows that the process which holds this name is alive."""
    return f"lease {name}"


class Lazy:
    """A runtime that is opened by whoever needs it first, once per process."""

    def __init__(self, make: Callable[[], Runtime]) -> None:
        self._make = make
        self._runtime: Runtime | None = None
        self._locks: dict[int, AbstractContextManager[object]] = {}
        """By process. The application may be loaded before a fork, and before gevent patches; a lock of that time would
        hold the hub of the worker for whoever comes second.
        """
        self._closed = False

    def get(self) -> Runtime:
        runtime = self.opened
        if runtime is not None:
            return runtime
        with self._locks.setdefault(os.getpid(), tasks.Lock()):
            if self._runtime is None or self._runtime.pid != os.getpid():
                runtime = self._make()
                runtime.start()
                self._runtime = runtime
            assert self._runtime is not None
            return self._runtime

    @property
    def opened(self) -> Runtime | None:
        """What `get` returns, where somebody has needed it before."""
        runtime = self._runtime
        return runtime if runtime is not None and runtime.pid == os.getpid() else None

    def start(self) -> None:
        """Open it now. A database that cannot be used at the moment is waited for beside: a worker that failed to boot
        would make gunicorn end all of them.

        :raises ConfigurationError: see `Runtime`.
        """
        self._closed = False
        try:
            self.get()
        except Unavailable:
            tasks.spawn(self._wait, name="flaskchat-start")

    def _wait(self) -> None:
        while self._runtime is None and not self._closed:
            tasks.sleep(START_AGAIN)
            try:
                self.get()
            except Unavailable:
                pass
            except Exception:
                logger.exception("the chat cannot be opened")
                return

    def close(self) -> None:
        """Close what this process opened; the next use opens it anew."""
        self._closed = True
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

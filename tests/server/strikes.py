"""The faults of a chaos run: which come when, as a function of the seed, and how each is done to the nodes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import gevent
import psutil

from tests.conftest import Server
from tests.sentinel import MOST_BEHIND, Pair
from tests.server.checks import database, write_lock
from tests.server.history import History
from tests.server.nodes import kill

FAULTS = {"kill -9": 4, "SIGTERM": 3, "SIGHUP": 3, "SIGSTOP": 3, "lock": 3}
OF_POSTGRES = {"postgres restart": 2, "postgres kill": 2, "postgres cut": 2}
OF_REDIS = {"redis restart": 2, "redis kill": 2, "redis freeze": 2, "redis flushall": 2, "redis rollback": 2}
OF_SENTINEL = {"redis failover": 4, "redis flushall": 2}
"""More faults, where the backend has these servers."""
OF_NODES = {"node kill": 3}
"""And where there are several nodes."""
LASTING = ("SIGSTOP", "lock", "redis freeze", "redis rollback", "redis failover", "node kill")
PATIENCE = 2.0
"""Seconds after which a lock that is not had is taken to be held by a stopped process."""


class Planned(NamedTuple):
    at: float
    """Seconds from the beginning."""
    what: str
    victim: int
    lasts: float


def faults_of(backend: str, nodes: int = 1) -> dict[str, int]:
    """What may be done where the data is there, and how often."""
    found = FAULTS | (OF_POSTGRES if "postgres" in backend else {}) | (OF_REDIS if "redis" in backend else {})
    found |= OF_SENTINEL if "sentinel" in backend else {}
    return found | (OF_NODES if nodes > 1 else {})


def plan(seed: int, seconds: float, backend: str = "sqlite", nodes: int = 1) -> list[Planned]:
    """The faults of a run. None begins before the last has ended, nor so late that it could not be outlived."""
    faults = faults_of(backend, nodes)
    dice = random.Random(f"faults of {seed}")
    found: list[Planned] = []
    at = dice.uniform(2, 5)
    while at < seconds:
        what = dice.choices(list(faults), list(faults.values()))[0]
        lasts = dice.choice((0.5, 2.0, 5.0, 9.0)) if what in LASTING else 0.0
        if what == "SIGSTOP" and dice.random() < 0.3:
            lasts = 20.0  # for longer than its lease lasts, also where the other worker counts slowly
        found.append(Planned(round(at, 2), what, dice.randrange(8), min(lasts, max(0.5, seconds - at))))
        at += found[-1].lasts + dice.uniform(1.5, 6.0)
    return found


def writable(server: Server, patience: float = PATIENCE) -> bool:
    """Whether anybody can write to the database within so many seconds."""
    if server.backend.postgres is not None:
        return True  # whoever stands still within a transaction is cut off by the server
    with contextlib.closing(sqlite3.connect(database(server), timeout=patience, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


class Strikes:
    """Does what is planned to the nodes and their data, and writes it down."""

    def __init__(self, nodes: Sequence[Server], history: History, say: Callable[[str], None]) -> None:
        self.nodes, self.history, self.say = nodes, history, say
        self.backend = nodes[0].backend

    def strike(self, fault: Planned, turns: int) -> None:
        """:param turns: of the clients until now, to be told."""
        workers = sorted(pid for node in self.nodes for pid in node.workers())
        if not workers:
            return
        victim = workers[fault.victim % len(workers)]
        node = self.nodes[fault.victim % len(self.nodes)]
        whom = f"the node at {node.port}" if fault.what in ("node kill", "SIGHUP") else str(victim)
        self.say(f"{fault.what} {fault.lasts or ''} of {whom} ({len(workers)} workers, {turns} turns)")
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if fault.what == "kill -9":
                self.history.fault(fault.what, victim)
                psutil.Process(victim).kill()
            elif fault.what == "SIGTERM":
                self.history.fault(fault.what, victim)
                psutil.Process(victim).terminate()
            elif fault.what == "SIGHUP":
                for pid in node.workers():
                    self.history.fault(fault.what, pid)
                os.kill(node.process.pid, signal.SIGHUP)
            elif fault.what == "SIGSTOP":
                self.stop(victim, fault.lasts)
            elif fault.what == "lock":
                with write_lock(node):
                    struck = self.history.fault(fault.what)
                    gevent.sleep(fault.lasts)
                self.history.healed(struck)
            elif fault.what == "node kill":
                kill(self.history, node)
                gevent.sleep(fault.lasts)
                node.start()
            elif fault.what == "redis failover":
                self.fail_over(victim if fault.victim % 2 else None, fault.lasts)
            else:
                struck = self.history.fault(fault.what)
                self.strike_data(fault)
                self.history.healed(struck)

    def stop(self, victim: int, lasts: float) -> None:
        struck = [self.history.fault("SIGSTOP", victim)]
        psutil.Process(victim).suspend()
        try:
            until = time.monotonic() + lasts
            if lasts > PATIENCE and not gevent.get_hub().threadpool.apply(writable, (self.nodes[0],)):
                # Stopped within a transaction: as long as it holds the lock nobody can end its runs.
                self.say(f"{victim} was stopped while it held the database's lock")
                struck.append(self.history.fault("lock"))
            gevent.sleep(max(0.0, until - time.monotonic()))
        finally:
            psutil.Process(victim).resume()
            for one in struck:
                self.history.healed(one)

    def fail_over(self, victim: int | None, behind: float) -> None:
        """:param victim: a worker that dies with the master: nobody is left who could write its replies again.
        :param behind: for how many seconds the replica has heard nothing.
        """
        redis = self.backend.redis
        assert isinstance(redis, Pair)
        struck = self.history.fault("redis failover")
        redis.cut()
        gevent.sleep(min(behind, MOST_BEHIND))
        redis.kill()
        if victim is not None:
            self.history.fault("kill -9", victim)
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(victim).kill()
        redis.promote()
        self.history.healed(struck)  # what was to be lost is lost: nothing that begins now is excused
        redis.start()

    def strike_data(self, fault: Planned) -> None:
        """Do something to PostgreSQL or Redis."""
        server, what = fault.what.split()
        postgres, redis = self.backend.postgres, self.backend.redis
        struck = postgres if server == "postgres" else redis
        assert struck is not None
        if what == "cut":
            assert postgres is not None
            postgres.terminate(self.backend.database)
        elif what == "restart":
            struck.restart()
        elif what == "kill":
            struck.kill()
            struck.start()
        elif what == "flushall":
            assert redis is not None
            redis.command("FLUSHALL")
        elif what == "rollback":
            assert redis is not None
            with redis.losing():
                gevent.sleep(fault.lasts)
        else:
            struck.freeze()
            time.sleep(fault.lasts)
            struck.thaw()

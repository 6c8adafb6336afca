"""A chaos run: two workers, hundreds of clients, a random fault every few seconds, the checker at the end.

    python -m tests.chaos --seconds 300 --seed 7 --clients 300        --plan prints what would be done, and does nothing
    python -m tests.chaos --seconds 300 --backend postgres+redis      the database servers are struck as well

Which faults come when, and what every client does turn after turn, is a function of the seed; so a run is replayed from
its seed, up to the timing that the machine adds. Ends with 0 where nothing was violated, else it prints all that was.

A long run is several after each other, `--round` seconds each, with the seeds that follow: each is replayed alone.
"""

if __name__ == "__main__":  # hundreds of clients in one process; first, before anything else is imported
    from gevent import monkey

    monkey.patch_all()

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import psutil

from tests.backends import READY, Backend, Servers, opened
from tests.conftest import Server, holds_of_hub
from tests.server import badmodel
from tests.server.chatter import OURS, Chatter, Crowd, turn_of
from tests.server.checker import IN_TIME, check
from tests.server.checks import FAULTY, database, write_lock
from tests.server.dump import Dump, Gauge, Tap, not_back
from tests.server.history import History

FAULTS = {"kill -9": 4, "SIGTERM": 3, "SIGHUP": 3, "SIGSTOP": 3, "lock": 3}
OF_POSTGRES = {"postgres restart": 2, "postgres kill": 2, "postgres cut": 2}
OF_REDIS = {"redis restart": 2, "redis kill": 2, "redis freeze": 2}
"""More faults, where the backend has these servers."""
SETTINGS = {
    "FLASKCHAT_MODEL": "openai:fake",
    "FLASKCHAT_TITLES": "no",  # a question for a title would be counted as well
    "FLASKCHAT_HEARTBEAT": "2",
    "FLASKCHAT_DRAIN": "3",
    "FLASKCHAT_GAP_TIMEOUT": "4",
    "FLASKCHAT_FIRST_BYTE_TIMEOUT": "5",
    "SECRET_KEY": "chaos",
}
PATIENCE = 2.0
"""Seconds after which a lock that is not had is taken to be held by a stopped process."""
NOISE = Gauge(workers=0, descriptors=12, greenlets=8, memory=60 << 20, wal=8 << 20, model=0)
"""What may be left of a chaos run: connections of SQLite that its busiest moment had opened, and the allocator's."""


def writable(server: Server) -> bool:
    """Whether anybody can write to the database."""
    if server.backend.postgres is not None:
        return True  # whoever stands still within a transaction is cut off by the server
    with contextlib.closing(sqlite3.connect(database(server), timeout=PATIENCE, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


class Planned(NamedTuple):
    at: float
    """Seconds from the beginning."""
    what: str
    victim: int
    lasts: float


def faults_of(backend: str) -> dict[str, int]:
    """What may be done where the data is there, and how often."""
    return FAULTS | (OF_POSTGRES if "postgres" in backend else {}) | (OF_REDIS if "redis" in backend else {})


def plan(seed: int, seconds: float, backend: str = "sqlite") -> list[Planned]:
    """The faults of a run. None begins before the last has ended, nor so late that it could not be outlived."""
    faults = faults_of(backend)
    dice = random.Random(f"faults of {seed}")
    found: list[Planned] = []
    at = dice.uniform(2, 5)
    while at < seconds:
        what = dice.choices(list(faults), list(faults.values()))[0]
        lasts = dice.choice((0.5, 2.0, 5.0, 9.0)) if what in ("SIGSTOP", "lock", "redis freeze") else 0.0
        if what == "SIGSTOP" and dice.random() < 0.3:
            lasts = 20.0  # for longer than its lease lasts, also where the other worker counts slowly
        found.append(Planned(round(at, 2), what, dice.randrange(8), min(lasts, max(0.5, seconds - at))))
        at += found[-1].lasts + dice.uniform(1.5, 6.0)
    return found


class Chaos:
    def __init__(
        self, options: argparse.Namespace, seed: int, folder: Path, model: badmodel.Running, backend: Backend
    ) -> None:
        self.seed, self.clients, self.in_time, self.model = seed, options.clients, options.in_time, model
        self.history = History()
        settings: dict[str, Any] = {**SETTINGS, "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1"}
        args = ["--graceful-timeout", "8"]
        self.server = Server(folder, settings, workers=2, kind="gevent", app=FAULTY, args=args, backend=backend)
        self.crowd = Crowd(self.history, self.server.port, seed)
        self.began_at = time.monotonic()

    def run(self, seconds: float) -> list[str]:
        """:returns: all that is wrong, in words."""
        self.warm_up()
        before = Gauge.of(self.server, self.model)
        self.say(f"before: {before}")
        with Tap(self.server) as tap:
            self.began_at = time.monotonic()
            chatters = [gevent.spawn(Chatter(self.crowd, number).run) for number in range(self.clients)]
            for fault in plan(self.seed, seconds, self.server.backend.name):
                gevent.sleep(max(0.0, self.began_at + fault.at - time.monotonic()))
                self.strike(fault)
            gevent.sleep(max(0.0, self.began_at + seconds - time.monotonic()))
            self.say("the end: clients finish what they have begun")
            self.crowd.closing = True
            gevent.joinall(chatters, timeout=120)
            found = [f"end: {sum(not c.dead for c in chatters)} clients are still waiting"] * any(
                not chatter.dead for chatter in chatters
            )
            found += [f"a client failed: {chatter.exception!r}" for chatter in chatters if chatter.exception]
            gevent.killall(chatters)
            self.quiet()
            left = self.wait_back(before)
        dump = Dump.of(self.server, tap)
        self.tell(dump)
        found += map(str, [*self.crowd.found, *check(self.history, dump, self.model.stats(), in_time=self.in_time)])
        return [*found, *left, *self.logged()]

    def warm_up(self) -> None:
        """What a worker opens and imports once is not left over from a fault."""
        crowd = Crowd(History(), self.server.port, -1 - self.seed)
        chatters = [gevent.spawn(Chatter(crowd, number).run) for number in range(min(self.clients, 40))]
        gevent.sleep(3)
        crowd.closing = True
        gevent.joinall(chatters, timeout=60)
        self.quiet()

    def quiet(self) -> None:
        """Until no run is left."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if all(run.state != "running" for run in Dump.of(self.server).runs.values()):
                return
            gevent.sleep(0.2)

    def wait_back(self, before: Gauge) -> list[str]:
        until = time.monotonic() + 30
        while True:
            after = Gauge.of(self.server, self.model)
            left = not_back(before, after, NOISE)
            if not left or time.monotonic() > until:
                self.say(f"after: {after}")
                return left
            gevent.sleep(0.5)

    def in_shape(self) -> None:
        """Until two workers serve: what is struck down while it starts, again and again, shows nothing.

        So it is the machine that sets the pace of the faults, where it is slow; their order is the seed's.
        """
        seen: set[int] = set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            client = self.crowd.client()
            with contextlib.suppress(*OURS):
                stream = client.get("/plain")
                stream.response.read()
                seen.add(stream.worker)
            client.close()
            if len(seen & set(self.server.workers())) >= 2:
                return
            gevent.sleep(0.05)

    def strike(self, fault: Planned) -> None:
        self.in_shape()
        workers = sorted(self.server.workers())
        if not workers:
            return
        victim = workers[fault.victim % len(workers)]
        self.say(f"{fault.what} {fault.lasts or ''} of {victim} ({len(workers)} workers, {self.crowd.turns} turns)")
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if fault.what == "kill -9":
                self.history.fault(fault.what, victim)
                psutil.Process(victim).kill()
            elif fault.what == "SIGTERM":
                self.history.fault(fault.what, victim)
                psutil.Process(victim).terminate()
            elif fault.what == "SIGHUP":
                for pid in workers:
                    self.history.fault(fault.what, pid)
                os.kill(self.server.process.pid, signal.SIGHUP)
            elif fault.what == "SIGSTOP":
                struck = [self.history.fault(fault.what, victim)]
                psutil.Process(victim).suspend()
                try:
                    until = time.monotonic() + fault.lasts
                    if fault.lasts > PATIENCE and not gevent.get_hub().threadpool.apply(writable, (self.server,)):
                        # Stopped within a transaction: as long as it holds the lock nobody can end its runs.
                        self.say(f"{victim} was stopped while it held the database's lock")
                        struck.append(self.history.fault("lock"))
                    gevent.sleep(max(0.0, until - time.monotonic()))
                finally:
                    psutil.Process(victim).resume()
                    for one in struck:
                        self.history.healed(one)
            elif fault.what == "lock":
                with write_lock(self.server):
                    struck = self.history.fault(fault.what)
                    gevent.sleep(fault.lasts)
                self.history.healed(struck)
            else:
                struck = self.history.fault(fault.what)
                self.strike_data(fault)
                self.history.healed(struck)

    def strike_data(self, fault: Planned) -> None:
        """Do something to PostgreSQL or Redis."""
        server, what = fault.what.split()
        backend = self.server.backend
        struck = backend.postgres if server == "postgres" else backend.redis
        assert struck is not None
        if what == "cut":
            assert backend.postgres is not None
            backend.postgres.terminate(backend.database)
        elif what == "restart":
            struck.restart()
        elif what == "kill":
            struck.kill()
            struck.start()
        else:
            struck.freeze()
            time.sleep(fault.lasts)
            struck.thaw()

    def logged(self) -> Iterator[str]:
        """What a server that behaves has not in its log."""
        log = self.server.log()
        for hold in holds_of_hub(log):
            yield f"hub: {hold}"
        for match in re.finditer(r"Traceback \(most recent call last\):\n(?:  [^\n]*\n)*[^\n]*", log):
            if not match[0].endswith("greenlet.GreenletExit"):  # how gunicorn ends a connection that says nothing
                yield f"log: {match[0]}"
        for line in log.splitlines():
            if "WORKER TIMEOUT" in line or "will be killed" in line:
                yield f"log: {line}"

    def tell(self, dump: Dump) -> None:
        """How much was tried, so that a run in which nothing happened is not taken for one in which nothing failed."""
        events = sum(len(reading.events) for reading in self.history.readings)
        states = Counter(run.state for run in dump.runs.values())
        answers = Counter(post.status for post in self.history.posts)
        ends = Counter(reading.how for reading in self.history.readings)
        resets = sum(e.event == "reset" for reading in self.history.readings for e in reading.events[:1])
        self.say(
            f"{self.crowd.turns} turns, {len(self.history.posts)} posts {dict(answers)}, {events} events in "
            f"{len(self.history.readings)} streams {dict(ends)}, {resets} resets, runs {dict(states)}"
        )

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self.began_at:7.1f} {words}", flush=True)

    def close(self) -> None:
        for pid in self.server.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).resume()
        self.server.close()


def one(options: argparse.Namespace, seed: int, seconds: float) -> list[str]:
    """One run from one seed."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    servers = Servers()
    try:
        with badmodel.running() as model, opened(options.backend, servers) as backend:
            chaos = Chaos(options, seed, folder, model, backend)
            try:
                found = chaos.run(seconds)
            finally:
                chaos.close()
                if options.keep is not None:
                    shutil.copytree(folder, options.keep / f"chaos-{seed}", dirs_exist_ok=True)
    finally:
        servers.close()
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Two workers, many clients, a random fault every few seconds.")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--round", type=float, default=300, help="seconds of each run where there are several")
    parser.add_argument("--in-time", type=float, default=IN_TIME, help="seconds for a dead worker's runs to end")
    parser.add_argument("--keep", type=Path, help="a folder for the server's log and database")
    parser.add_argument("--backend", default="sqlite", choices=READY, help="where the data is")
    parser.add_argument("--plan", action="store_true", help="print what would be done")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    if options.plan:
        for fault in plan(seed, options.seconds, options.backend):
            print(*fault)
        for number in range(options.clients):
            for count in range(10):
                print(number, *turn_of(seed, number, count))
        return 0
    left, failed = options.seconds, False
    while left > 0:
        seconds = min(left, options.round)
        replay = f"python -m tests.chaos --seed {seed} --seconds {seconds:g} --clients {options.clients}"
        replay += "" if options.backend == "sqlite" else f" --backend {options.backend}"
        print(f"seed {seed}: {replay}", flush=True)
        found = one(options, seed, seconds)
        for violation in found:
            print(f"VIOLATION {violation}")
        print(f"seed {seed}: {len(found)} violations", flush=True)
        failed = failed or bool(found)
        left, seed = left - seconds, seed + 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

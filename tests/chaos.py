"""A chaos run: two workers, hundreds of clients, a random fault every few seconds, the checker at the end.

    python -m tests.chaos --seconds 300 --seed 7 --clients 300        --plan prints what would be done, and does nothing
    python -m tests.chaos --seconds 300 --backend postgres+redis      the database servers are struck as well
    python -m tests.chaos --seconds 300 --backend postgres+sentinel   Redis has a replica, which takes over from it
    python -m tests.chaos --seconds 300 --backend postgres --nodes 2  two nodes, between which the clients move

Which faults come when, and what every client does turn after turn, is a function of the seed; so a run is replayed from
its seed, up to the timing that the machine adds. Ends with 0 where nothing was violated, else it prints all that was.

A long run is several after each other, `--round` seconds each, with the seeds that follow: each is replayed alone.
"""

if __name__ == "__main__":  # hundreds of clients in one process; first, before anything else is imported
    from gevent import monkey

    monkey.patch_all()

import argparse
import contextlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import psutil

from flaskchat.pump import IDLE
from flaskchat.runtime import QUIET
from tests import backends, sentinel
from tests.backends import READY, Backend, Servers
from tests.conftest import Server, holds_of_hub
from tests.server import badmodel
from tests.server.chatter import OURS, Chatter, Crowd, turn_of
from tests.server.checker import IN_TIME, check
from tests.server.checks import FAULTY
from tests.server.dump import Dump, Gauge, Tap, not_back
from tests.server.history import History
from tests.server.nodes import HOSTS
from tests.server.strikes import Strikes, plan

SETTINGS = {
    "FLASKCHAT_MODEL": "openai:fake",
    "FLASKCHAT_TITLES": "no",  # a question for a title would be counted as well
    "FLASKCHAT_HEARTBEAT": "2",
    "FLASKCHAT_DRAIN": "3",
    "FLASKCHAT_GAP_TIMEOUT": "4",
    "FLASKCHAT_FIRST_BYTE_TIMEOUT": "5",
    "SECRET_KEY": "chaos",
}
NOISE = Gauge(workers=0, descriptors=12, greenlets=8, memory=12 << 20, wal=8 << 20, model=0)
"""What may be left of a chaos run: connections of SQLite that its busiest moment had opened, and what came late."""
WARM_SECONDS = 20
"""How long, at most, the crowd is served before what the servers hold is taken for theirs."""


class Chaos:
    def __init__(
        self, options: argparse.Namespace, seed: int, folder: Path, model: badmodel.Running, backend: Backend
    ) -> None:
        self.began_at = time.monotonic()
        self.seed, self.clients, self.in_time, self.model = seed, options.clients, options.in_time, model
        self.history = History()
        settings: dict[str, Any] = {**SETTINGS, "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1"}
        args = ["--graceful-timeout", "8"]
        self.nodes: list[Server] = []
        try:
            for host in HOSTS[: options.nodes]:
                own = folder / f"tmp-{host}"  # two machines share no folder
                own.mkdir()
                more = {"TEST_HOST": host, "TMPDIR": own} if options.nodes > 1 else {}
                values = settings | more
                node = Server(folder, values, workers=2, kind="gevent", app=FAULTY, args=args, backend=backend)
                self.nodes.append(node)
        except BaseException:
            self.close()
            raise
        self.server = self.nodes[0]
        """Whoever looks at the data asks by way of this one."""
        self.crowd = Crowd(self.history, [node.port for node in self.nodes], seed)
        self.strikes = Strikes(self.nodes, self.history, self.say)
        self.noise = Gauge(*(floor * options.nodes for floor in NOISE))

    def run(self, seconds: float) -> list[str]:
        """:returns: all that is wrong, in words."""
        once, before = self.warm_up(seconds), self.warm_up(seconds)
        self.say(f"before: {once} and then {before}")
        grown = [f"after two crowds, without a fault: {what}" for what in not_back(once, before, self.noise)]
        with Tap(self.server) as tap:
            self.began_at = time.monotonic()
            chatters = [gevent.spawn(Chatter(self.crowd, number).run) for number in range(self.clients)]
            for fault in plan(self.seed, seconds, self.server.backend.name, len(self.nodes)):
                gevent.sleep(max(0.0, self.began_at + fault.at - time.monotonic()))
                self.in_shape()
                self.strikes.strike(fault, self.crowd.turns)
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
        return [*found, *grown, *left, *self.logged()]

    def warm_up(self, seconds: float) -> Gauge:
        """What a worker opens and imports once is not left over from a fault, nor what a crowd alone leaves behind.

        Twice the clients, since each worker serves all of them where the other is struck. Python gives memory back in
        pieces of 1 MB in which nothing is used: who has served many at once keeps more, with and without faults. What
        each stream leaves behind shows in a second crowd, which needs no more than the first; after the faults it
        would not, since the workers are young then.

        :returns: what the nodes hold afterwards.
        """
        crowd = Crowd(History(), self.crowd.ports, -1 - self.seed)
        chatters = [gevent.spawn(Chatter(crowd, number).run) for number in range(2 * self.clients)]
        gevent.sleep(min(WARM_SECONDS, seconds / 10))
        crowd.closing = True
        gevent.joinall(chatters, timeout=60)
        self.quiet()
        gevent.sleep(QUIET + IDLE + 2)  # until the workers have given back what the crowd has needed
        return self.gauge()

    def quiet(self) -> None:
        """Until no run is left."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if all(run.state != "running" for run in Dump.of(self.server).runs.values()):
                return
            gevent.sleep(0.2)

    def gauge(self) -> Gauge:
        """What all nodes hold."""
        found = [Gauge.of(node) for node in self.nodes]
        return Gauge(*map(sum, zip(*found, strict=True)))._replace(model=int(self.model.stats()["live"]))

    def wait_back(self, before: Gauge) -> list[str]:
        until = time.monotonic() + 30
        while True:
            after = self.gauge()
            left = not_back(before, after, self.noise)
            if not left or time.monotonic() > until:
                self.say(f"after: {after}")
                if any("greenlets" in what for what in left):
                    self.say_greenlets()
                return left
            gevent.sleep(0.5)

    def say_greenlets(self) -> None:
        for node in self.nodes:
            client = node.client()
            for pid in node.workers():
                found = client.request("GET", "/greenlets", connection=client.connect_to(pid)).json()
                self.say(f"{pid} has {sum(found.values())} greenlets:")
                for what, many in sorted(found.items(), key=lambda item: -item[1]):
                    print(f"        {many} {what}")
            client.close()

    def in_shape(self) -> None:
        """Until two workers serve at each node: what is struck down while it starts, again and again, shows nothing.

        So it is the machine that sets the pace of the faults, where it is slow; their order is the seed's.
        """
        seen: set[int] = set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if all(len(seen & set(node.workers())) >= 2 for node in self.nodes):
                return
            client = self.crowd.client()
            with contextlib.suppress(*OURS):
                stream = client.get("/plain")
                stream.response.read()
                seen.add(stream.worker)
            client.close()
            gevent.sleep(0.05)

    def logged(self) -> Iterator[str]:
        """What a server that behaves has not in its log."""
        log = "".join(node.log() for node in self.nodes)
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
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for pid in node.workers():
                    psutil.Process(pid).resume()
            node.leave()
        for node in self.nodes:
            node.close()


def opened(name: str, servers: Servers) -> contextlib.AbstractContextManager[Backend]:
    return sentinel.opened(servers) if name == sentinel.NAME else backends.opened(name, servers)


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
    parser.add_argument("--backend", default="sqlite", choices=(*READY, sentinel.NAME), help="where the data is")
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2), help="machines, each with two workers")
    parser.add_argument("--plan", action="store_true", help="print what would be done")
    options = parser.parse_args()
    if options.nodes > 1 and not options.backend.startswith("postgres"):
        parser.error("several nodes need PostgreSQL: --backend postgres, or postgres+redis")
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    if options.plan:
        for fault in plan(seed, options.seconds, options.backend, options.nodes):
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
        replay += "" if options.nodes == 1 else f" --nodes {options.nodes}"
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

"""The network between the workers and their database servers fails without a word: the servers are on a machine of
their own, a network namespace, and the cable to it is pulled (P1, P2, P3). A server that stands still answers nothing
either, but its kernel does; here even that is silent, and a node may be cut off alone while the other one goes on.

In the short form only the log is there, and its cable is pulled once; the long form pulls the store's as well, three
times, and cuts a node off.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.backends import Backend, PostgresServer, RedisServer, Servers, opened
from tests.conftest import Server
from tests.server import cable
from tests.server.badmodel import Running
from tests.server.cable import Cable
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import Stream, deadline
from tests.server.dump import Tap
from tests.server.history import History
from tests.server.test_kill import KEPT, newcomer, settings
from tests.server.test_redis import crowd, to_the_end

Serve = Callable[..., Server]


class FarPostgres(PostgresServer):
    listens = "*"

    def __init__(self, line: Cable) -> None:
        """:param line: by which the tests themselves reach it."""
        super().__init__()
        self.host, self._machine = line.there, line.machine
        with (self._data / "pg_hba.conf").open("a") as rights:
            rights.write(f"host all all {cable.NET}.0/24 trust\n")

    def _spawn(self) -> None:
        self._machine.do(super()._spawn)


class FarRedis(RedisServer):
    listens = "*"

    def __init__(self, line: Cable) -> None:
        super().__init__()
        self.host, self._machine = line.there, line.machine

    def _command(self) -> list[str]:
        return [*super()._command(), "--protected-mode", "no"]

    def _spawn(self) -> None:
        self._machine.do(super()._spawn)


class FarServers(Servers):
    def __init__(self, line: Cable) -> None:
        super().__init__()
        self._line = line

    @property
    def postgres(self) -> PostgresServer:
        found: PostgresServer = self._get("postgres", lambda: FarPostgres(self._line))
        return found

    @property
    def redis(self) -> RedisServer:
        found: RedisServer = self._get("redis", lambda: FarRedis(self._line))
        return found


@pytest.fixture(scope="module")
def lines() -> Iterator[list[Cable]]:
    """Two cables to the servers' machine: one to be pulled, and one for the tests' own questions."""
    with cable.laid(2) as lines:
        if not lines:
            pytest.skip("no network namespace may be made here")
        yield lines


@pytest.fixture(scope="module")
def far_servers(lines: list[Cable]) -> Iterator[Servers]:
    servers = FarServers(lines[1])
    yield servers
    servers.close()


@pytest.fixture
def backend(request: pytest.FixtureRequest, far_servers: Servers) -> Iterator[Backend]:
    with opened(request.param, far_servers) as found:
        yield found


@pytest.fixture
def line(lines: list[Cable]) -> Iterator[Cable]:
    """The one to be pulled."""
    yield lines[0]
    lines[0].plug_in()


def over(line: Cable, backend: Backend) -> dict[str, object]:
    """The backend's settings for whoever is at the other end of that cable."""
    (host,) = {server.host for server in (backend.postgres, backend.redis) if server is not None}
    return {key: str(value).replace(host, line.there) for key, value in backend.settings().items()}


class Heard(threading.Thread):
    """Reads a stream, and notes when a heartbeat came."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.at: list[float] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed by a test that has failed
            while data := self.stream.response.read1(65536):
                self.at += [time.monotonic()] * data.count(b": hb\n")


def held(server: Server, line: Cable) -> tuple[set[int], int]:
    """The local ports of its workers' connections to the servers, and how many descriptors they have in all."""
    workers = [psutil.Process(pid) for pid in server.workers()]
    found = [one for worker in workers for one in worker.net_connections("tcp")]
    ports = {one.laddr.port for one in found if one.raddr and one.raddr.ip == line.there}
    return ports, sum(worker.num_fds() for worker in workers)


def assert_not_ready(server: Server, wrong: set[str]) -> None:
    """Each worker says so, and what is wrong, within its patience for a server that does not answer."""
    for worker in server.workers():
        client = server.client()
        connection = client.connect_to(worker)
        began = time.monotonic()
        answer = client.request("GET", "/readyz", connection=connection)
        took = time.monotonic() - began
        found = answer.json()
        print(f"not ready after {took:.1f} s: {found['wrong']}")
        assert answer.status == 503
        assert found["wrong"].keys() >= wrong
        assert took < 12, "two timeouts of 2 s, on a machine that has much to do"
        assert client.request("GET", "/healthz", connection=connection).status == 200


def assert_ready(server: Server) -> None:
    for worker in server.workers():
        client = server.client()
        for _ in deadline(60, "readiness to be back"):
            if client.request("GET", "/readyz", connection=client.connect_to(worker)).status == 200:
                break


def pass_time(until: float) -> None:
    for _ in deadline(60, "the time to pass"):
        if time.monotonic() > until:
            return


@pytest.mark.backends("sqlite+redis", long=("postgres+redis", "postgres"))
def test_replies_outlive_a_partition_and_nobody_waits_in_silence(
    serve: Serve, model: Running, backend: Backend, line: Cable, long: bool
) -> None:
    """For so long that every connection is given up."""
    values = {**settings(model), **over(line, backend), "FLASKCHAT_HEARTBEAT": "1"}
    server = serve(values, app=FAULTY, args=KEPT)
    store = backend.postgres is not None
    descriptors = 0
    for _ in range(3 if long else 1):
        history = History()
        asker = newcomer(history, server, "somebody")
        readings = crowd(server, history, tokens=400, asker=asker)
        tab = newcomer(history, server, "somebody else")
        mine = tab.ask(tokens=400, rate=50)
        mine.take(2)
        heard = Heard(tab.client.follow(mine.run_id))
        ports, before = held(server, line)
        assert ports
        descriptors = descriptors or before
        line.pull()
        pulled = time.monotonic()
        assert_not_ready(server, {"store"} if store else {"log"})
        refused = tab.ask(tokens=5)
        assert refused.status == 503
        assert model.stats(str(history.posts[-1].tag))["posts"] == 0
        pass_time(pulled + 4.5)
        line.plug_in()
        plugged = time.monotonic()
        to_the_end([*readings, mine])
        heard.join(30)
        for reading in (*readings, mine):
            events = reading.events
            if not (long or reading.ended):  # on a machine with other work it may have ended before the cable was back
                events = (tab if reading is mine else asker).to_the_end(reading.run_id, reading.last)
            assert events[-1].event == "done", (reading.how, events[-1])
        went_on = min(event.at for event in mine.events if event.at > plugged)
        print(f"went on {went_on - plugged:.1f} s after the cable was back")
        assert went_on - plugged < 8
        assert [at for at in heard.at if pulled < at < plugged], "silence"
        assert_ready(server)
        assert not ports & held(server, line)[0], "a connection from before the partition is still in use"
        for _ in deadline(60, "sockets to be closed"):
            if held(server, line)[1] <= descriptors + 4:
                break
        judge(history, server, model)
    for of_others in ("Traceback", "error ignored"):
        assert of_others not in server.log()


@pytest.mark.backends(long=("postgres", "postgres+redis"))
def test_the_replies_of_a_node_that_is_cut_off_end_at_the_other_and_what_it_appends_late_is_refused(
    serve: Serve, model: Running, backend: Backend, lines: list[Cable], line: Cable, tmp_path: Path
) -> None:
    """Its models talk on, and its own readers are connected to it; when the cable is back they see what all see."""
    both = []
    for host, cables, rounds in (("here", line, "3"), ("there", lines[1], "0.5")):
        own = tmp_path / f"tmp-{host}"  # two machines share no folder
        own.mkdir()
        # The one that is cut off looks after its lease late enough to append before it knows.
        values = {"SECRET_KEY": "of both", "TEST_HOST": host, "TMPDIR": own, "TEST_SWEEP_ROUND": rounds}
        both.append(serve({**settings(model), **values, **over(cables, backend)}, app=FAULTY, args=KEPT))
    cut, other = both
    history = History()
    asker = newcomer(history, cut, "somebody")
    client = other.client()
    client.cookie = asker.client.cookie
    elsewhere = history.visitor("somebody", client)
    with Tap(other) as tap:
        theirs = [asker.ask(tokens=4000, rate=rate) for rate in (20, 100, 100)]
        for reading in theirs:
            reading.take(5)
        ours = elsewhere.ask(tokens=150, rate=25)
        ours.take(2)
        here, there = asker.tab().follow(ours.run_id), elsewhere.follow(theirs[0].run_id)
        here.take(2)
        there.take(2)
        line.pull()
        for worker in cut.workers():
            history.fault("cut off", worker)
        ended = {}
        for reading in theirs:
            ended[reading.run_id] = elsewhere.to_the_end(reading.run_id)
            assert ended[reading.run_id][-1].event == "interrupted"
        assert there.rest()[-1].event == "interrupted"
        line.plug_in()
        to_the_end([*theirs, here, ours])
        assert ours.events[-1].event == "done"
        for reading in (*theirs, here):
            rest = [] if reading.ended else asker.to_the_end(reading.run_id, reading.last)
            seen = [event.what for event in (*reading.events, *rest)]
            assert seen == [event.what for event in ended.get(reading.run_id, ours.events)]
        assert cut.log().count("was taken over while this worker was held up") >= 1
        for tag in (str(post.tag) for post in history.posts[:3]):
            for _ in deadline(60, "the models to be let go"):
                if model.stats(tag)["live"] == 0:
                    break
        assert_ready(cut)
        fresh = asker.ask(tokens=20, rate=100)
        assert fresh.rest()[-1].event == "done"
    judge(history, other, model, tap=tap)

"""Connections to PostgreSQL that fail: cut, killed within a transaction, gone with their server, or never answered."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flaskchat.errors import Unavailable
from flaskchat.log.base import Append, LogUnavailable
from flaskchat.log.endings import PATIENCE, Endings
from flaskchat.models import Done
from flaskchat.sse import encode
from flaskchat.store import postgres
from flaskchat.store.base import Fenced
from flaskchat.store.kinds import open_database
from flaskchat.store.postgres import MARGIN, PostgreSQL
from flaskchat.store.schema import runs, workers
from tests.backends import Backend
from tests.rooms import ROOT, Rooms, count, ending_of, where
from tests.test_postgres import Beside, until_locked

pytestmark = pytest.mark.backends("postgres")

TERMINATE = "SELECT pg_terminate_backend(pg_backend_pid())"


def test_connections_that_were_cut_while_idle_fail_no_request(make: Callable[[], Rooms], backend: Backend) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a")
    assert backend.postgres is not None
    for number in range(5):
        assert backend.postgres.terminate(backend.database) >= 2
        assert rooms.begin(f"{number}").created
        assert rooms.state(begun) == "running"
    backend.postgres.terminate(backend.database)
    with pytest.raises(LogUnavailable):  # the tick's own connection is not looked at first: it comes again by itself
        rooms.append(begun, "b")
    rooms.append(begun, "b")
    assert [entry.seq for entry in rooms.journal.read(begun.run_id)] == [1, 3]


def test_a_backend_that_dies_within_a_transaction_leaves_nothing_of_it_and_it_is_run_again(
    make: Callable[[], Rooms]
) -> None:
    rooms = make()
    rooms.begin()
    before, tries = count(rooms, runs), []
    register = rooms.holding.ensure

    def dying(c: sa.Connection) -> Any:
        lease = register(c)
        tries.append(1)
        if len(tries) == 1:
            c.exec_driver_sql(TERMINATE)
        return lease

    rooms.holding.ensure = dying  # type: ignore[method-assign]
    assert rooms.begin("again").created
    assert len(tries) == 2
    assert count(rooms, runs) == before + 1


def test_a_server_that_was_restarted_is_used_again_without_anybody_s_doing(
    make: Callable[[], Rooms], backend: Backend
) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "before")
    assert backend.postgres is not None
    backend.postgres.stop()
    with pytest.raises(LogUnavailable):
        rooms.append(begun, "meanwhile")
    with pytest.raises(Unavailable):
        rooms.begin()
    backend.postgres.start()
    rooms.append(begun, "meanwhile")
    rooms.finish(begun, "beforemeanwhile")
    assert rooms.begin().created
    assert [frame.event for frame in rooms.frames(begun)] == ["start", "delta", "delta", "done"]


def test_a_server_that_stands_still_is_given_up_within_seconds(make: Callable[[], Rooms], backend: Backend) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "before")
    assert backend.postgres is not None
    backend.postgres.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            rooms.append(begun, "meanwhile")
        with pytest.raises(LogUnavailable):
            rooms.append(begun, "meanwhile")
        assert time.monotonic() - began < 40
    finally:
        backend.postgres.thaw()
    rooms.append(begun, "meanwhile")
    seen = [frame for entry in rooms.journal.read(begun.run_id) for frame in entry.frames]
    assert len(set(seen)) == 3


def test_a_name_that_cannot_be_looked_up_for_a_moment_is_a_database_that_is_away(
    make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = make()
    begun = rooms.begin()
    endings = Endings(rooms.database)

    def gone(*args: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(postgres._socket, "getaddrinfo", gone)
    rooms.database._parameters["host"] = "database.invalid"
    rooms.database.close()
    rooms.journal.close()
    with pytest.raises(Unavailable):
        rooms.state(begun)
    with pytest.raises(LogUnavailable, match="there is no host"):
        rooms.append(begun, "a")
    with pytest.raises(LogUnavailable, match="there is no host"):
        endings.write(rooms.holding.lease, [], patient=False)


@pytest.mark.parametrize("how", ["addresses", "a name", "hosts"])
def test_a_first_address_that_never_answers_does_not_use_up_the_others_time(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    url = sa.make_url(where(backend, tmp_path))
    with socket.socket() as silent:
        silent.bind(("127.0.0.2", url.port))
        silent.listen()
        names = {"one.invalid": ["127.0.0.2"], "two.invalid": ["127.0.0.1"], "both.invalid": ["127.0.0.2", "127.0.0.1"]}

        def known(host: str, *more: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 5432)) for address in names[host]]

        monkeypatch.setattr(postgres._socket, "getaddrinfo", known)
        query: dict[str, Any]
        if how == "addresses":
            query = {"hostaddr": "127.0.0.2,127.0.0.1", "port": str(url.port)}
            url = sa.URL.create(url.drivername, url.username, database=url.database, query=query)
        elif how == "a name":
            url = url.set(host="both.invalid")
        else:
            query = {"host": tuple(f"{name}.invalid:{url.port}" for name in ("one", "two"))}
            url = sa.URL.create(url.drivername, url.username, database=url.database, query=query)
        database = open_database(url.render_as_string(), timeout=1.0)
        assert isinstance(database, PostgreSQL)
        for _ in range(2):
            with contextlib.closing(database.open(patience=1.0)) as raw:
                assert raw.info.hostaddr == "127.0.0.1"
        database.close()
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the one that worked was tried first then
            silent.accept()


@pytest.mark.backends("postgres+redis")
def test_whoever_ends_runs_for_a_log_elsewhere_waits_for_the_database_no_longer_than_is_said(
    make: Callable[[], Rooms]
) -> None:
    rooms = make()
    rooms.run(rooms.begin(), "Hello")
    assert rooms.database.raw(rooms.journal._endings._connection).patience <= PATIENCE + MARGIN


@pytest.mark.parametrize("which", ["tick", "store"])
def test_the_server_s_end_of_each_connection_finds_out_within_seconds_that_we_are_gone(
    make: Callable[[], Rooms], which: str
) -> None:
    """A node that is cut off between a statement and its Sync would keep its lease locked there for hours: no timeout
    of the server's counts then, only what its kernel finds out. SHOW asks the socket.
    """
    rooms = make()
    rooms.begin()
    database = rooms.database
    assert isinstance(database, PostgreSQL)

    def shown(name: str) -> int:
        if which == "store":
            return int(database.write(lambda c: c.exec_driver_sql(f"SHOW {name}").scalar()))
        raw = database.open(patience=1.0)
        with contextlib.closing(raw):
            return int(raw.execute(f"SHOW {name}".encode()).fetchone()[0])

    idle, interval, times = (shown(f"tcp_keepalives_{name}") for name in ("idle", "interval", "count"))
    assert 0 < idle + interval * times <= 5
    assert 0 < int(str(shown("tcp_user_timeout"))) <= 5000



def test_an_ending_whose_answer_was_lost_is_taken_for_done_and_another_s_is_not(make: Callable[[], Rooms]) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "Hello")
    last = encode(3, Done())
    ending = ending_of(begun, "Hello", [*rooms.live[begun.run_id], last])
    append = Append(begun.run_id, 3, [last], True)
    for _ in range(2):
        rooms.end([append], [ending])
    assert rooms.text(begun) == "Hello"
    ending.state = "error"
    with pytest.raises(Fenced):
        rooms.end([append], [ending])


KILLED = """
from gevent import monkey; monkey.patch_all()
import random, sys, gevent
from flaskchat.errors import Unavailable
from flaskchat.live import Live
from flaskchat.log.postgres import PostgresLog
from flaskchat.store.kinds import open_database
database = open_database(sys.argv[1], timeout=5.0)
log = PostgresLog(database, Live(0))
dice, wrong, right = random.Random(int(sys.argv[2])), [], 0
def canary(raw, number):
    asked = (number, raw.info.backend_pid)
    return raw.execute("SELECT pg_sleep(0.002), %s::int, pg_backend_pid() = %s", asked).fetchone()[1:]
def ask(number):
    global right
    call = (database.read, database.write)[number % 2]
    try:
        if number % 3:
            found = call(lambda c: canary(database.raw(c), number))
        else:
            found = log.calls.call(lambda: canary(log._open(), number))
    except Unavailable:
        return
    if found != (number, True):
        wrong.append((number, found))
    right += 1
asked = [gevent.spawn_later(dice.random() * 0.5, ask, number) for number in range(400)]
for one in asked:
    if dice.random() < 0.5:
        gevent.spawn_later(dice.random() * 0.8, one.kill, block=False)
gevent.joinall(asked, timeout=60)
for number in range(1000, 1004):
    ask(number)
assert not wrong, wrong
assert right > 20, right
log.calls.call(log.close)
database.close()
print("right", right)
"""


def test_greenlets_that_are_killed_within_a_call_never_leave_an_answer_for_another(
    backend: Backend, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, where(backend, tmp_path), "7"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout


def test_a_lease_whose_taking_back_failed_counts_for_the_run_that_waited_for_it(make: Callable[[], Rooms]) -> None:
    rooms = make()
    rooms.run(rooms.begin(), "Hello")
    waiting: list[Beside] = []

    def fail(c: sa.Connection) -> None:
        c.execute(sa.select(workers).with_for_update())  # as it does first
        waiting.append(Beside(lambda: rooms.begin("And?")))
        until_locked(rooms)
        rooms.holding.release(c)
        raise Unavailable("The connection broke.", code="store_unavailable")

    with pytest.raises(Unavailable):
        rooms.database.write(fail)
    assert waiting[0].end().created
    beats = sa.select(workers.c.beats)
    before = rooms.rows(beats)
    rooms.sweeper.round()
    assert rooms.rows(beats) != before

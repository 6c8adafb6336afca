"""A Redis that lost its data or is away: what that costs, what is written anew, and whose answer one gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flaskchat import sse
from flaskchat.errors import Unavailable
from flaskchat.log import streams
from flaskchat.log.base import Append, LogUnavailable, Stop
from flaskchat.models import Done
from flaskchat.store.base import Fenced
from tests.backends import Backend, RedisServer
from tests.redis_rooms import delta, events, key, redis, watch
from tests.rooms import ROOT, Rooms, ending_of, look, rounds
from tests.server.client import deadline

pytestmark = pytest.mark.backends("sqlite+redis")

Make = Callable[[], Rooms]


# -- a Redis that lost its data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["all", "all, and the connection", "the tail, and the connection"])
def test_the_owner_writes_again_what_redis_has_lost_byte_for_byte(make: Make, lost: str) -> None:
    """A server does not lose its last seconds without its connections."""
    rooms = make()
    begun, quiet = rooms.begin(), rooms.begin()
    for run in (begun, quiet):
        rooms.append(run, "a")
        rooms.append(run, "b", "ü€😀")
    for run in (begun, quiet):
        redis(rooms, "DEL", key(rooms, run))
        if "tail" in lost:
            first = Append(run.run_id, 1, rooms.live[run.run_id][:2])
            rooms.journal._beside.ask(streams.append(key(rooms, run), first))
    if "connection" in lost:
        rooms.journal._link.close()
    rooms.append(begun, "c")
    assert events(rooms, begun) == rooms.live[begun.run_id]
    rooms.journal.prune()
    rooms.journal.turn(rooms.holding.lease, [], [])
    assert events(rooms, quiet) == rooms.live[quiet.run_id]
    assert 0 < redis(rooms, "TTL", key(rooms, quiet)) <= streams.LIVE_SECONDS


def test_the_store_is_asked_once_for_all_that_is_written_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms, asked = make(), []
    begun = [rooms.begin() for _ in range(3)]
    for run in begun:
        rooms.append(run, "a")
    redis(rooms, "FLUSHALL")
    rooms.journal._link.close()
    holds = rooms.journal._holds
    monkeypatch.setattr(rooms.journal, "_holds", lambda lease: asked.append(lease) or holds(lease))
    rooms.journal.turn(rooms.holding.lease, [], [])
    assert [events(rooms, run) for run in begun] == [rooms.live[run.run_id] for run in begun]
    assert asked == [rooms.holding.lease]


def test_a_reader_that_was_ahead_of_what_redis_kept_goes_on_where_it_was(two: tuple[Rooms, Rooms]) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "a", "b")
    mine.journal.follow()
    run = watch(mine, begun)
    redis(other, "FLUSHALL")
    other.append(begun, "c")
    for _ in deadline(60, "the event after"):
        for entry in look(mine):
            mine.memory.apply(entry)
        if run.last_seq == 4:
            break
    assert run.frames == other.live[begun.run_id]


def test_nobody_writes_a_stream_anew_who_has_lost_the_lease(two: tuple[Rooms, Rooms]) -> None:
    """The seal went with the data."""
    stale, other = two
    begun = stale.begin()
    stale.append(begun, "Hello")
    lease, late = stale.holding.lease, delta(stale, begun, "late")
    rounds(other, 6)
    redis(other, "FLUSHALL")
    with pytest.raises(Fenced):
        stale.journal.turn(lease, [late], [])
    assert redis(other, "EXISTS", key(other, begun)) == 0


def test_what_redis_and_the_owner_lost_together_is_not_waited_for(two: tuple[Rooms, Rooms]) -> None:
    lost, other = two
    begun = lost.begin()
    lost.append(begun, "a", "b")
    other.journal.follow()
    run = watch(other, begun)
    redis(other, "DEL", key(other, begun))
    rounds(other, 8)
    for entry in look(other):
        other.memory.apply(entry)
    assert other.state(begun) == "interrupted"
    assert run.closed, "its readers come back, and are told with a reset"


# -- a Redis that is away ----------------------------------------------------------------------------------------------


def test_a_redis_that_does_not_answer_is_refused_in_time_and_used_again_when_it_does(
    make: Make, redis_server: RedisServer
) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a")
    entry = delta(rooms, begun, "b")
    redis_server.freeze()
    for call in (
        lambda: rooms.journal.turn(rooms.holding.lease, [entry], []), lambda: rooms.journal.ready(),
        lambda: rooms.journal.read(begun.run_id),
    ):  # fmt: skip
        with pytest.raises(LogUnavailable):
            call()
    with pytest.raises(Unavailable):
        rooms.journal.announce(Stop(begun.run_id, 1.0))
    redis_server.thaw()
    for _ in deadline(60, "Redis to be used again"):
        try:
            rooms.journal.turn(rooms.holding.lease, [entry], [])
            rooms.journal.ready()
            break
        except LogUnavailable:
            pass
    assert events(rooms, begun) == [*rooms.live[begun.run_id], *entry.frames]


def test_a_redis_without_memory_refuses_and_nothing_is_lost(make: Make) -> None:
    rooms = make()
    begun = rooms.begin()
    rooms.append(begun, "a")
    entry = delta(rooms, begun, "b")
    redis(rooms, "CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(LogUnavailable, match="maxmemory"):
            rooms.journal.turn(rooms.holding.lease, [entry], [])
        for call in (lambda: rooms.journal.turn(rooms.holding.lease, [], []), rooms.journal.ready):
            with pytest.raises(LogUnavailable, match="maxmemory"):
                call()
    finally:
        redis(rooms, "CONFIG", "SET", "maxmemory", "0")
    rooms.journal.turn(rooms.holding.lease, [], [])
    rooms.journal.ready()
    rooms.journal.turn(rooms.holding.lease, [entry], [])
    assert events(rooms, begun)[-1] == entry.frames[0]


def test_a_run_ends_though_redis_is_away_and_the_store_has_its_end(
    two: tuple[Rooms, Rooms], redis_server: RedisServer
) -> None:
    mine, other = two
    begun = other.begin()
    other.append(begun, "Hello")
    mine.journal.follow()
    run = watch(mine, begun)
    redis_server.stop()
    last = sse.encode(3, Done())
    ending = ending_of(begun, "Hello", [*other.live[begun.run_id], last])
    append = Append(begun.run_id, 3, [last], True)
    with pytest.raises(LogUnavailable):
        other.end([append], [ending])
    assert set(other.journal.without([append])) == {begun.run_id}
    assert not run.ended
    assert mine.store.still_running([begun.run_id]) == set()
    assert mine.store.frames(begun.run_id) == ending.frames
    other.live.clear()
    other.memory.drop(other.memory.get(begun.run_id))
    redis_server.start()
    assert not other.journal.empty()
    name = f"{{{other.journal._keys.prefix}}}:run:{begun.run_id}"
    for _ in deadline(60, "its stream to be told to expire soon"):
        other.journal.prune()
        ttl = redis_server.command("TTL", name)
        if 0 < int(ttl.removeprefix(b":")) <= streams.ENDED_SECONDS:
            break
    assert other.journal.empty()


def test_a_deleted_run_leaves_nothing_in_redis_also_when_it_was_away_meanwhile(
    make: Make, redis_server: RedisServer
) -> None:
    rooms = make()
    first, second = rooms.begin(), rooms.begin()
    for begun in (first, second):
        rooms.run(begun, "Hello")
    rooms.journal.forget([first.run_id], 0)
    assert redis(rooms, "EXISTS", key(rooms, first)) == 0
    redis_server.freeze()
    rooms.journal.forget([second.run_id], 0)
    redis_server.thaw()
    assert not rooms.journal.empty()
    for _ in deadline(60, "it to be deleted"):
        rooms.journal.prune()
        if rooms.journal.empty():
            break
    assert redis(rooms, "EXISTS", key(rooms, second)) == 0


# -- greenlets that are killed -----------------------------------------------------------------------------------------


KILLED = """
from gevent import monkey
monkey.patch_all()
import random, sys, gevent
from flaskchat.config import Settings
from flaskchat.errors import FlaskChatError
from flaskchat.live import Live
from flaskchat.log.open import open_log
from flaskchat.store.kinds import open_database
url, prefix, path, seed = sys.argv[1:]
chance = random.Random(int(seed))
database = open_database(f"sqlite:///{path}", timeout=1.0)
log = open_log(Settings(redis_url=url, redis_prefix=prefix), database, Live(1 << 20))
answered = wrong = 0

def ask(number):
    global answered, wrong
    for n in range(20):
        canary = b"%d-%d" % (number, n) * chance.randrange(1, 200)
        try:
            if number % 2:
                (reply,) = log._ask([b"ECHO", canary])
            else:
                (reply,) = log.calls.call(log._link.ask, [b"ECHO", canary])
        except FlaskChatError:
            gevent.sleep(0.05)
            continue
        answered += 1
        wrong += reply != canary
        gevent.sleep(0)

for _ in range(10):
    asking = [gevent.spawn(ask, number) for number in range(20)]
    while not all(one.dead for one in asking):
        gevent.sleep(chance.uniform(0, 0.002))
        chance.choice(asking).kill(block=False)
print(answered, wrong)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_no_greenlet_that_is_killed_leaves_its_answer_to_the_next(
    redis_server: RedisServer, backend: Backend, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "chat.sqlite3"
    command = [sys.executable, "-c", KILLED, redis_server.url, backend.prefix, str(path), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answered, wrong = map(int, done.stdout.split())
    assert answered > 100
    assert wrong == 0

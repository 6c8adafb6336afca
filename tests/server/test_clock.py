"""The wall clock is set while replies are written: no lease, timeout, cursor or cookie minds (P2, P3).

Inside a process time is `time.monotonic()`, a lease is a counter, and a cursor is a number. The wall's time is shown to
users, and sorts their conversations.
"""

from __future__ import annotations

import email.utils
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY
from tests.server.client import deadline
from tests.server.clocks import DAY, HOUR, Clocks
from tests.server.history import History, Reading, Visitor

GAP = 8.0
HEARTBEAT = 0.5


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path)


@pytest.fixture
def start(serve: Callable[..., Server], clocks: Clocks, model: Running) -> Callable[[], Server]:
    def begin() -> Server:
        settings = {
            **clocks.settings, "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url,
            "FLASKCHAT_TITLES": "no", "FLASKCHAT_HEARTBEAT": HEARTBEAT, "FLASKCHAT_GAP_TIMEOUT": GAP,
            "FLASKCHAT_MAX_RUNS_PER_OWNER": "0", "FLASKCHAT_MESSAGES_PER_MINUTE": "200", "FLASKCHAT_DRAIN": "1",
            "FLASKCHAT_RETENTION_DAYS": "30", "TEST_SWEEP_ROUND": "1.5",
        }  # fmt: skip
        return serve(settings, app=FAULTY)

    return begin


def shown_by(server: Server, pid: int) -> float:
    """How far this worker's clock is ahead, as its answers' Date says."""
    client = server.client()
    answer = client.request("GET", "/plain", connection=client.connect_to(pid))
    date = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    client.close()
    return date - time.time()


def ask_at(visitor: Visitor, worker: int, **directive: object) -> Reading:
    """Ask this worker, so that it has a run and a lease."""
    for _ in deadline(60, f"a run at worker {worker}"):
        reading = visitor.ask(**directive)
        reading.take(2)
        if reading.worker == worker:
            return reading
        visitor.stop(reading.run_id)
        reading.rest()
    raise AssertionError


def reading_on(visitor: Visitor, run_id: str) -> tuple[list[int], threading.Thread]:
    seqs: list[int] = []
    thread = threading.Thread(target=lambda: seqs.extend(event.seq for event in visitor.to_the_end(run_id)))
    thread.start()
    return seqs, thread


@pytest.mark.parametrize("ahead", [DAY, -HOUR], ids=["a day ahead", "an hour back"])
def test_nobody_minds_when_the_clock_is_set(
    start: Callable[[], Server], clocks: Clocks, model: Running, ahead: float
) -> None:
    server = start()
    history = History()
    visitor = history.visitor("alice", server.client())
    one, other = server.workers()
    long = ask_at(visitor, one, tokens=100_000, rate=30)
    beside = ask_at(visitor, other, tokens=100_000, rate=30)
    fits = visitor.ask(tokens=240, rate=40)
    fits.take(3)
    followed = [reading_on(visitor.tab(), reading.run_id) for reading in (fits, fits)]
    before = {pid: shown_by(server, pid) for pid in (one, other)}
    beats: list[int] = []
    asked_at = time.monotonic()
    silent = visitor.ask(tokens=30, rate=30, fault="stall", after=10, hold=120)
    silent.take(1)
    feed = silent.feed
    silent.feed = lambda data: (beats.append(data.count(b": hb\n")), feed(data))[1]  # type: ignore[method-assign]
    said = threading.Thread(target=silent.rest)
    said.start()
    clocks.set(ahead)
    for pid in (one, other):
        assert abs(shown_by(server, pid) - before[pid] - ahead) < 60, "the clock was not set"
    # timeouts: the silent model's time is as long as before, and its reader gets heartbeats meanwhile
    said.join(GAP + 60)
    assert silent.events[-1].json["code"] == "model_timeout"
    silence = silent.events[-1].at - silent.events[-2].at
    assert GAP / 2 < silence < GAP + 40, silence
    assert GAP / HEARTBEAT / 4 < sum(beats) <= (silent.events[-1].at - asked_at) / HEARTBEAT + 1
    # cursors: all that was written is read, from the beginning and from anywhere
    fits.rest()
    assert fits.events[-1].event == "done"
    for seqs, thread in followed:
        thread.join(30)
        assert seqs == [event.seq for event in fits.events]
    # the cookie, from before, and a further question
    assert visitor.call("GET", "/conversations").body["items"][0]["id"]
    tab = visitor.tab()
    assert tab.conversation(fits.start["conversation_id"]).status == 200
    tab.ask(tokens=3).rest()
    # leases: each worker has counted its neighbour's rounds for longer than it takes to give it up
    assert "is gone" not in server.log()
    assert visitor.stop(beside.run_id, connection=visitor.client.connect_to(one)).body["state"] == "stopped"
    stopped = visitor.stop(beside.run_id).body
    assert stopped["upstream_closed_ms"] is not None
    assert 0 <= stopped["upstream_closed_ms"] < 60_000
    # and one that is really gone is given up as soon as ever
    history.fault("kill -9", one)
    os.kill(one, signal.SIGKILL)
    killed_at = time.monotonic()
    long.rest()
    assert tab.to_the_end(long.run_id, long.last)[-1].event == "interrupted"
    assert time.monotonic() - killed_at < 60
    beside.rest()
    judge(history, server, model, in_time=None)


def test_workers_with_clocks_of_their_own_agree(start: Callable[[], Server], clocks: Clocks, model: Running) -> None:
    """One is a day ahead and the other an hour back."""
    server = start()
    history = History()
    visitor = history.visitor("alice", server.client())
    one, other = server.workers()
    clocks.set(DAY, one)
    clocks.set(-HOUR, other)
    assert abs(shown_by(server, one) - shown_by(server, other) - DAY - HOUR) < 60
    runs = [ask_at(visitor, pid, tokens=160, rate=40) for pid in (one, other)]
    for reading, pid in zip(runs, (other, one), strict=True):  # each followed at the other
        tab = visitor.tab()
        across = tab.follow(reading.run_id, 1, connection=tab.client.connect_to(pid))
        whole = [event.what for event in [*reading.events, *reading.rest()]]
        assert [event.what for event in across.rest()] == whole[1:]
        assert across.worker == pid
    for pid, where in ((one, other), (other, one)):
        reading = ask_at(visitor, pid, tokens=20, fault="stall", after=5, rate=20, hold=60)
        answer = visitor.stop(reading.run_id, connection=visitor.client.connect_to(where)).body
        assert answer["state"] == "stopped"
        assert 0 <= answer["upstream_closed_ms"] < 60_000
        reading.rest()
    # Written alternately: in whatever order they come, a list of pages has each conversation once.
    asked = {visitor.ask(tokens=1).rest()[0].json["conversation_id"] for _ in range(12)}
    listed: list[str] = []
    cursor = ""
    while True:
        page = visitor.call("GET", f"/conversations?limit=5{cursor}").body
        listed += [item["id"] for item in page["items"]]
        if not page["next_cursor"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(listed) == len(set(listed))
    assert asked <= set(listed)
    assert "is gone" not in server.log()
    long = ask_at(visitor, other, tokens=100_000, rate=30)
    history.fault("kill -9", other)
    os.kill(other, signal.SIGKILL)
    killed_at = time.monotonic()
    long.rest()
    assert visitor.to_the_end(long.run_id, long.last)[-1].event == "interrupted"
    assert time.monotonic() - killed_at < 60
    judge(history, server, model, in_time=None)

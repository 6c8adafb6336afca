"""A worker that stands still (SIGSTOP) until its lease is taken over, and then goes on: it is fenced (P2, P3).

In the short form leases are counted out sooner; the long form has the real times, and stops the worker for 30 s. Being
fenced is another thing in each log, so the first runs on every backend.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from flaskchat.log.rows import CONTROL
from tests.backends import EVERYWHERE
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, rows
from tests.server.client import deadline
from tests.server.data import data_of
from tests.server.dump import Tap
from tests.server.history import History, Reading
from tests.server.strikes import writable
from tests.server.test_kill import Beside, ask_at, newcomer, settings

Serve = Callable[..., Server]
ARGS = ["--keep-alive", "60", "--timeout", "120"]
"""gunicorn itself would kill a worker that gives no sign of life for 30 s."""


def freeze(server: Server, pid: int) -> None:
    """Stop a worker between two of its transactions: while it holds the database's lock nobody could end its runs."""
    for _ in deadline(60, "a moment at which the worker does not hold the database's lock"):
        os.kill(pid, signal.SIGSTOP)
        for _ in deadline(30, "the worker to stand still"):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                break
        if writable(server, patience=0.2):
            return
        os.kill(pid, signal.SIGCONT)


def writers_of(server: Server, readings: list[Reading]) -> dict[str, int]:
    """Who appended to these runs, and how often. In Redis it does not stand there."""
    wanted, found, data = {reading.run_id for reading in readings}, Counter[str](), data_of(server)
    with data.snapshot() as ask:
        for worker, entries in data.log(ask, {}).values():
            found[worker] += sum(entry.run_id in wanted for entry in entries)
    return {worker: count for worker, count in found.items() if count}


@pytest.mark.backends(*EVERYWHERE)
def test_a_worker_that_was_stopped_for_too_long_is_fenced_and_starts_anew(
    serve: Serve, model: Running, long: bool
) -> None:
    more = {} if long else {"TEST_SWEEP_ROUND": "0.6"}
    server = serve(settings(model, FLASKCHAT_MODELS="silent", **more), app=FAULTY, args=ARGS)
    history = History()
    asker = newcomer(history, server, "somebody")
    elsewhere = asker.tab()
    frozen, other = server.workers()
    mine = [ask_at(asker, frozen, tokens=4000, rate=rate) for rate in (30, 100)]
    silent = {"message": {"id": "silent", "text": "x"}, "model": "silent"}
    mine.append(asker.post(silent, connection=asker.client.connect_to(frozen)))
    unharmed = ask_at(asker, other, tokens=4000, rate=30)
    held_up = elsewhere.follow(unharmed.run_id, connection=elsewhere.client.connect_to(frozen))
    for reading in (*mine, unharmed, held_up):
        assert reading.status == 200
        reading.take(2)
    with Tap(server) as tap:
        stopped_at = history.fault("SIGSTOP", frozen).at
        freeze(server, frozen)
        try:
            ended = {}
            for reading in mine:  # followed elsewhere while their worker stands still
                found = elsewhere.follow(reading.run_id, connection=elsewhere.client.connect_to(other))
                ended[reading.run_id] = found.rest()
                assert found.events[-1].event == "interrupted"
            print(f"interrupted after {time.monotonic() - stopped_at:.1f} s")
            ((old_lease,),) = set(rows(server, "SELECT worker_id FROM flaskchat_runs WHERE id = ?", mine[0].run_id))
            before = writers_of(server, mine)
            assert set(before) == ({CONTROL} if server.backend.redis is not None else {old_lease, CONTROL})
            while long and time.monotonic() - stopped_at < 30:
                time.sleep(0.05)
            before = writers_of(server, mine)
        finally:
            os.kill(frozen, signal.SIGCONT)
        for reading in mine:  # those who waited at the stopped worker are sent away, and find the end elsewhere
            reading.rest()
            assert reading.how == "end"
            rest = [] if reading.ended else asker.to_the_end(reading.run_id, reading.last)
            assert [e.what for e in (*reading.events, *rest)] == [e.what for e in ended[reading.run_id]]
        for _ in deadline(60, "the worker to find that it was taken for dead"):
            if "was taken over while this worker was held up" in server.log():
                break
        fresh = ask_at(asker, frozen, tokens=20, rate=100)
        assert fresh.worker == frozen
        assert fresh.rest()[-1].event == "done"
        ((epoch,),) = rows(server, "SELECT epoch FROM flaskchat_runs WHERE id = ?", fresh.run_id)
        assert epoch == 2
        # A reader at the stopped worker of a run that is somebody else's goes on, or is sent where it can.
        watching = Beside(held_up.rest)
        assert asker.stop(unharmed.run_id).body["state"] == "stopped"
        assert unharmed.rest()[-1].event == "stopped"
        watching.join(20)
        assert not watching.is_alive()
        if not held_up.ended:
            assert elsewhere.to_the_end(unharmed.run_id, held_up.last)[-1].event == "stopped"
        for _ in deadline(60, "the model to be told that nobody wants its replies any more"):
            if not any(model.stats(post.tag)["live"] for post in history.posts if post.tag):
                break
        if not long:
            assert writers_of(server, mine) == before, "something was appended to a run that had ended"
        leases = {worker for (worker,) in rows(server, "SELECT id FROM flaskchat_workers")}
        for (worker,) in rows(server, "SELECT worker_id FROM flaskchat_runs WHERE state = 'running'"):
            assert worker in leases
    judge(history, server, model, tap=tap)


@pytest.mark.backends("sqlite", long=("postgres", "postgres+redis"))
def test_a_worker_that_stood_still_for_a_moment_goes_on_as_if_nothing_was(serve: Serve, model: Running) -> None:
    """For less than its lease lasts: its runs are its own, and lose nothing."""
    server = serve(settings(model), app=FAULTY, args=ARGS)
    history = History()
    asker = newcomer(history, server, "somebody")
    frozen, other = server.workers()
    runs = [ask_at(asker, frozen, tokens=150, rate=50) for _ in range(3)]
    follower = asker.tab().follow(runs[0].run_id, connection=asker.client.connect_to(other))
    runs[0].take(5)
    os.kill(frozen, signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        for _ in deadline(30, "the worker to stand still"):
            if psutil.Process(frozen).status() == psutil.STATUS_STOPPED and time.monotonic() - stopped_at > 2:
                break
    finally:
        os.kill(frozen, signal.SIGCONT)
    for reading in (*runs, follower):
        reading.rest()
        assert reading.how == "end"
        assert reading.events[-1].event == "done"
    judge(history, server, model)

"""The watch on the hub: it names what holds a worker, and takes neither load nor a busy machine for that."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from flaskchat.watch import Look, Turn, _Case
from tests.conftest import Server, holds_of_hub
from tests.server.checks import FAULTY, write_lock
from tests.server.client import deadline


def found(server: Server, words: str) -> str | None:
    """The first hold in the server's log whose stack has these words."""
    return next((hold for hold in holds_of_hub(server.log()) if words in hold), None)


@pytest.mark.parametrize("path", ["/hold", "/spin", "/mute"])
def test_what_holds_the_hub_is_counted_and_named_by_its_stack(serve: Callable[..., Server], path: str) -> None:
    server = serve(workers=1, app=FAULTY, holds_hub=True)
    client = server.client()
    client.json("/readyz")  # the watch begins with the chat
    words = "held for" if path == "/mute" else f"in {path[1:]}\n"  # a call into C may be over when its stack is taken
    for _ in deadline(40, f"a hold by {path}"):
        # Again and again: where the machine keeps the watch from looking as well, it says nothing.
        client.get(path).response.read()
        told = client.json("/hub")
        if told["held"] > 0.1 and found(server, words):
            break
    print(found(server, words))
    assert told["holds"] >= 1


def test_a_hold_that_does_not_end_is_told_while_it_lasts(serve: Callable[..., Server]) -> None:
    server = serve({"TEST_STUCK": "0.5"}, workers=1, app=FAULTY, holds_hub=True)
    client = server.client()
    client.json("/readyz")
    (pid,) = server.workers()

    def ask() -> None:
        with contextlib.suppress(OSError, HTTPException):
            client.get("/hold?seconds=25").response.read()

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in deadline(20, "the hold to be told"):
        if hold := found(server, "in hold\n"):
            break
    assert hold is not None
    assert "the hub is held, " in hold
    assert asking.is_alive()
    os.kill(pid, signal.SIGKILL)
    asking.join()


def test_a_crowd_and_a_stopped_process_are_no_hold(serve: Callable[..., Server]) -> None:
    server = serve(workers=1, app=FAULTY)
    client = server.client()
    client.json("/readyz")
    for _ in range(3):
        client.get("/crowd").response.read()
    stream = client.send("400 200")
    stream.take(5)
    (pid,) = server.workers()
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        while time.monotonic() - stopped_at < 0.3:
            time.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
        stream.take(20)
    stream.rest()
    assert client.json("/hub")["holds"] == 0


def test_nothing_holds_the_hub_at_the_start_under_load_or_while_the_database_is_locked(
    serve: Callable[..., Server],
) -> None:
    settings = {"FLASKCHAT_MODEL": "count", "FLASKCHAT_DATABASE_TIMEOUT": "0.5", "FLASKCHAT_DRAIN": "0.1"}
    server = serve(settings, workers=1, app=FAULTY)
    client = server.client()
    assert client.json("/readyz")["status"] == "ready"
    print("the start", client.json("/hub"))
    streams = [client.send("30 20") for _ in range(30)]
    for stream in streams:
        assert stream.rest()[-1].event == "done"
    print("load", client.json("/hub"))
    streams = [client.send("30 20") for _ in range(10)]
    with write_lock(server):
        assert client.send("late").status == 503
    for stream in streams:
        assert stream.rest()[-1].event == "done"
    assert client.json("/hub")["holds"] == 0  # and the fixture looks into the log


@pytest.mark.parametrize(("kind", "settings"), [("gthread", {}), ("gevent", {"FLASKCHAT_HUB_LIMIT": "0"})])
def test_without_gevent_or_a_limit_nothing_watches(
    serve: Callable[..., Server], kind: str, settings: dict[str, object]
) -> None:
    server = serve(settings, workers=1, app=FAULTY, kind=kind, args=["--threads", "8"] if kind == "gthread" else [])
    client = server.client()
    client.json("/readyz")
    client.get("/hold").response.read()
    assert client.json("/hub") == {"held": 0.0, "holds": 0}


def test_an_idle_worker_is_not_woken_often(serve: Callable[..., Server]) -> None:
    server = serve(workers=1)
    server.client().json("/readyz")
    (pid,) = server.workers()

    def switches() -> int:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    counts: list[float] = []
    for _ in deadline(60, f"a quiet worker; its switches a second: {counts}"):
        before, began, used = switches(), time.monotonic(), sum(psutil.Process(pid).cpu_times()[:2])
        while time.monotonic() - began < 2:
            time.sleep(0.05)
        counts.append((switches() - before) / (time.monotonic() - began))
        print(f"{counts[-1]:.0f} switches, {(sum(psutil.Process(pid).cpu_times()[:2]) - used) * 500:.1f} ms a second")
        if counts[-1] < 60:
            break


# -- how looks add up ------------------------------------------------------------------------------------------------


def judged(*steps: tuple[float, float, float, float], limit: float = 0.1) -> float:
    """One turn of the hub in which one call stood still, seen by looks.

    :param steps: of each look but the first: the gap before it, what the hub ran and waited for a processor in it, and
        what the watch itself waited for one.
    :returns: for how long the hub is said to have been held.
    """
    frame = sys._getframe()
    case, turn = _Case(limit), 7
    look = Look(100.0, turn - 1, 0.0, [], 5.0, 5.0, 5.0)
    for number, (gap, ran, waited, own) in enumerate(steps):
        pause = 0.04 if number == 0 else 0.016
        now = Look(look.at + gap, turn, 100.0, [frame], look.ran + ran, look.waited + waited, look.own_waited + own)
        assert case.add(look, now, pause, ()) is None
        look = now
    after = Look(look.at + 0.001, turn + 1, 0.0, [], look.ran, look.waited, look.own_waited)
    end = case.add(look, after, 0.016, [Turn(turn, 100.0, after.at)] if after.at > 100 + limit else [])
    return end[0] if end is not None else 0.0


def test_looks_at_one_call_add_up_to_a_hold() -> None:
    assert judged((0.04, 0, 0, 0), *[(0.016, 0, 0, 0)] * 8) > 0.14
    assert judged((0.04, 0, 0, 0), *[(0.016, 0.016, 0, 0)] * 8) > 0.14


def test_the_time_in_wait_of_a_processor_is_taken_off() -> None:
    assert judged((0.04, 0, 0.04, 0), *[(0.016, 0.002, 0.014, 0)] * 12) < 0.06
    # It is counted when it is over.
    assert judged((0.04, 0, 0, 0), *[(0.016, 0, 0, 0)] * 12, (0.016, 0.002, 0.2, 0)) < 0.06


def test_a_late_look_counts_only_what_the_hub_has_computed() -> None:
    stopped = (5.0, 0.001, 0, 0)
    assert judged((0.04, 0, 0, 0), (0.016, 0, 0, 0), stopped, (0.016, 0, 0, 0)) < 0.06
    computed = (0.4, 0.39, 0, 0)
    assert judged((0.04, 0, 0, 0), (0.016, 0, 0, 0), computed, (0.016, 0, 0, 0)) > 0.4


def test_a_thread_that_has_ended_adds_nothing_to_a_hold() -> None:
    """What it had waited for a processor all its life is not in the sum of those that live."""
    frame = sys._getframe()
    case, look = _Case(0.1), Look(100.0, 7, 100.0, [frame], 5.0, 5.0, 5.0, 60.0)
    for others in (60.0, 1.0, 1.0):
        now = look._replace(at=look.at + 0.016, others_waited=others)
        assert case.add(look, now, 0.016, ()) is None
        look = now
    assert case.held < 0.06

"""The tick while the log refuses appends, reads or both: nobody waits for it, nothing is lost or written twice."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from flaskchat import pump as pumps
from flaskchat.live import LiveRun
from flaskchat.log.base import Append, Entry
from flaskchat.models import Delta, Done
from flaskchat.pump import IDLE, TICK
from tests.test_pump import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pump.close(0)


def refreshed(bench: Bench) -> bool:
    """What a refresh returns, asked for in a thread while the test makes the ticks."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(bench.pump.refresh()))
    thread.start()
    until = time.monotonic() + 60
    while thread.is_alive() and time.monotonic() < until:
        bench.tick()
    assert found, "it waits without limit"
    return found[0]


def test_a_refresh_says_that_the_log_cannot_be_read_and_does_not_wait_for_it(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.log.unavailable = True
    bench.put(feed, source, Delta("Hello"))
    assert refreshed(bench) is False
    bench.log.unavailable = False
    assert refreshed(bench) is True
    assert bench.log.text("run_a") == "Hello"


def test_others_events_are_taken_in_while_nothing_can_be_appended(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.tick()
    bench.log.full = True
    bench.put(feed, source, Delta("Hello"))
    bench.log.others = [Append("run_x", 1, [b"a"])]
    assert refreshed(bench) is True
    assert bench.live.get("run_x") is not None
    assert bench.pump.unavailable_since is not None
    bench.log.full = False
    bench.tick()
    assert bench.pump.unavailable_since is None
    assert bench.log.text("run_a") == "Hello"


def test_a_refresh_takes_in_all_there_is_however_little_the_log_gives_at_once(bench: Bench) -> None:
    bench.log.others = [Append("run_x", seq, [b"a"]) for seq in range(1, 51)]
    bench.log.at_once = 3
    assert refreshed(bench) is True
    run = bench.live.get("run_x")
    assert run is not None
    assert run.last_seq == 50


def test_while_a_long_log_is_taken_in_own_runs_have_their_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumps, "TICK", 0.0)  # what may be taken in with one tick takes longer than that
    bench.log.others = [Append("run_x", seq, [b"a"]) for seq in range(1, 51)]
    bench.log.at_once = 3
    feed, source = bench.run("run_a")
    thread = threading.Thread(target=bench.pump.refresh)
    thread.start()
    until = time.monotonic() + 60
    while not bench.pump._looks and time.monotonic() < until:
        pass
    bench.put(feed, source, Delta("Hello"))
    bench.tick()
    assert bench.log.text("run_a") == "Hello"
    assert bench.log.others
    assert bench.pump._moving
    assert bench.pump._patience() == 0
    assert thread.is_alive(), "what it waits for is not all here"
    while thread.is_alive() and time.monotonic() < until:
        bench.tick()
    run = bench.live.get("run_x")
    assert run is not None
    assert run.last_seq == 50


def test_who_waits_for_others_alone_does_not_rely_on_being_told(bench: Bench, pipe: int) -> None:
    bench.pump.attend(bench.live.add(LiveRun("run_x", own=False)), Bell())  # a Stop, which is no reader
    bench.tick()
    assert bench.pump._patience() <= 0.5


def test_a_log_that_fails_half_way_is_said_not_to_have_been_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.log.others = [Append("run_x", seq, [b"a"]) for seq in range(1, 51)]
    bench.log.at_once = 3
    turn, calls = bench.log.turn, []

    def failing(*what: object) -> list[Entry]:
        calls.append(what)
        bench.log.unavailable = len(calls) == 5
        return turn(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.log, "turn", failing)
    assert refreshed(bench) is False
    assert refreshed(bench) is True
    run = bench.live.get("run_x")
    assert run is not None
    assert run.last_seq == 50


def test_what_was_appended_is_not_appended_again_because_others_events_could_not_be_read(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.tick()
    bench.log.unreadable = True
    bench.put(feed, source, Delta("Hello"))
    assert refreshed(bench) is False
    bench.log.unreadable = False
    bench.put(feed, source, Done())
    bench.tick(2)
    assert bench.log.text("run_a") == "Hello" == bench.log.endings[0].text


class Bell:
    def wake(self) -> None:
        pass


@pytest.fixture
def pipe(bench: Bench) -> Iterator[int]:
    """Where to write a byte for `others have appended something`."""
    read, write = os.pipe()
    bench.log.pipe = (read, write)
    yield write
    os.close(read)
    os.close(write)


def test_who_waits_for_others_is_told_by_the_log_and_does_not_look_each_tick(bench: Bench, pipe: int) -> None:
    run = bench.live.add(LiveRun("run_x", own=False))
    assert bench.pump._patience() == IDLE
    bench.pump.attend(run, bell := Bell())
    bench.tick()
    assert bench.log.listened
    assert bench.pump._patience() > TICK
    bench.log.others = [Append("run_x", 1, [b"a"])]
    os.write(pipe, b"!")
    began = time.monotonic()
    bench.pump.poller.wait(60)
    assert time.monotonic() - began < 20
    bench.tick()
    assert run.last_seq == 1
    bench.live.unwatch(run, bell)
    bench.tick()
    assert not bench.log.listened


def test_nothing_is_lost_where_the_log_fails_to_listen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(wanted: bool) -> int | None:
        raise RuntimeError("no descriptor")

    feed, source = bench.run("run_a")
    with monkeypatch.context() as patch:
        patch.setattr(bench.log, "listen", failing)
        bench.put(feed, source, Delta("Hello"), Done())
        with pytest.raises(RuntimeError):
            bench.tick()
    bench.tick()
    assert bench.log.text("run_a") == "Hello" == bench.log.endings[0].text


def test_a_log_that_cannot_tell_is_looked_at_each_tick(bench: Bench) -> None:
    bench.pump.attend(bench.live.add(LiveRun("run_x", own=False)), Bell())
    bench.tick()
    assert bench.pump._patience() == TICK


def test_a_log_that_refused_is_asked_until_it_can_be_used_again_though_nobody_follows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pumps, "UNFOLLOW_AFTER", 1e-6)
    feed, source = bench.run("run_a")
    bench.log.unavailable = True
    bench.put(feed, source, Delta("Hello"))
    bench.tick()
    bench.pump.abandon()
    bench.pump.feeds.clear()
    bench.tick()
    assert bench.pump.unavailable_since is not None
    assert bench.pump._patience() < IDLE
    bench.log.unavailable = False
    bench.tick()
    assert bench.pump.unavailable_since is None

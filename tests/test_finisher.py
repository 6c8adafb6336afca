"""A log that is elsewhere than the store: what has ended waits for the store, and nobody else does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from flaskchat.finisher import TOGETHER
from flaskchat.log.base import Append, Entry, LogUnavailable
from flaskchat.models import Delta, Done
from flaskchat.store.base import Ending, Fenced, Lease
from tests.server.client import deadline
from tests.test_pump import Bench, Memory


class Apart(Memory):
    apart = True
    away = False
    """The store cannot be used."""
    never: Exception | None = None
    """What the store says of `run_never`."""
    doubts = 0

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, bool]] = []
        """How many were to be finished, and whether with patience."""

    def without(self, entries: list[Append]) -> set[str]:
        return {entry.run_id for entry in entries if entry.ended}

    def finish(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        self.asked.append((len(endings), patient))
        if self.away:
            raise LogUnavailable("the store is away")
        if self.never is not None and any(ending.run_id == "run_never" for ending in endings):
            raise self.never
        if lease.worker_id not in self.held:
            raise Fenced(lease.worker_id)
        self.endings += endings

    def doubt(self) -> None:
        self.doubts += 1

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        assert not endings
        ended = {entry.run_id for entry in entries if entry.ended}
        assert ended <= {ending.run_id for ending in self.endings}, "an end was appended that the store does not have"
        return super().turn(lease, entries, endings)


class Far(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.log: Apart = Apart()
        self.pump.log = self.log


def until_taken(bench: Far) -> None:
    """What was refused alone is not tried again at once."""
    for _ in deadline(30, "an attempt that is taken"):
        if bench.pump.finisher.attempt():
            return


@pytest.fixture
def bench() -> Iterator[Far]:
    bench = Far()
    yield bench
    bench.pump.close(0)


def test_a_run_is_finished_in_the_store_and_then_ended_in_the_log(bench: Far) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hel"))
    bench.tick()
    bench.put(feed, source, Delta("lo"), Done())
    bench.tick()
    assert not feed.live.ended
    assert source.closed
    assert bench.pump.finisher.attempt()
    bench.tick()
    assert feed.live.ended
    (ending,) = bench.log.endings
    assert (ending.text, ending.state, ending.last_seq) == ("Hello", "done", 4)
    assert ending.frames == feed.live.joined
    assert bench.log.text("run_a") == "Hello"
    assert bench.pump.feeds == {}


def test_while_the_store_is_away_the_others_go_on_and_the_ended_one_is_finished_once(bench: Far) -> None:
    ending, its = bench.run("run_a")
    other, source = bench.run("run_b")
    bench.log.away = True
    bench.put(ending, its, Delta("Hello"), Done())
    for number in range(10):
        bench.put(other, source, Delta(f"{number} "))
        bench.pump.touch(ending)
        bench.tick()
        assert not bench.pump.finisher.attempt()
    assert bench.log.text("run_b") == "0 1 2 3 4 5 6 7 8 9 "
    assert bench.log.read("run_a") == []
    assert bench.pump.unavailable_since is None
    bench.log.away = False
    until_taken(bench)
    bench.tick(2)
    assert bench.log.text("run_a") == "Hello"
    assert len(bench.log.endings) == 1


def test_what_the_store_has_is_over_though_the_log_is_away(bench: Far) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hello"), Done())
    bench.tick()
    assert bench.pump.finisher.attempt()
    bench.log.unavailable = True
    bench.tick()
    assert feed.live.ended
    assert bench.pump.feeds == {}


def test_a_lease_that_was_lost_while_a_run_waited_ends_nothing(bench: Far) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hello"), Done())
    bench.tick()
    bench.log.held.clear()
    assert bench.pump.finisher.attempt()
    assert bench.lease.worker_id == "w_2"
    assert feed.live.closed
    assert bench.pump.feeds == {}
    assert bench.log.endings == []
    fresh, its = bench.run("run_b")
    bench.put(fresh, its, Done())
    bench.tick()
    assert bench.pump.finisher.attempt()
    bench.tick()
    assert fresh.live.ended


def test_an_abandoned_run_is_not_waited_for(bench: Far) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Done())
    bench.log.away = True
    bench.tick()
    assert not bench.pump.finisher.attempt()
    bench.lease = Lease("w_2", 2)
    bench.pump.abandon()
    assert bench.pump.finisher.attempt(), "nothing is left to finish"


def test_the_task_tries_again_and_ends_with_the_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Far()
    monkeypatch.setattr("flaskchat.finisher.AGAIN", 0.001)
    bench.log.away = True
    bench.pump.start()
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hello"), Done())
    for _ in deadline(10, "the end to be tried"):
        if bench.pump.finisher._refused_since is not None:
            break
    bench.log.away = False
    for _ in deadline(10, "the run's end"):
        if feed.live.ended:
            break
    began = time.monotonic()
    bench.pump.close(5)
    assert time.monotonic() - began < 5
    assert not bench.pump.finisher._task.is_alive()  # type: ignore[union-attr]


@pytest.mark.parametrize("what", [LogUnavailable("out of range"), ValueError("what nobody has thought of")])
def test_one_that_the_store_never_takes_keeps_none_of_the_others(bench: Far, what: Exception) -> None:
    bench.log.never = what
    others = []
    for name in ("run_never", "run_b", "run_c", "run_d"):
        feed, source = bench.run(name)
        bench.put(feed, source, Delta("Hello"), Done())
        others.append(feed)
    bench.tick()
    for _ in deadline(30, "the others' end"):
        bench.pump.finisher._attempt()
        bench.tick()
        if [feed.live.ended for feed in others] == [False, True, True, True]:
            break
    assert bench.log.asked[0] == (4, False)
    assert set(bench.log.asked[1:]) == {(1, True)}, "alone, and with more patience"
    for name in ("run_e", "run_f"):
        feed, source = bench.run(name)
        bench.put(feed, source, Done())
    bench.tick()
    assert bench.pump.finisher.attempt()
    assert bench.log.asked[-1] == (2, False), "those that come later do not go with the one that was refused"


def test_ended_runs_are_finished_some_at_a_time(bench: Far) -> None:
    feeds = []
    for number in range(2 * TOGETHER + 1):
        feed, source = bench.run(f"run_{number}")
        bench.put(feed, source, Done())
        feeds.append(feed)
    bench.tick()
    for finished in (TOGETHER, 2 * TOGETHER, 2 * TOGETHER + 1):
        assert bench.pump.finisher.attempt()
        assert len(bench.log.endings) == finished
    bench.tick()
    assert all(feed.live.ended for feed in feeds)


def test_whatever_fails_when_a_lease_is_lost_it_is_tried_again(bench: Far) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Done())
    bench.tick()
    bench.log.held.clear()
    abandon = bench.pump.on_fenced

    def fail(lease: Lease) -> None:
        bench.pump.on_fenced = abandon
        raise OSError("no locks are available")

    bench.pump.on_fenced = fail
    assert not bench.pump.finisher._attempt()
    assert bench.pump.finisher._attempt()
    assert feed.live.closed


def test_a_store_that_is_away_for_long_makes_the_log_be_asked_who_writes_our_runs(
    bench: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have counted this worker out meanwhile, and its readers would wait for an end that it cannot write."""
    feed, source = bench.run("run_a")
    bench.put(feed, source, Done())
    bench.log.away = True
    bench.tick()
    assert not bench.pump.finisher.attempt()
    assert not bench.pump.finisher.attempt()
    assert bench.log.doubts == 0
    monkeypatch.setattr("flaskchat.finisher.DOUBT_AFTER", -1.0)
    for _ in deadline(30, "the next attempt"):
        assert not bench.pump.finisher.attempt()
        if bench.log.doubts == 1:
            break


def test_what_the_store_has_is_over_though_the_log_cannot_even_be_followed(
    bench: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[Entry]:
        raise LogUnavailable("it is away")

    monkeypatch.setattr(bench.log, "follow", away)
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hello"), Done())
    bench.tick()
    assert bench.pump.finisher.attempt()
    bench.tick()
    assert feed.live.ended
    assert bench.pump.feeds == {}

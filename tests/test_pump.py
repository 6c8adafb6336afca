"""The tick: what it commits, what it keeps while the log is locked, what it forgets when the lease is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from flaskchat import feed as feeds
from flaskchat import pump as pumps
from flaskchat import tasks
from flaskchat.errors import ModelRaised
from flaskchat.feed import Feed
from flaskchat.live import Live, LiveRun
from flaskchat.log.base import Append, Entry, LogUnavailable, Stop
from flaskchat.models import Delta, Done, Event, Stopped
from flaskchat.pump import Pump
from flaskchat.replay import Replay
from flaskchat.store.base import Begun, Ending, Fenced, Lease


class Memory:
    """A log that does what it is told."""

    tells = apart = False

    def __init__(self) -> None:
        self.calls = tasks.Offloader(1)
        self.on_news: Callable[[], None] = lambda: None
        self.appended: list[tuple[str, Append]] = []
        self.endings: list[Ending] = []
        self.held: set[str] = {"w_1"}
        self.unavailable = False
        self.full = False
        """Nothing can be appended; what there is can be read."""
        self.unreadable = False
        self.others: list[Entry] = []
        self.at_once = 1000
        """How many of them a turn returns."""
        self.before: list[Entry] = []
        self.pipe: tuple[int, int] | None = None
        """By which it tells that others have appended something."""
        self.listened = False

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        if self.unavailable:
            raise LogUnavailable("locked")
        if (self.full and entries) or (self.unreadable and not entries):
            raise LogUnavailable("full")
        if entries:
            assert lease is not None
            if lease.worker_id not in self.held:
                raise Fenced(lease.worker_id)
            self.appended += [(lease.worker_id, entry) for entry in entries]
            self.endings += endings
            if self.unreadable:
                return []
        others, self.others = self.others[: self.at_once], self.others[self.at_once :]
        return others

    def without(self, entries: list[Append]) -> Collection[str]:
        return ()

    @property
    def behind(self) -> bool:
        return bool(self.others)

    def follow(self) -> list[Entry]:
        return self.before

    def listen(self, wanted: bool) -> int | None:
        self.listened = wanted
        return self.pipe[0] if wanted and self.pipe is not None else None

    def heard(self) -> None:
        assert self.pipe is not None
        os.read(self.pipe[0], 100)

    def unfollow(self) -> None:
        pass

    def read(self, run_id: str) -> list[Append]:
        return [entry for _, entry in self.appended if entry.run_id == run_id]

    def close(self) -> None:
        pass

    def text(self, run_id: str) -> str:
        """By the seqs that were given, so that a gap or a second copy is seen."""
        seq, frames = 0, []
        for entry in self.read(run_id):
            assert entry.seq == seq + 1
            frames += entry.frames
            seq += len(entry.frames)
        return Replay(frames).text


class Puts:
    """A source whose text the test puts down, as a generator does."""

    def __init__(self) -> None:
        self.waiting: list[Event] = []
        self.error: Exception | None = None
        self.closed = False

    def open(self) -> None:
        pass

    def fileno(self) -> int | None:
        return None

    def read(self) -> list[Event]:
        if self.error is not None:
            raise self.error
        events, self.waiting = self.waiting, []
        return events

    def close(self) -> bool:
        self.closed = True
        return True


class Bench:
    """A pump whose ticks the test makes."""

    def __init__(self) -> None:
        self.log = Memory()
        self.live = Live(1 << 20)
        self.lease = Lease("w_1", 1)
        self.pump = Pump(self.log, self.live, lambda: self.lease, check_period=0.05)
        self.pump.on_fenced = self.fenced

    def fenced(self, lease: Lease) -> None:
        if lease == self.lease:
            self.lease = Lease(f"w_{lease.epoch + 1}", lease.epoch + 1)
            self.log.held.add(self.lease.worker_id)
            self.pump.abandon()

    def run(self, run_id: str, max_bytes: int = 1 << 20, lease: Lease | None = None) -> tuple[Feed, Puts]:
        begun = Begun(
            run_id=run_id, conversation_id="c_1", message_id="m_2", user_message_id="m_1", model="parrot",
            title="Hi", owner="user:1", created=True, lease=lease or self.lease,
        )  # fmt: skip
        feed = Feed(begun, self.live.add(LiveRun(run_id, own=True)), max_bytes)
        feed.source = source = Puts()
        self.pump.add(feed)
        return feed, source

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.pump._tick(time.monotonic())

    def put(self, feed: Feed, source: Puts, *events: Event) -> None:
        source.waiting += events
        self.pump.touch(feed)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pump.close(0)


def test_what_a_tick_brought_is_one_entry_and_published_after_the_commit(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.log.unavailable = True
    bench.put(feed, source, Delta("Hel"), Delta("lo"))
    bench.tick()
    assert feed.live.frames == [], "nothing is published before it is in the log"
    bench.log.unavailable = False
    bench.tick()
    assert len(bench.log.appended) == 1
    assert feed.live.frames == bench.log.appended[0][1].frames
    assert bench.log.text("run_a") == "Hello"


def test_the_end_and_the_last_text_are_committed_together(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("Hello"), Done())
    bench.tick()
    ((_, entry),) = bench.log.appended
    assert entry.ended
    (ending,) = bench.log.endings
    assert (ending.text, ending.state, ending.last_seq) == ("Hello", "done", 3)
    assert ending.frames == b"".join(entry.frames)
    assert bench.pump.feeds == {}
    assert source.closed


def test_nothing_is_lost_or_doubled_while_the_log_cannot_be_written(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    expected = ""
    for number in range(40):
        bench.log.unavailable = number % 4 != 3
        expected += f"word{number} "
        bench.put(feed, source, Delta(f"word{number} "))
        bench.tick()
    bench.put(feed, source, Done())
    bench.log.unavailable = False
    bench.tick()
    assert bench.log.text("run_a") == expected == bench.log.endings[0].text


def test_a_source_that_was_held_back_is_read_again_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that waits for its texts to be read says so once, and has nothing more to say afterwards."""
    monkeypatch.setattr(feeds, "BACKLOG", 1000)
    feed, source = bench.run("run_a")
    bench.log.unavailable = True
    bench.put(feed, source, Delta("x" * 2000))
    bench.tick()
    bench.put(feed, source, Delta("y"), Done())
    bench.tick(3)
    assert source.waiting, "it was read though too much waited already"
    bench.log.unavailable = False
    bench.tick(2)
    assert bench.log.text("run_a") == "x" * 2000 + "y"
    assert bench.log.endings


def test_a_lost_lease_forgets_the_runs_and_sends_their_readers_away(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.tick()
    bench.log.held.clear()
    bench.put(feed, source, Delta("late"))
    bench.tick()
    assert source.closed
    assert feed.live.closed
    assert bench.pump.feeds == {}
    assert bench.live.get("run_a") is None


def test_what_a_fenced_run_still_brings_is_not_written_under_the_new_lease(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    source.pending = True  # type: ignore[attr-defined]
    bench.tick()
    bench.log.held.clear()
    bench.put(feed, source, Delta("late"))
    bench.tick()
    assert bench.lease.epoch == 2
    new, fresh = bench.run("run_b")
    bench.put(new, fresh, Delta("new"))
    # A killed generator says once more that it is ready, and a source that was being opened reports its failure.
    bench.pump.touch(feed)
    feed.decide(Stopped())
    bench.tick(3)
    assert {entry.run_id for lease, entry in bench.log.appended if lease == "w_2"} == {"run_b"}
    assert bench.lease.epoch == 2, "the new lease was given up because of the old run"
    assert "run_b" in bench.pump.feeds


def test_a_run_begun_under_a_lost_lease_is_not_written_under_the_next(bench: Bench) -> None:
    """Its start was between the store and the pump when the lease was taken over."""
    late = bench.lease
    bench.fenced(late)
    feed, source = bench.run("run_a", lease=late)
    bench.put(feed, source, Delta("late"))
    new, fresh = bench.run("run_b")
    bench.put(new, fresh, Delta("new"))
    bench.tick(2)
    assert {entry.run_id for _, entry in bench.log.appended} == {"run_b"}
    assert source.closed
    assert feed.live.closed
    assert list(bench.pump.feeds) == ["run_b"]


def test_a_run_that_begins_while_the_lost_ones_are_closed_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = bench.run("run_a")
    bench.tick()
    monkeypatch.setattr(source, "close", lambda: bool(bench.run("run_b")))  # closing a generator lets others run
    bench.fenced(bench.lease)
    assert list(bench.pump.feeds) == ["run_b"]
    bench.tick()
    assert [(lease, entry.run_id) for lease, entry in bench.log.appended] == [("w_1", "run_a"), ("w_2", "run_b")]


def test_a_source_that_fails_ends_its_own_run_only(bench: Bench) -> None:
    bad, raises = bench.run("run_a")
    good, source = bench.run("run_b")
    unencodable, surrogate = bench.run("run_c")
    raises.error = ZeroDivisionError()
    bench.put(bad, raises)
    bench.put(unencodable, surrogate, Delta("before "), Delta("\ud800"))
    bench.put(good, source, Delta("fine"), Done())
    bench.tick(2)
    assert {ending.run_id: ending.state for ending in bench.log.endings} == {
        "run_a": "error", "run_b": "done", "run_c": "error",
    }  # fmt: skip
    assert bench.log.text("run_c") == "before "


def test_an_error_of_the_model_comes_after_its_text(bench: Bench) -> None:
    feed, source = bench.run("run_a")
    bench.put(feed, source, Delta("before"))
    bench.tick()
    source.error = ModelRaised()
    bench.pump.touch(feed)
    bench.tick()
    (ending,) = bench.log.endings
    assert (ending.state, ending.text) == ("error", "before")


@pytest.mark.parametrize("pieces", [["x" * 3000], ["é" * 700] * 5, ["x" * 1023, "€😀"]])
def test_a_reply_is_cut_at_the_largest_size_that_is_kept(bench: Bench, pieces: list[str]) -> None:
    feed, source = bench.run("run_a", max_bytes=1024)
    for piece in pieces:
        bench.put(feed, source, Delta(piece))
        bench.tick()
    (ending,) = bench.log.endings
    assert ending.state == "error"
    assert b"reply_too_long" in (ending.error or b"")
    assert "".join(pieces).startswith(ending.text)
    assert 1020 < len(ending.text.encode()) <= 1024
    assert bench.log.text("run_a") == ending.text


def test_a_check_that_raises_keeps_no_run_from_its_end(bench: Bench) -> None:
    def check(now: float) -> None:
        raise ZeroDivisionError

    bench.pump.checks.append(check)
    feed, source = bench.run("run_a")
    bench.put(feed, source, Done())
    bench.tick()
    assert bench.log.endings


def test_a_refresh_brings_what_others_appended_before_it(bench: Bench) -> None:
    bench.log.before = [Append("run_x", 1, [b"a"])]
    bench.log.others = [Append("run_x", 2, [b"b"])]
    thread = threading.Thread(target=bench.pump.refresh)
    thread.start()
    while thread.is_alive():
        bench.tick()
    run = bench.live.get("run_x")
    assert run is not None
    assert run.frames == [b"a", b"b"]


def test_a_long_log_is_taken_in_with_pauses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_in: list[int] = []
    monkeypatch.setattr(pumps, "BREATH", 100)
    monkeypatch.setattr(pumps.tasks, "sleep", lambda seconds: taken_in.append(run_of("run_x").last_seq))

    def run_of(run_id: str) -> LiveRun:
        run = bench.live.get(run_id)
        assert run is not None
        return run

    bench.log.before = [Append("run_x", seq, [b"a"]) for seq in range(1, 501)]
    bench.run("run_a")
    bench.tick()
    assert taken_in == [99, 199, 299, 399, 499]
    assert run_of("run_x").last_seq == 500


def test_refreshes_from_many_threads_all_return() -> None:
    bench = Bench()
    bench.pump.start()
    done: list[int] = []

    def refresh() -> None:
        for _ in range(60):
            bench.pump.refresh()
        done.append(1)

    threads = [threading.Thread(target=refresh, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    bench.pump.close(2)
    assert len(done) == 8


def test_a_stop_in_the_log_is_told(bench: Bench) -> None:
    told: list[Stop] = []
    bench.pump.on_stop = told.append
    bench.run("run_a")
    bench.log.others = [Stop("run_a", 1.0)]
    bench.tick()
    assert told == [Stop("run_a", 1.0)]

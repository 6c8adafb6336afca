"""A tick of which a part raises: who raises costs only itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flaskchat.errors import FlaskChatError, ModelClosedEarly
from flaskchat.feed import Feed
from flaskchat.log.base import Append, Entry, Leave, Stop
from flaskchat.models import Delta, Done, Event
from tests.test_pump import Bench, Puts


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pump.close(0)


def fails(*about: object) -> None:
    raise RuntimeError("can't start new thread")


def test_what_is_committed_is_published_whatever_telling_of_an_end_raises(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    ends = {name: bench.run(name) for name in ("run_a", "run_b")}
    goes_on, source = bench.run("run_c")
    feeds = [*(feed for feed, _ in ends.values()), goes_on]
    for feed in feeds:
        bench.pump.attend(feed.live, Told(feed, told))
    bench.pump.on_ended = fails
    for feed, ending in ends.values():
        bench.put(feed, ending, Delta("Hello"), Done())
    bench.put(goes_on, source, Delta("Well"))
    bench.log.others = [Append("run_x", 1, [b"a"])]
    bench.tick()
    assert [feed.live.last_seq for feed in feeds] == [3, 3, 2]
    assert told == ["run_a", "run_b", "run_c"], "who waits for the end was not woken"
    assert list(bench.pump.feeds) == ["run_c"]
    assert bench.live.get("run_x") is not None
    assert len(caplog.records) == 2, "one for each"


class Told:
    def __init__(self, feed: Feed, told: list[str]) -> None:
        self.feed, self.told = feed, told

    def wake(self) -> None:
        self.told.append(self.feed.begun.run_id)


@pytest.mark.parametrize("entry", [Stop("run_a", 1.0), Leave("user:1", "", 1.0, 2.0)], ids=["Stop", "sign-out"])
def test_news_that_cannot_be_acted_upon_cost_no_others(
    bench: Bench, caplog: pytest.LogCaptureFixture, entry: Entry
) -> None:
    bench.pump.on_stop = bench.pump.on_leave = fails
    bench.run("run_a")
    bench.log.others = [Append("run_x", 1, [b"a"]), entry, Append("run_x", 2, [b"b"])]
    bench.tick()
    run = bench.live.get("run_x")
    assert run is not None
    assert run.frames == [b"a", b"b"]
    assert "can't start new thread" in caplog.text


def test_an_end_for_which_there_is_no_memory_costs_nobody_an_event_and_comes_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, source = bench.run("run_a")
    ends, ending = bench.run("run_b")
    after, last = bench.run("run_c")
    make, fails = Feed.ending, [MemoryError()]

    def scarce(feed: Feed, frames: list[bytes]) -> Any:
        if fails:
            raise fails.pop()
        return make(feed, frames)

    monkeypatch.setattr(Feed, "ending", scarce)
    bench.put(before, source, Delta("Well"))
    bench.put(ends, ending, Delta("Hello"), Done())
    bench.put(after, last, Delta("Well"))
    bench.tick()
    assert [bench.log.text(name) for name in ("run_a", "run_b", "run_c")] == ["Well", "", "Well"]
    bench.put(before, source, Delta(" then"))
    bench.tick()
    assert [bench.log.text(name) for name in ("run_a", "run_b", "run_c")] == ["Well then", "Hello", "Well"]
    assert [ending.run_id for ending in bench.log.endings] == ["run_b"]
    assert list(bench.pump.feeds) == ["run_a", "run_c"]
    assert "run_b: its end could not be made" in caplog.text


def test_a_source_whose_closing_raises_keeps_no_other_from_being_read(bench: Bench) -> None:
    bad, raises = bench.run("run_a")
    good, source = bench.run("run_b")
    raises.close = fails  # type: ignore[assignment]
    bench.put(bad, raises, Delta("Hello"), Done())
    bench.put(good, source, Delta("fine"), Done())
    bench.tick()
    assert {ending.run_id: ending.state for ending in bench.log.endings} == {"run_a": "done", "run_b": "done"}


class Breaks(Puts):
    """A source that keeps what it raises, as one does that gives first what came before."""

    def read(self) -> list[Event]:
        if self.error is None:
            try:
                raise OSError("cut")
            except OSError as error:
                self.error = ModelClosedEarly(str(error))
                raise self.error from error
        raise self.error


Kept = Callable[..., list[Any]]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What there is of some types, without what other tests have left; the collector does not come."""
    gc.collect()
    gc.disable()
    before = gc.get_objects()
    known = {id(one) for one in before}
    yield lambda *kinds: [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in known]
    gc.enable()
    del before  # until here: or what comes later might have the place in memory, and so the id, of what has gone


def test_a_model_that_breaks_off_leaves_nothing_of_its_tick_to_the_collector(bench: Bench, kept: Kept) -> None:
    feed, source = bench.run("run_a")
    broken, _ = bench.run("run_b")
    broken.source = Breaks()
    bench.put(feed, source, Delta("Hello"), Done())
    bench.pump.touch(broken)
    bench.tick(2)
    assert broken.live.ended
    del feed, source, broken, _
    assert kept(Feed, FlaskChatError, Puts, Breaks) == []


def test_a_log_that_refuses_leaves_nothing_of_its_tick_to_the_collector(bench: Bench, kept: Kept) -> None:
    feed, source = bench.run("run_a")
    bench.log.unavailable = True
    bench.put(feed, source, Delta("Hello"))
    bench.tick(3)
    bench.log.unavailable = False
    bench.tick()
    assert feed.live.last_seq == 2
    assert [one.__traceback__ for one in kept(FlaskChatError)] in ([], [None]), "but for what the test's own log keeps"

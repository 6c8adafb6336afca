"""What readers do where memory has a gap, where a run is over, and where their user signs out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from flaskchat import sse
from flaskchat.config import Settings
from flaskchat.errors import Unavailable
from flaskchat.limits import Limits, Visitor
from flaskchat.live import Live, LiveRun
from flaskchat.log.base import Append, Leave, LogUnavailable, clock
from flaskchat.metrics import Metrics
from flaskchat.models import Delta
from flaskchat.places import Places
from flaskchat.readers import LATE, Readers
from tests.test_live import Bell, known

T = TypeVar("T")


def delta(seq: int) -> bytes:
    return sse.encode(seq, Delta(f"t{seq} "))


class Log:
    """The pump, as far as readers ask it. While its log is read, the run goes on."""

    def __init__(self) -> None:
        self.poller = None
        self.metrics = Metrics()
        self.checks: list[Any] = []
        self.unavailable_since = None
        self.feeds: dict[str, Any] = {}
        self.entries: list[Append] = []
        self.meanwhile: list[bytes] = []
        self.run: LiveRun | None = None
        self.broken = False

    def read(self, run_id: str) -> list[Append]:
        if self.broken:
            raise LogUnavailable("locked")
        if self.meanwhile and self.run is not None:
            self.entries.append(Append(run_id, self.run.last_seq + 1, self.meanwhile))
            self.run.extend(self.meanwhile, False)
            self.meanwhile = []
        return self.entries

    def attend(self, run: LiveRun, bell: Bell) -> None:
        pass

    def refresh(self) -> bool:
        if self.run is not None and self.meanwhile:
            self.run.extend(self.meanwhile, True)
        return True


class Store:
    """The store, as far as readers ask it: for a thread, where something takes long."""

    def __init__(self) -> None:
        self.database = self
        self.offloaded = 0
        self.running = {"run_a"}

    def offload(self, function: Callable[[], T]) -> T:
        self.offloaded += 1
        return function()

    def still_running(self, run_ids: set[str]) -> set[str]:
        return self.running & run_ids


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def readers(log: Log, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    live = Live(1 << 20)
    log.entries = [Append("run_a", 1, [delta(1), delta(2)]), Append("run_a", 3, [delta(3)])]
    for entry in log.entries:
        live.apply(entry)
    log.run = run = known(live)
    run.forget()
    places = Places(tmp_path)
    pump, asked = cast("Any", log), cast("Any", store)  # as much of them as readers ask
    found = Readers(Settings(), pump, live, asked, Limits(Settings(), places), capacity=10)
    monkeypatch.setattr(found, "_locate", lambda run_id, owner: run)
    yield found
    places.close()


def frames(data: bytes) -> list[sse.Frame]:
    return sse.Decoder().feed(data)


def test_a_reset_says_no_more_than_its_seq_though_the_run_goes_on(log: Log, readers: Readers) -> None:
    log.meanwhile = [delta(4), delta(5)]
    reader = readers.follow("run_a", Visitor("me"), "ahead")
    assert reader is not None
    (reset,) = frames(next(reader))
    found = json.loads(reset.data)
    rest = frames(next(reader))
    assert [int(frame.id) for frame in rest] == list(range(found["seq"] + 1, 6))
    said = found["text"] + "".join(json.loads(frame.data)["text"] for frame in rest)
    assert said == "t1 t2 t3 t4 t5 "


def test_the_text_of_a_reset_is_put_together_off_the_hub(readers: Readers, store: Store) -> None:
    """A reply of some minutes has tens of thousands of events; anybody may send a cursor that means nothing."""
    readers.follow("run_a", Visitor("me"), "ahead")
    assert store.offloaded == 1


def test_a_reset_that_cannot_be_made_is_told_and_not_guessed(log: Log, readers: Readers) -> None:
    log.broken = True
    with pytest.raises(Unavailable) as caught:
        readers.follow("run_a", Visitor("me"), "ahead")
    assert caught.value.problem_code == "log_unavailable"
    log.broken = False
    del log.entries[0]  # pruned
    with pytest.raises(Unavailable):
        readers.follow("run_a", Visitor("me"), "ahead")
    assert len(readers) == 0


def test_a_reader_behind_memory_gets_the_log_s_events_then_memory_s(log: Log, readers: Readers) -> None:
    assert log.run is not None
    log.run.extend([delta(4)], True)
    reader = readers.follow("run_a", Visitor("me"), "1")
    assert reader is not None
    assert [frame.id for data in reader for frame in frames(data)] == ["2", "3", "4"]


def test_a_reader_whose_events_have_left_the_log_is_sent_away(log: Log, readers: Readers) -> None:
    del log.entries[0]
    reader = readers.follow("run_a", Visitor("me"), "1")
    assert reader is not None
    assert list(reader) == []
    assert log.run is not None
    assert log.run.closed
    assert readers._live.get("run_a") is None, "who comes back would find the closed run again"


def test_a_run_that_is_over_though_the_log_did_not_say_so_lets_its_readers_go(
    log: Log, readers: Readers, store: Store
) -> None:
    reader = readers.follow("run_a", Visitor("me"), "3")
    assert reader is not None
    assert log.run is not None
    readers.look_after()
    store.running.clear()
    log.run.extend([delta(4)], False)
    readers.look_after()
    assert reader.live, "it has just moved: the log will tell of its end"
    readers.look_after()
    assert not reader.live
    assert readers._live.get("run_a") is None
    assert [frame.id for data in reader for frame in frames(data)] == ["4"]


def test_an_end_that_is_on_its_way_is_waited_for(log: Log, readers: Readers, store: Store) -> None:
    readers.look_after()
    store.running.clear()
    log.meanwhile = [delta(4)]
    readers.look_after()
    assert log.run is not None
    assert log.run.ended
    assert not log.run.closed


def test_who_signs_out_while_the_request_is_on_its_way_reads_nothing_more(readers: Readers) -> None:
    on_its_way = Visitor("me")
    readers._leave_asked(Leave("me", "", time.monotonic(), clock()))
    reader = readers.follow("run_a", on_its_way, "3")
    assert reader is not None
    assert not reader.live
    later = readers.follow("run_a", Visitor("me"), "3")
    other = readers.follow("run_a", Visitor("you"), "3")
    assert later is not None
    assert other is not None
    assert later.live
    assert other.live
    readers._leave_asked(Leave("you", "", time.monotonic(), clock()))
    assert later.live, "nobody else's stream ends"
    assert not other.live


def test_who_comes_back_as_they_are_signed_out_is_ended_once_more(readers: Readers) -> None:
    asked = time.monotonic()
    readers._leave_asked(Leave("me", "", asked, clock()))
    back = readers.follow("run_a", Visitor("me"), "3")
    other = readers.follow("run_a", Visitor("you"), "3")
    assert back is not None
    assert other is not None
    readers.check(asked + LATE / 2)
    assert back.live
    readers.check(asked + LATE + 1)
    assert not back.live
    assert other.live


def test_a_sign_out_that_is_read_again_ends_nothing_of_who_is_signed_in_since(readers: Readers) -> None:
    """As whoever begins to follow the log reads what is still in it."""
    on_its_way = Visitor("me")
    now = time.monotonic()
    readers._leave_asked(Leave("me", "", now, clock()))
    since = readers.follow("run_a", Visitor("me"), "3")
    assert since is not None
    since.visitor.since = now + 1
    readers._leave_asked(Leave("me", "", now - 30, clock()))
    readers._late.popleft()  # of the first
    readers.check(now + LATE + 1)
    assert since.live
    again = readers.follow("run_a", on_its_way, "3")
    assert again is not None
    assert not again.live, "the later of two counts for what was on its way"


def test_a_place_is_taken_while_the_store_is_asked(readers: Readers) -> None:
    readers.capacity = 1
    with readers.place(), pytest.raises(Unavailable):
        readers.follow("run_a", Visitor("me"), None)
    reader = readers.follow("run_a", Visitor("me"), None)
    assert reader is not None
    with pytest.raises(Unavailable):
        readers.admit()
    reader.close()
    readers.admit()

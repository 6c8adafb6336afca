"""Where requests are threads (gthread, `flask run`): what another thread does in between, at the worst moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flaskchat import live as lives
from flaskchat.config import Settings
from flaskchat.limits import Limits, Visitor
from flaskchat.live import CHUNK, Live, LiveRun
from flaskchat.log.base import Leave, Stop, clock
from flaskchat.log.streams import Keys
from flaskchat.log.tail import Tail
from flaskchat.places import Places
from flaskchat.providers.registry import Registry
from flaskchat.reader import Reader
from flaskchat.readers import Readers
from flaskchat.runtime import Runtime
from tests.server.client import deadline
from tests.test_following import Log, Store
from tests.test_reader import Keeper
from tests.test_runs import OWNER, command

# -- events and readers ------------------------------------------------------------------------------------------------


def test_a_reader_is_given_the_end_that_came_when_it_had_just_found_nothing() -> None:
    class EndsMeanwhile(LiveRun):
        def take(self, cursor: int) -> tuple[bytes, int]:
            found = super().take(cursor)
            if not found[0] and not self.ended:  # the tick comes
                self.extend([b"end"], True)
                self.wake()
            return found

    run = EndsMeanwhile("run_a", own=True)
    reader = Reader(Keeper(), run, 0, b"", b"", Visitor("owner"))
    run.bells.add(reader)
    run.extend([b"start"], False)
    assert list(reader) == [b"start", b"end"]


def test_what_is_let_go_of_while_it_is_taken_leaves_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    run = LiveRun("run_a", own=False)
    run.extend([b"x" * 1000] * (2 * CHUNK // 1000), False)
    bisect_left = lives.bisect_left

    def meanwhile(*args: Any) -> int:
        run.forget()
        return bisect_left(*args)

    monkeypatch.setattr(lives, "bisect_left", meanwhile)
    data, cursor = run.take(0)
    assert len(data) == cursor * 1000 > 0
    with pytest.raises(LookupError):
        run.take(cursor)


def test_who_lets_go_of_a_run_leaves_the_one_that_stands_in_its_place_by_now() -> None:
    live = Live(1 << 20)
    before = live.add(LiveRun("run_a", own=False))
    now = live.add(LiveRun("run_a", own=False))
    live.drop(before)
    assert live.get("run_a") is now
    live.drop(now)
    live.drop(now)
    assert live.get("run_a") is None


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Readers]:
    places = Places(tmp_path)
    limits = Limits(Settings(), places)
    yield Readers(Settings(), Log(), Live(1 << 20), Store(), limits, capacity=10)  # type: ignore[arg-type]
    places.close()


class Looked:
    """A reader that is looked at; meanwhile one more is attached."""

    run = LiveRun("run_a", own=False)

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self.visitor = self

    def meant(self, leave: Leave, run_id: str) -> bool:
        return self.live

    @property
    def live(self) -> bool:
        self._readers._open.add(object())  # type: ignore[arg-type]
        return False


def test_a_stream_may_begin_while_all_are_looked_at(readers: Readers) -> None:
    looked: Any = Looked(readers)
    readers._open.add(looked)
    readers._leave_asked(Leave("owner", "run_a", 1.0, clock()))
    readers._open = {looked}
    assert not readers.followed()
    assert len(readers) == 2


def test_somebody_may_sign_out_while_those_before_are_forgotten(readers: Readers) -> None:
    class At(float):
        def __rsub__(self, now: float) -> float:
            readers._signed_out["another"] = now
            return now - float(self)

    readers._signed_out["one"] = At(0.0)
    readers.check(1000.0)
    assert list(readers._signed_out) == ["another"]


def test_a_run_may_end_between_two_looks_at_redis() -> None:
    class Silent:
        def ask(self, *commands: object) -> list[Any]:
            return [None]

    memory = Live(1 << 20)
    links: Any = Silent  # as much of a link as it needs
    tail, run = Tail(links, Keys("chat"), memory, lambda: None), memory.add(LiveRun("run_a", own=False))
    watched = tail._watched

    def meanwhile() -> Any:
        found = watched()
        run.ended = True
        watched()  # the pump looks as well
        return found

    tail._watched = meanwhile  # type: ignore[method-assign]  # to end a run there
    tail.look(links())


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """A worker without a sweep; its model is silent."""
    told = threading.Event()

    def model(request: Any) -> Iterator[str]:
        told.wait(60)
        yield "too late"

    settings = Settings(model="waits", drain=0.0, titles=False)
    runtime = Runtime(settings, f"sqlite:///{tmp_path}/chat.sqlite3", Registry(settings, {"waits": model}))
    runtime.pump.start()
    yield runtime
    told.set()
    runtime.close()


def test_a_run_may_begin_while_all_are_looked_at(runtime: Runtime) -> None:
    class Looked:
        def held(self) -> int:
            runtime.pump.feeds["run_b"] = runtime.pump.feeds["run_a"]
            return 1

        def over(self) -> bool:
            return True

    feeds = runtime.pump.feeds
    runtime.pump.feeds = {"run_a": Looked()}  # type: ignore[dict-item]
    try:
        runtime.runs.check(0.0)
    finally:
        runtime.pump.feeds = feeds


def test_a_stop_that_comes_while_its_run_is_being_added_is_not_lost(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, asked, added = threading.Event(), threading.Event(), threading.Event()
    make_feed, found = runtime.runs._feed, []

    def after_the_question(*args: Any) -> Any:
        begun.set()
        asked.wait(60)
        return make_feed(*args)

    class Feeds(dict[str, Any]):
        """Whoever looks for a run finds none; and then, before anything else, it is there."""

        def get(self, run_id: str, default: Any = None) -> Any:
            before = super().get(run_id, default)
            if before is None and run_id and threading.current_thread() is threading.main_thread():
                asked.set()
                added.wait(60)
            return before

    monkeypatch.setattr(runtime.runs, "_feed", after_the_question)
    monkeypatch.setattr(runtime.pump, "feeds", Feeds())

    def start() -> None:
        found.append(runtime.runs.start(OWNER, question)[0])
        added.set()

    question = command()
    thread = threading.Thread(target=start)
    thread.start()
    assert begun.wait(60)
    known = runtime.store.known(OWNER, question)
    assert known is not None
    runtime.runs._stop_asked(Stop(known.run_id, time.monotonic(), clock()))
    thread.join(60)
    for _ in deadline(30, "the run's end"):
        row = runtime.store.run(known.run_id, OWNER)
        if row is not None and row.state == "stopped":
            break
    assert not runtime.runs._early_stops

"""The live runs in memory: what is taken in, passed over and let go of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from flaskchat.live import CHUNK, Live, LiveRun
from flaskchat.log.base import Append


class Bell:
    def __init__(self) -> None:
        self.rung = 0

    def wake(self) -> None:
        self.rung += 1


def append(seq: int, *frames: bytes, run_id: str = "run_a", ended: bool = False) -> Append:
    return Append(run_id, seq, list(frames), ended)


def known(live: Live, run_id: str = "run_a") -> LiveRun:
    run = live.get(run_id)
    assert run is not None
    return run


def test_a_reader_takes_what_is_there_joined_and_then_nothing() -> None:
    run = LiveRun("run_a", own=True)
    run.extend([b"a", b"b", b"c"], False)
    assert run.take(0) == (b"abc", 3)
    assert run.take(2) == (b"c", 3)
    assert run.take(3) == (b"", 3)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1, 1, 3], [1, 3, 1], [3]])
def test_what_a_reader_takes_depends_on_its_cursor_alone_however_the_events_came(sizes: list[int]) -> None:
    letters = b"abcdefgh"[: sum(sizes)]
    for cursors in itertools.permutations(range(len(letters) + 1), 2):
        run = LiveRun("run_a", own=True)
        for size in sizes:
            run.extend([bytes([letter]) for letter in letters[run.last_seq : run.last_seq + size]], False)
        for cursor in cursors:
            assert run.take(cursor) == (letters[cursor:], len(letters))


def test_a_reader_that_is_behind_takes_about_one_chunk_a_time() -> None:
    run = LiveRun("run_a", own=True)
    run.extend([bytes([65 + n % 26]) * 1000 for n in range(1000)], False)
    cursor, sizes, whole = 0, [], b""
    while True:
        data, cursor = run.take(cursor)
        if not data:
            break
        sizes.append(len(data))
        whole += data
    assert whole == b"".join(run.frames)
    assert max(sizes) < CHUNK + 1000
    assert len(sizes) < 20


def test_what_was_appended_twice_is_taken_in_once() -> None:
    live = Live(1 << 20)
    for entry in (append(1, b"a", b"b"), append(1, b"a", b"b"), append(2, b"b", b"c"), append(3, b"c")):
        live.apply(entry)
    assert known(live).frames == [b"a", b"b", b"c"]


def test_a_gap_closes_the_run_so_that_its_readers_come_back() -> None:
    live, bell = Live(1 << 20), Bell()
    live.apply(append(1, b"a"))
    run = known(live)
    live.watch(run, bell)
    live.apply(append(3, b"c"))
    assert run.closed
    assert bell.rung == 1
    assert live.get("run_a") is None
    assert run.frames == [b"a"]


def test_an_end_before_what_was_seen_closes_the_run_so_that_its_readers_are_told() -> None:
    """The log lost its tail and the run its worker: whoever ended it knew less than this memory has."""
    live = Live(1 << 20)
    live.apply(append(1, b"1", b"2", b"3", b"4"))
    run = known(live)
    live.apply(append(2, b"2", b"3"))  # what comes twice is nothing of the kind
    assert not run.closed
    live.apply(append(3, b"end", ended=True))
    assert run.closed
    assert live.get("run_a") is None


def test_a_run_whose_beginning_was_not_seen_is_not_taken_in() -> None:
    live = Live(1 << 20)
    live.apply(append(5, b"e"))
    assert len(live) == 0


def test_nobody_appends_to_an_own_or_an_ended_run_from_outside() -> None:
    live = Live(1 << 20)
    own = live.add(LiveRun("run_own", own=True))
    live.apply(append(1, b"a", run_id="run_own"))
    assert own.frames == []
    live.apply(append(1, b"a", ended=True))
    live.apply(append(2, b"b"))
    assert known(live).frames == [b"a"]


def test_what_comes_while_the_past_is_read_waits_for_it() -> None:
    live = Live(1 << 20)
    run = live.loading("run_a")
    live.apply(append(3, b"c"))
    live.apply(append(4, b"d"))
    assert run.frames == []
    live.loaded(run, [append(1, b"a"), append(2, b"b", b"c")])
    assert run.frames == [b"a", b"b", b"c", b"d"]
    assert run.held is None


def test_what_another_thread_appends_while_the_past_is_taken_in_waits_as_well() -> None:
    live = Live(1 << 20)
    run = live.loading("run_a")

    def past() -> Iterator[Append]:
        yield append(1, b"a")
        live.apply(append(3, b"c"))
        yield append(2, b"b")

    live.loaded(run, past())  # type: ignore[arg-type]  # what comes meanwhile comes between two of them
    assert run.frames == [b"a", b"b", b"c"]
    live.apply(append(4, b"d"))
    assert run.frames == [b"a", b"b", b"c", b"d"]
    assert not run.closed


def test_readers_are_woken_when_their_run_moves_and_not_otherwise() -> None:
    live, bell, other = Live(1 << 20), Bell(), Bell()
    live.apply(append(1, b"a"))
    live.apply(append(1, b"a", run_id="run_b"))
    live.watch(known(live), bell)
    live.watch(known(live, "run_b"), other)
    live.apply(append(2, b"b"))
    assert (bell.rung, other.rung) == (1, 0)
    live.unwatch(known(live), bell)
    live.apply(append(3, b"c"))
    assert bell.rung == 1


def test_watchers_count_only_who_waits_for_another_worker() -> None:
    live, bell = Live(1 << 20), Bell()
    own = live.add(LiveRun("run_own", own=True))
    live.apply(append(1, b"a"))
    live.watch(own, bell)
    assert live.watchers == 0
    live.watch(known(live), bell)
    assert live.watchers == 1
    live.unwatch(known(live), bell)
    live.unwatch(known(live), bell)
    assert live.watchers == 0


def test_past_the_limit_the_longest_run_of_another_worker_is_let_go_of() -> None:
    live = Live(1000)
    own = live.add(LiveRun("run_own", own=True))
    own.extend([b"o" * 2000], False)
    live.apply(append(1, b"a" * 900))
    live.apply(append(1, b"b" * 300, run_id="run_b"))
    live.tidy(keep_ended=10)
    long, short = known(live), known(live, "run_b")
    assert (long.base, long.frames, long.last_seq) == (1, [], 1)
    assert short.frames == [b"b" * 300]
    assert own.frames, "its own run is what its end is written from"
    with pytest.raises(LookupError):
        long.take(0)
    live.apply(append(2, b"c"))
    assert long.take(1) == (b"c", 2)


def test_an_ended_run_of_another_worker_stays_a_while_and_then_goes() -> None:
    live = Live(1000)
    live.apply(append(1, b"a", ended=True))
    live.tidy(keep_ended=10)
    assert len(live) == 1
    live.tidy(keep_ended=-1)
    assert len(live) == 0

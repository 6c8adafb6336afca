"""The checker excuses what a Redis that loses data takes with it, and only that."""

from __future__ import annotations

import json
import time

import pytest

from flaskchat.log.base import Append
from flaskchat.sweep import WORKER_LOST
from tests.server.history import Fault
from tests.server.losses import LOSSES
from tests.server.test_checker import FRAMES, WALL, WORDS, World

ENDED = b"event: interrupted\ndata: " + json.dumps({"message": WORKER_LOST}).encode() + b"\n\n"
INTERRUPTED = b"id: 3\n" + ENDED
RESET = b"event: reset\ndata: " + json.dumps({"seq": 2, "text": WORDS[0]}).encode() + b"\n\n"


def bereft(fault: str = "redis rollback") -> World:
    """Alice saw five events; then Redis lost three of them, and the worker died. She came back with her cursor."""
    world = World()
    world.repeats = True
    now = time.monotonic()
    began, lost, ended = now - 100, now - 95, now - 90
    world.run = world.run._replace(state="interrupted", last_seq=3, started_at=WALL + began, ended_at=WALL + ended)
    world.runs = [world.run]
    world.message = world.message._replace(text=WORDS[0], status="interrupted")
    world.frames = [*FRAMES[:2], INTERRUPTED]
    world.journal = {
        1: ("control", [Append("run_a", 1, FRAMES[:3])]),
        2: ("control", [Append("run_a", 4, FRAMES[3:5])]),
        3: ("control", [Append("run_a", 3, [INTERRUPTED], True)]),
    }
    world.history.readings.clear()
    first = world.read(b"retry: 2000\n" + b"".join(FRAMES[:5]), how="cut")
    first.opened_at = began
    first.events[:] = [event._replace(at=lost - 1) for event in first.events]
    world.read(b"retry: 2000\n" + RESET + INTERRUPTED, cursor=5)
    world.history.faults.append(Fault(lost, lost, fault, 0))
    return world


def rules(world: World) -> set[str]:
    return {violation.rule for violation in world.violations()}


@pytest.mark.parametrize("fault", LOSSES)
def test_what_redis_has_lost_with_the_worker_is_excused(fault: str) -> None:
    assert bereft(fault).violations() == []


def test_it_is_not_without_such_a_fault() -> None:
    assert {"lost", "reset", "log"} <= rules(bereft("redis kill"))


@pytest.mark.parametrize("at", [-101.0, -89.0], ids=["before it began", "after its end"])
def test_it_is_not_for_a_run_that_was_not_live_then(at: float) -> None:
    world = bereft()
    world.history.faults = [Fault(time.monotonic() + at, time.monotonic() + at, "redis rollback", 0)]
    assert "lost" in rules(world)


def test_it_is_not_where_the_worker_lived_and_could_write_it_again() -> None:
    world = bereft()
    words = b'{"message":"The server was restarted while it wrote this reply."}'
    end = b"id: 3\nevent: interrupted\ndata: " + words + b"\n\n"
    world.frames[-1] = end
    world.journal[3] = ("control", [Append("run_a", 3, [end], True)])
    world.history.readings.pop()
    world.read(RESET + end, cursor=5)
    assert "lost" in rules(world)


def test_before_the_loss_all_have_seen_the_same() -> None:
    world = bereft()
    world.read(FRAMES[2].replace(b"two", b"TWO"), cursor=2, how="cut")
    assert "same" in rules(world)


def test_what_is_kept_is_what_was_seen() -> None:
    world = bereft()
    world.read(FRAMES[1].replace(b"One", b"Won"), cursor=1, how="cut")
    assert {"same", "lost"} & rules(world)


def test_an_end_that_was_seen_is_never_taken_back() -> None:
    world = bereft()
    world.read(b"".join(FRAMES[2:]), cursor=2)
    assert "end" in rules(world)


def test_its_text_is_that_which_was_left() -> None:
    world = bereft()
    world.read(RESET.replace(b"One ", b"Two ") + INTERRUPTED, cursor=5)
    assert "reset" in rules(world)


def test_nobody_comes_to_an_older_past_by_himself() -> None:
    """Without a `reset` a stream goes on where its reader was."""
    world = bereft()
    world.read(INTERRUPTED, cursor=5)
    assert "resume" in rules(world)


def test_a_run_that_lived_on_is_excused_a_reset_and_has_all_again() -> None:
    world = World()
    now = time.monotonic()
    world.reading.opened_at = now - 100
    world.reading.events[:] = [event._replace(at=now - 96) for event in world.reading.events]
    reset = b"event: reset\ndata: " + json.dumps({"seq": 0, "text": ""}).encode() + b"\n\n"
    world.read(reset + b"".join(FRAMES), cursor=5)
    assert rules(world) == {"reset"}
    world.history.faults.append(Fault(now - 95, now - 95, "redis flushall", 0))
    assert world.violations() == []
    world.frames.pop(3)
    assert "lost" in rules(world)


def deleted(world: World) -> World:
    """Alice deleted it afterwards: the store knows nothing of it any more."""
    world.runs, world.frames = [], []
    world.requests = []
    world.stats = {}
    return world


@pytest.mark.parametrize("fault", LOSSES)
def test_what_redis_has_lost_is_excused_though_it_was_deleted_afterwards(fault: str) -> None:
    assert deleted(bereft(fault)).violations() == []


def test_of_what_was_deleted_no_more_is_excused() -> None:
    assert {"same", "reset", "log"} <= rules(deleted(bereft("redis kill")))
    world = deleted(bereft())
    world.history.faults = [Fault(time.monotonic(), time.monotonic(), "redis rollback", 0)]
    assert "reset" in rules(world), "it had ended by then"
    world = deleted(bereft())
    world.read(b"".join(FRAMES[2:]), cursor=2)
    assert "end" in rules(world)
    world = deleted(bereft())
    world.read(FRAMES[1].replace(b"One", b"Won"), cursor=1, how="cut")
    assert "same" in rules(world)


def told(world: World, text: str, at: float, seq: int = 5) -> World:
    """Somebody was told by a `reset` what nobody else has seen; or `seq` says what Alice has seen too."""
    if seq == 5:
        world.history.readings[0].events.pop()
    reset = json.dumps({"seq": seq, "text": text}, ensure_ascii=False).encode()
    reading = world.read(b"event: reset\ndata: " + reset + b"\n\n", cursor="x", how="cut")
    reading.opened_at = time.monotonic() + at
    reading.events[:] = [event._replace(at=reading.opened_at) for event in reading.events]
    return world


def test_what_a_reset_alone_has_told_is_excused_where_the_model_sent_it() -> None:
    assert told(bereft(), "".join(WORDS), at=-96).violations() == []
    assert "reset" in rules(told(bereft(), "".join(WORDS), at=-89)), "after the run's end"
    assert "reset" in rules(told(bereft(), "One three", at=-96)), "not what the model sent"
    assert "reset" in rules(told(bereft("redis kill"), "".join(WORDS), at=-96))
    assert told(bereft(), "".join(WORDS[:3]), at=-96, seq=4).violations() == []
    assert "reset" in rules(told(bereft(), "".join(WORDS[:2]), at=-96, seq=4)), "others have seen more of it"

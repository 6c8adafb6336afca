"""The checker finds what it is for: forged histories, each with one thing wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.message import Message as Headers
from types import SimpleNamespace
from typing import Any

import pytest

from flaskchat.log.base import Append
from tests.server.checker import check
from tests.server.data import Log
from tests.server.dump import Dump, Gauge, Message, Request, Run, not_back
from tests.server.evidence import Violation
from tests.server.history import Answer, Event, Fault, History, Post, Reading, Wire

WORDS = ["One ", "two ", "thrée 🙂 ", "four"]
FRAMES = [
    b'id: 1\nevent: start\ndata: {"run_id":"run_a","conversation_id":"c_a","message_id":"m_a"}\n\n',
    *(
        b'id: %d\nevent: delta\ndata: {"text":%b}\n\n' % (n, json.dumps(word, ensure_ascii=False).encode())
        for n, word in enumerate(WORDS, 2)
    ),
    b'id: 6\nevent: done\ndata: {"finish_reason":"stop"}\n\n',
]
WALL = time.time() - time.monotonic()


class World:
    """One run of Alice's, one of her readers, and all of it right."""

    def __init__(self) -> None:
        self.history = History()
        self.history.wall_offset = WALL
        now = time.monotonic()
        self.post = Post("alice", "alice", "id-a", {}, "tag-a")
        self.post.at, self.post.status, self.post.run_id, self.post.worker = now - 100, 200, "run_a", 77
        self.history.posts.append(self.post)
        self.history.expected["tag-a"] = "".join(WORDS)
        self.reading = self.read(b"retry: 2000\n" + b"".join(FRAMES))
        self.run = Run(
            "run_a", "c_a", "m_a", "m_u", "visitor:a", "done", "w_a", 1, 6, WALL + now - 100, WALL + now - 90
        )  # fmt: skip
        self.message = Message("m_a", "c_a", "assistant", "".join(WORDS), "done", "run_a")
        self.frames = list(FRAMES)
        self.repeats = False
        self.journal: Log = {
            1: ("w_a", [Append("run_a", 1, FRAMES[:3])]),
            2: ("w_a", [Append("run_a", 4, FRAMES[3:], True)]),
        }
        self.requests = [Request("visitor:a", "id-a", "run_a")]
        self.stats: dict[str, Any] = {"tags": {"tag-a": {"begun": 1}}}
        self.runs = [self.run]

    def read(
        self, data: bytes, *, owner: str = "alice", cursor: object = None, status: int = 200, run_id: str = "run_a",
        how: str = "end",
    ) -> Reading:  # fmt: skip
        stream: Any = SimpleNamespace(status=status, worker=77, headers=Headers())
        reading = Reading(self.history, owner, owner, stream, run_id, cursor, time.monotonic())
        reading.feed(data)
        reading.how = how
        self.history.readings.append(reading)
        return reading

    def violations(self) -> list[Violation]:
        frames = {"run_a": b"".join(self.frames)} if self.frames else {}
        dump = Dump(self.runs, [self.message], frames, self.requests, self.journal, repeats=self.repeats)
        return check(self.history, dump, self.stats)


def test_a_history_in_which_all_is_right_has_no_violation() -> None:
    world = World()
    world.read(b"".join(FRAMES[3:]), cursor=3)
    world.read(b": hb\n" + b"".join(FRAMES[2:4]) + b": hb\n" + FRAMES[4][:9], cursor="2", how="cut")
    reset = {"seq": 3, "text": "One two "}
    world.read(b"event: reset\ndata: " + json.dumps(reset).encode() + b"\n\n" + b"".join(FRAMES[3:]), cursor="x")
    world.read(b"", owner="bob", status=404)
    world.read(b"", cursor=6, status=204)
    assert world.violations() == []


def test_of_a_run_that_was_deleted_the_log_may_be_there_in_part() -> None:
    world = World()
    world.read(b'event: reset\ndata: {"seq":3,"text":"One two "}\n\n', cursor="x", how="cut")
    world.runs, world.frames = [], []
    world.journal = {1: ("w_a", [Append("run_a", 1, FRAMES[:2])])}
    assert "reset" not in {violation.rule for violation in world.violations()}
    world.read(b'event: reset\ndata: {"seq":3,"text":"Two two "}\n\n', cursor="x", how="cut")
    assert "reset" in {violation.rule for violation in world.violations()}


def test_another_fault_puts_the_end_off_as_long_as_it_could_delay_it() -> None:
    world = World()
    ended_late(world)
    assert [violation.rule for violation in world.violations()] == ["late"]
    world.history.faults.append(Fault(world.post.at + 5, world.post.at + 9, "the database is locked", 0))
    assert world.violations() == []
    world.runs = [world.run._replace(ended_at=world.run.started_at + 25)]
    assert [violation.rule for violation in world.violations()] == ["late"]


def twice(world: World) -> None:
    world.read(b"".join([*FRAMES[:3], FRAMES[2], *FRAMES[3:]]))


def gap(world: World) -> None:
    world.read(b"".join([*FRAMES[:3], *FRAMES[4:]]))


def swapped(world: World) -> None:
    world.read(b"".join([*FRAMES[:2], FRAMES[3], FRAMES[2], *FRAMES[4:]]))


def resumed_late(world: World) -> None:
    world.read(b"".join(FRAMES[4:]), cursor=3)


def resumed_early(world: World) -> None:
    world.read(b"".join(FRAMES[2:]), cursor=3)


def other_bytes(world: World) -> None:
    world.read(b"".join([*FRAMES[:2], FRAMES[2].replace(b"two", b"owt"), *FRAMES[3:]]))


def seen_and_not_kept(world: World) -> None:
    world.frames = [*FRAMES[:4], FRAMES[5].replace(b"id: 6", b"id: 5")]
    world.runs = [world.run._replace(last_seq=5)]
    world.message = world.message._replace(text="".join(WORDS[:3]))
    world.journal = {}


def journalled_and_not_kept(world: World) -> None:
    world.journal[1] = ("w_a", [Append("run_a", 1, [*FRAMES[:2], FRAMES[2].replace(b"two", b"2")])])


def holes_in_the_log(world: World) -> None:
    world.frames = [*FRAMES[:3], *FRAMES[4:]]


def no_start(world: World) -> None:
    world.frames = FRAMES[1:]


def no_end(world: World) -> None:
    world.frames = FRAMES[:5]


def two_ends(world: World) -> None:
    world.frames = [*FRAMES, b'id: 7\nevent: interrupted\ndata: {"message":"x"}\n\n']


def still_running(world: World) -> None:
    world.runs = [world.run._replace(state="running", ended_at=None)]


def another_state(world: World) -> None:
    world.message = world.message._replace(status="error")


def no_events(world: World) -> None:
    world.frames = []


def ended_late(world: World) -> None:
    world.history.faults.append(Fault(world.post.at + 1, world.post.at + 1, "kill -9", 77))
    world.runs = [world.run._replace(ended_at=world.run.started_at + 17)]
    world.history.readings.clear()


def text_not_stored(world: World) -> None:
    world.message = world.message._replace(text="".join(WORDS)[:-1])


def not_the_model_s(world: World) -> None:
    world.history.expected["tag-a"] = "One two four"


def less_than_the_model_s(world: World) -> None:
    world.history.expected["tag-a"] = "".join(WORDS) + " five"


def generated_twice(world: World) -> None:
    world.stats["tags"]["tag-a"]["begun"] = 2


def two_runs_of_one_id(world: World) -> None:
    other = Post("alice", "alice/2", "id-a", {}, "tag-a")
    other.status, other.run_id = 200, "run_b"
    world.history.posts.append(other)


def run_of_no_id(world: World) -> None:
    world.requests = []


def stale_append(world: World) -> None:
    world.journal[2] = ("control", [Append("run_a", 4, FRAMES[3:], True)])
    world.journal[3] = ("w_a", [Append("run_a", 7, [b'id: 7\nevent: delta\ndata: {"text":"late"}\n\n'])])


def two_writers(world: World) -> None:
    world.journal[2] = ("w_b", [Append("run_a", 4, FRAMES[3:], True)])


def appended_again(world: World) -> None:
    world.journal[2] = ("w_a", [Append("run_a", 3, FRAMES[2:], True)])


def read_by_another(world: World) -> None:
    world.read(b"".join(FRAMES[:2]), owner="bob")


def forbidden_not_unknown(world: World) -> None:
    world.read(b"", owner="bob", status=403)


def named_to_another(world: World) -> None:
    post = Post("bob", "bob", "id-b", {}, None)
    post.status, post.run_id = 200, "run_b"
    world.history.posts.append(post)
    world.runs = [*world.runs, world.run._replace(id="run_b", owner="visitor:b", conversation_id="c_b")]
    body = {"items": [{"running_run_id": "run_aaaaaaaaaaaa"}]}
    world.runs.append(world.run._replace(id="run_aaaaaaaaaaaa"))
    world.history.answers.append(Answer(0.0, "bob", "bob", "GET", "/conversations", 200, body))


def one_owner_for_two(world: World) -> None:
    post = Post("bob", "bob", "id-b", {}, None)
    post.status, post.run_id = 200, "run_a"
    world.history.posts.append(post)


def reset_without_need(world: World) -> None:
    world.read(b'event: reset\ndata: {"seq":3,"text":"One two "}\n\n' + b"".join(FRAMES[3:]), cursor=2)


def no_reset(world: World) -> None:
    world.read(b"".join(FRAMES[3:]), cursor="abc")


def reset_with_another_text(world: World) -> None:
    world.read(b'event: reset\ndata: {"seq":3,"text":"One "}\n\n' + b"".join(FRAMES[3:]), cursor="abc")


def reset_then_gap(world: World) -> None:
    world.read(b'event: reset\ndata: {"seq":3,"text":"One two "}\n\n' + b"".join(FRAMES[4:]), cursor="abc")


def forged_field(world: World) -> None:
    world.read(FRAMES[0] + b'id: 2\nevent: delta\ndata: {"text":"x"}\ndata: more\n\n')


def carriage_return(world: World) -> None:
    world.read(FRAMES[0] + b'id: 2\r\nevent: delta\r\ndata: {"text":"x"}\r\n\r\n')


def after_the_end(world: World) -> None:
    world.read(b"".join(FRAMES) + b'id: 7\nevent: delta\ndata: {"text":"x"}\n\n')


def broken_frame_at_a_proper_end(world: World) -> None:
    world.read(b"".join(FRAMES[:2]) + FRAMES[2][:20])


def server_error(world: World) -> None:
    world.post.status = 500


def server_error_elsewhere(world: World) -> None:
    world.history.answers.append(Answer(0.0, "alice", "alice", "POST", "/runs/run_a/stop", 500, None))


def one_s_own_is_unknown(world: World) -> None:
    world.read(b"", status=404)


def no_content_before_the_end(world: World) -> None:
    world.read(b"", cursor=3, status=204)


@pytest.mark.parametrize(
    ("forge", "rules"),
    [
        (twice, {"order"}), (gap, {"order"}), (swapped, {"order"}),
        (resumed_late, {"resume"}), (resumed_early, {"resume"}),
        (other_bytes, {"same"}),
        (seen_and_not_kept, {"lost"}), (journalled_and_not_kept, {"lost"}),
        (holes_in_the_log, {"log"}), (no_start, {"log"}), (stale_append, {"log"}), (two_writers, {"log"}),
        (appended_again, {"log"}),
        (no_end, {"end"}), (two_ends, {"end"}), (still_running, {"end"}), (another_state, {"end"}),
        (no_events, {"end"}),
        (ended_late, {"late"}),
        (text_not_stored, {"text"}),
        (not_the_model_s, {"model"}), (less_than_the_model_s, {"model"}),
        (generated_twice, {"once"}), (two_runs_of_one_id, {"once"}), (run_of_no_id, {"once"}),
        (read_by_another, {"owner"}), (forbidden_not_unknown, {"owner", "answer"}), (named_to_another, {"owner"}),
        (one_owner_for_two, {"owner"}),
        (reset_without_need, {"reset"}), (no_reset, {"reset"}), (reset_with_another_text, {"reset"}),
        (reset_then_gap, {"resume"}),
        (forged_field, {"wire"}), (carriage_return, {"wire"}), (after_the_end, {"wire"}),
        (broken_frame_at_a_proper_end, {"wire"}),
        (server_error, {"answer"}), (server_error_elsewhere, {"answer"}), (one_s_own_is_unknown, {"answer"}),
        (no_content_before_the_end, {"answer"}),
    ],
)  # fmt: skip
def test_a_forged_history_is_found_out(forge: Callable[[World], None], rules: set[str]) -> None:
    world = World()
    forge(world)
    found = world.violations()
    print("\n".join(map(str, found)))
    assert rules <= {violation.rule for violation in found}


def test_a_violation_names_run_event_and_client() -> None:
    world = World()
    gap(world)
    (violation,) = world.violations()
    assert str(violation) == "order: 5 came after a gap, after 3 (run run_a, seq 5, client alice)"


def test_an_answer_that_only_says_come_back_is_no_word_about_the_run() -> None:
    world = World()
    answer = world.read(b": hb\n", owner="bob")
    assert world.violations() == []
    answer.stream.headers["Flaskchat-Run-Id"] = "run_a"  # a stream, which has no event yet
    assert {violation.rule for violation in world.violations()} == {"owner"}


def test_an_append_may_be_made_again_where_its_answer_can_be_lost_if_it_says_the_same() -> None:
    world = World()
    appended_again(world)
    assert {violation.rule for violation in world.violations()} == {"log"}
    world.repeats = True
    assert world.violations() == []
    world.journal[3] = ("w_a", [Append("run_a", 4, FRAMES[3:], True)])  # and the whole of it once more
    assert world.violations() == []
    world.journal[3] = ("w_a", [Append("run_a", 4, [FRAMES[4], FRAMES[3]])])
    assert {violation.rule for violation in world.violations()} == {"log"}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_checker_s_own_reader_does_not_mind_where_bytes_are_split(size: int) -> None:
    data = b"retry: 2000\n" + b": hb\n".join([b"", *FRAMES]) if size > 7 else b": hb\n".join([b"", *FRAMES])
    if size > 7:
        data = data.replace(b"retry: 2000\n: hb\n", b": hb\nretry: 2000\n")
    wire = Wire()
    found: list[Event] = []
    for at in range(0, len(data), size):
        found += wire.feed(data[at : at + size], 0.0)
    assert (wire.bad, wire.rest) == (None, b"")
    assert [event.seq for event in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"workers": 1}, "1 workers, 2 before"),
        ({"descriptors": 60}, "descriptors 60"),
        ({"greenlets": 60}, "greenlets 60"),
        ({"memory": 250 << 20}, "memory"),
        ({"wal": 90 << 20}, "wal"),
        ({"model": 1}, "model 1, 0 before"),
    ],
)
def test_what_is_not_back_after_a_fault_is_named(changed: dict[str, int], words: str) -> None:
    before = Gauge(workers=2, descriptors=40, greenlets=20, memory=200 << 20, wal=4 << 20, model=0)
    assert not_back(before, before) == []
    assert not_back(before, before._replace(memory=215 << 20, descriptors=42, wal=5 << 20)) == []
    (found,) = not_back(before, before._replace(**changed))
    assert words in found

"""`kill -9` of a worker, and of everything at once: what was seen is kept, and every run has one end (P1, P2, P3).

The moment of the kill varies by a seed, which is printed. Short forms are a few of them, with leases that are counted
out sooner, beside one with the real times; the long form is 200 kills of a worker and 30 of everything, on every
backend.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

import psutil
import pytest

from tests.conftest import Server
from tests.server.badmodel import Running, text_of
from tests.server.checker import judge
from tests.server.checks import FAULTY, write_lock
from tests.server.client import deadline
from tests.server.dump import Tap
from tests.server.history import Event, History, Reading, Visitor

Serve = Callable[..., Server]
# Killed processes are seen by their locks; nobody is counted out whom a busy machine holds up for a second.
SOON = {"TEST_SWEEP_ROUND": "0.4", "TEST_GONE_AFTER": "1000000"}
KEPT = ["--keep-alive", "30"]
"""So that a connection to a certain worker is still there when it is used, also on a busy machine."""


def settings(model: Running, **more: object) -> dict[str, object]:
    return {
        "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_DRAIN": "0.5", **more,
    }  # fmt: skip


def newcomer(history: History, server: Server, name: str) -> Visitor:
    """Somebody who has seen the page, and so the cookie: a question whose answer is lost is repeated by the same."""
    client = server.client()
    client.json("/conversations")
    return history.visitor(name, client)


def ask_at(visitor: Visitor, worker: int, client_id: str | None = None, **directive: Any) -> Reading:
    """Send a question to that worker."""
    tag = str(directive.setdefault("tag", uuid.uuid4().hex))
    visitor.history.expected[tag] = text_of(directive)
    body = {"message": {"id": client_id or str(uuid.uuid4()), "text": json.dumps(directive)}}
    return visitor.post(body, tag, connection=visitor.client.connect_to(worker))


def until_answered(what: Callable[[], Any], words: str) -> Any:
    """A client comes again when its connection broke off, and when it is asked to."""
    for _ in deadline(90, words):
        with contextlib.suppress(OSError, HTTPException):
            answer = what()
            if answer.status not in (0, 503):
                return answer
    raise AssertionError


class Beside(threading.Thread):
    """Does something at once with others, and keeps what came of it."""

    def __init__(self, what: Callable[[], Any]) -> None:
        super().__init__()
        self.what, self.came, self.at = what, None, 0.0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, HTTPException):
            self.came = self.what()
        self.at = time.monotonic()


class Kill:
    """One worker killed in the middle of everything: long replies and their readers on both workers, a reply that is
    about to end, a question just sent, a Stop just asked for.
    """

    def __init__(self, server: Server, history: History, chance: random.Random, name: str) -> None:
        self.server, self.history, self.chance = server, history, chance
        for _ in deadline(60, "two workers"):
            if len(server.workers()) == 2:
                break
        self.victim = chance.choice(server.workers())
        self.other = next(pid for pid in server.workers() if pid != self.victim)
        self.asker = newcomer(history, server, name)
        self.reader = self.asker.tab()
        self.back = 0.0
        """Seconds after the kill until a reader that was cut off was served elsewhere."""
        self.took = 0.0
        """Seconds after the kill until a run of the victim had ended."""

    def run(self, in_time: float) -> None:
        asker, chance = self.asker, self.chance
        at_other = self.reader.client.connect_to(self.other)
        at_victim = self.reader.client.connect_to(self.victim)
        long = ask_at(asker, self.victim, tokens=2000, rate=50)
        stopped = ask_at(asker, self.victim, tokens=2000, rate=50)
        unharmed = ask_at(asker, self.other, tokens=40, rate=50)
        readers = [self.reader.follow(long.run_id, connection=at_other)]
        readers.append(self.reader.follow(unharmed.run_id, connection=at_victim))
        long.take(chance.randrange(1, 20))
        short_tokens = 10
        short = ask_at(asker, self.victim, tokens=short_tokens, rate=50)
        connection = asker.client.connect_to(self.victim)
        at_stop = asker.tab().client.connect_to(self.other)
        short.take(max(1, short_tokens - 2))
        # All at once, within the same few hundredths of a second.
        reading = [Beside(reader.rest) for reader in (*readers, short)]
        late_id, tag = str(uuid.uuid4()), uuid.uuid4().hex
        self.history.expected[tag] = text_of({"tag": tag, "tokens": 30, "rate": 50})
        question = {"message": {"id": late_id, "text": json.dumps({"tag": tag, "tokens": 30, "rate": 50})}}
        moments = {
            "post": chance.uniform(0, 0.03), "stop": chance.uniform(0, 0.03), "kill": chance.uniform(0, 0.06),
        }  # fmt: skip
        posting = Beside(lambda: after(moments["post"], lambda: asker.post(question, tag, connection=connection)))
        stopping = Beside(lambda: after(moments["stop"], lambda: asker.stop(stopped.run_id, connection=at_stop)))
        time.sleep(moments["kill"])
        killed_at = self.history.fault("kill -9", self.victim).at
        os.kill(self.victim, signal.SIGKILL)
        # Who was cut off comes back to another worker at once.
        long.rest()
        back = until_answered(lambda: asker.follow(long.run_id, long.last, connection=None), "another worker")
        self.back = time.monotonic() - killed_at
        assert back.status == 200
        seen = [*long.events, *back.rest()]
        if not back.ended:
            seen += asker.to_the_end(long.run_id, back.last)
        self.took = time.monotonic() - killed_at
        assert seen[-1].event == "interrupted"
        assert self.took < in_time, f"interrupted {self.took:.1f} s after the kill"
        for thread in (*reading, posting, stopping):
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for ever"
        assert readers[0].events[-1].what == seen[-1].what, "a reader at the other worker was there for the end"
        self.finish(short, {"done", "interrupted"})
        self.finish(stopped, {"stopped", "interrupted"})
        self.finish(unharmed, {"done"})
        self.finish(readers[1], {"done"})
        assert stopping.came is not None, "Stop was not answered by a worker that lives"
        assert stopping.came.status == 200
        assert stopping.came.body["state"] in ("stopped", "interrupted")
        repeated = until_answered(lambda: asker.post(question, tag), "an answer to the question that is asked again")
        assert repeated.status == 200, repeated.stream.json()
        self.finish(repeated, {"done", "interrupted"})
        self.goes_on(seen[0].json["message_id"])

    def finish(self, reading: Reading, states: set[str]) -> list[Event]:
        events = [*reading.events, *reading.rest()]
        if not reading.ended:
            events += self.asker.to_the_end(reading.run_id, reading.last)
        assert events[-1].event in states
        return events

    def goes_on(self, message_id: str) -> None:
        """Continue works."""
        request_id = str(uuid.uuid4())
        further = until_answered(
            lambda: self.asker.again("continue", message_id, client_id=request_id), "an answer to Continue"
        )
        assert further.status == 200, further.stream.json()
        assert [event.event for event in further.take(3)] == ["start", "delta", "delta"]
        assert further.start["message_id"] == message_id
        until_answered(lambda: self.asker.stop(further.run_id), "an answer to Stop")
        further.rest()


def after(seconds: float, what: Callable[[], Any]) -> Any:
    time.sleep(seconds)
    return what()


def test_a_killed_worker_s_run_ends_as_interrupted_within_15_seconds(serve: Serve, model: Running, seed: int) -> None:
    """With the real times; and whoever was cut off is served by the other worker within a second. That the process is
    gone is seen by the lock that showed it alive: nobody counts for how long its lease stands still.
    """
    server = serve(settings(model, TEST_GONE_AFTER=1_000_000), app=FAULTY, args=KEPT)
    history = History()
    kill = Kill(server, history, random.Random(seed), "somebody")
    kill.run(in_time=15)
    print(f"back after {kill.back:.2f} s, interrupted after {kill.took:.1f} s")
    assert kill.back < 10, "who was cut off waited for the end of the run, or for a new worker"
    judge(history, server, model)


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_kills_at_any_moment_lose_nothing_and_leave_nobody_waiting(
    serve: Serve, model: Running, long: bool, seed: int
) -> None:
    server = serve(settings(model, **SOON), app=FAULTY, args=KEPT)
    history = History()
    back = []
    with Tap(server) as tap:
        for number in range(200 if long else 4):
            kill = Kill(server, history, random.Random(seed + number), f"seed {seed + number}")
            kill.run(in_time=15)
            back.append(kill.back)
    back.sort()
    print(f"{len(back)} kills; back elsewhere after {back[len(back) // 2]:.2f} s (median), {back[-1]:.2f} s (worst)")
    assert back[len(back) // 4] < 2, back
    judge(history, server, model, tap=tap)


# -- a start that dies -----------------------------------------------------------------------------------------------


def test_a_question_that_its_host_gave_up_has_an_end_though_its_worker_lives(serve: Serve, model: Running) -> None:
    """The request's time was over while it waited for the database, which then took the question all the same. So it
    has a run that nobody writes, at a worker whose lease counts: no other may end it, and there is none.
    """
    server = serve(settings(model, FLASKCHAT_DATABASE_TIMEOUT=120), workers=1, app=FAULTY)
    history = History()
    asker = newcomer(history, server, "somebody")
    before = asker.ask(tokens=2000, rate=20)
    before.take(2)
    question = {"message": {"id": "given-up", "text": json.dumps({"tokens": 3})}}
    with write_lock(server):
        asked_at = time.monotonic()
        hurried = {"X-Seconds": "1"}
        given_up = Beside(lambda: asker.client.request("POST", "/conversation", question, headers=hurried))
        while time.monotonic() - asked_at < 4:  # it is answered when the database has
            time.sleep(0.05)
    given_up.join(60)
    assert given_up.came is None or given_up.came.status == 500
    for _ in deadline(60, "an answer once the log can be written again"):
        again = asker.post(question)
        if again.status != 503:
            break
    assert again.status == 200
    asked_at = time.monotonic()
    events = [*again, *([] if again.ended else asker.to_the_end(again.run_id, again.last))]
    assert [event.event for event in events] == ["start", "interrupted"]
    assert time.monotonic() - asked_at < 15
    for _ in deadline(60, "the words for the operator"):
        if "its start died" in server.log():
            break
    asker.stop(before.run_id)
    assert before.rest()[-1].event == "stopped", "the other runs of the worker go on"
    judge(history, server, model)


# -- all at once -----------------------------------------------------------------------------------------------------


@pytest.mark.backends("sqlite", "postgres", long=("postgres+redis",))
def test_after_a_kill_of_everything_a_new_start_ends_every_run_with_what_was_seen(
    serve: Serve, model: Running, long: bool, seed: int
) -> None:
    chance = random.Random(seed)
    history = History()
    server = serve(settings(model, **SOON), app=FAULTY)
    visitor = newcomer(history, server, "somebody")
    done = visitor.ask(tokens=5)
    done.rest()
    for number in range(30 if long else 1):
        streams = [visitor.ask(tokens=2000, rate=chance.choice((20, 60, 200))) for _ in range(5)]
        for stream in streams:
            stream.take(chance.randrange(1, 12))
        ending = visitor.ask(tokens=10, rate=50)
        question = {"client_id": f"late-{number}", "tag": uuid.uuid4().hex, "tokens": 3}
        late = Beside(lambda visitor=visitor, question=question: visitor.ask(**question))  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.3))
        killed = []
        for pid in [server.process.pid, *server.workers()]:
            killed.append(history.fault("kill -9", pid))
            psutil.Process(pid).kill()
        server.process.wait(30)
        late.join(60)
        for stream in (*streams, ending):
            stream.rest()
        server = serve(settings(model, **SOON), app=FAULTY)
        for fault in killed:  # from now on there is somebody who can end what was left
            history.healed(fault)
        client = server.client()
        client.cookie = visitor.client.cookie
        visitor = history.visitor("somebody", client)
        for stream in streams:
            assert not stream.ended
            assert visitor.to_the_end(stream.run_id, stream.last)[-1].event == "interrupted"
        if not ending.ended:
            assert visitor.to_the_end(ending.run_id, ending.last)[-1].event in ("done", "interrupted")
        again = visitor.ask(**question)
        assert again.status == 200
        again.rest()
        assert again.ended or visitor.to_the_end(again.run_id, again.last)
        further = visitor.again("continue", streams[0].start["message_id"])
        assert [event.event for event in further.take(2)] == ["start", "delta"]
        assert visitor.stop(further.run_id).body["state"] == "stopped"
        further.rest()
        assert [event.what for event in visitor.to_the_end(done.run_id)] == [event.what for event in done.events]
    judge(history, server, model)

"""What happens at the same moment: every race has one winner, and everybody is told the same of it (P3, P4, P5).

Each has 500 rounds in its long form and some 15 in its short one, with a printed seed; on SQLite and PostgreSQL, in the
long form with the log in Redis as well. The moments are spread around
the one at which both sides meet, which is measured and not assumed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

import pytest

from tests.backends import Backend
from tests.conftest import Server
from tests.server.badmodel import Running, text_of
from tests.server.checker import judge
from tests.server.checks import FAULTY, rows
from tests.server.client import TERMINAL, deadline
from tests.server.dump import Tap
from tests.server.history import Event, History, Reading, Visitor

pytestmark = pytest.mark.backends("sqlite", "postgres", long=("postgres+redis",))


@pytest.fixture
def dice(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def rounds(long: bool) -> int:
    return 500 if long else 15


def settings(model: Running) -> dict[str, object]:
    return {
        "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_DRAIN": "1", "TEST_SWEEP_ROUND": "0.6", "FLASKCHAT_MAX_RUNS_PER_OWNER": "0",
        "FLASKCHAT_MESSAGES_PER_MINUTE": "0", "FLASKCHAT_MAX_STREAMS_PER_OWNER": "0",
        "FLASKCHAT_MAX_STREAMS_PER_ADDRESS": "0", "FLASKCHAT_CONNECTIONS_PER_SECOND": "0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def racing(
    tmp_path_factory: pytest.TempPathFactory, model: Running, shared_backend: Backend
) -> Iterator[Server]:
    """One server for the races that leave it as they found it."""
    folder = tmp_path_factory.mktemp("races")
    server = Server(folder, settings(model), workers=2, kind="gevent", app=FAULTY, args=[], backend=shared_backend)
    server.client().json("/conversations")
    yield server
    server.close()
    print(server.log())


def counts(server: Server) -> dict[str, int]:
    tables = ("conversations", "messages", "runs", "run_events", "requests")
    return {table: rows(server, f"SELECT count(*) FROM flaskchat_{table}")[0][0] for table in tables}


def at_once(*actions: Callable[[], object]) -> list[Any]:
    """Do all of it at the same moment, each in a thread of its own; what they return, in this order."""
    barrier = threading.Barrier(len(actions))
    found: list[Any] = [None] * len(actions)

    def act(number: int) -> None:
        barrier.wait()
        found[number] = actions[number]()

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def tabs_of(server: Server, history: History, name: str, number: int = 2) -> list[Visitor]:
    """One owner's tabs, each on a kept-alive connection to a worker of its own."""
    visitor = history.visitor(name, server.client())
    visitor.client.json("/conversations")
    return [visitor, *(visitor.tab() for _ in range(number - 1))]


def leave(*visitors: Visitor) -> None:
    for visitor in visitors:
        visitor.client.close()


# -- two tabs that send ------------------------------------------------------------------------------------------------


def test_of_two_tabs_that_send_in_one_branch_one_wins_and_the_other_is_told_of_its_run(
    racing: Server, model: Running, rounds: int, dice: random.Random
) -> None:
    history = History()
    before = counts(racing)["runs"]
    workers = Counter[int]()
    with Tap(racing) as tap:
        for number in range(rounds):
            tabs = tabs_of(racing, history, f"owner {number}")
            first = tabs[0].ask(tokens=3)
            first.rest()
            conversation = {"conversation_id": first.start["conversation_id"]}
            if number % 2:  # both name what they answer; else it is the branch that is shown
                conversation["parent_id"] = first.start["message_id"]
            readings: list[Reading] = at_once(
                *(lambda t=tab, more=dict(conversation): t.ask(tokens=8, rate=60, more=more) for tab in tabs)
            )
            won = [reading for reading in readings if reading.status == 200]
            lost = [post for post in history.posts[-2:] if post.status == 409]
            assert (len(won), len(lost)) == (1, 1), [reading.status for reading in readings]
            assert (lost[0].code, lost[0].run_id) == ("run_in_progress", won[0].run_id)
            workers[won[0].worker] += 1
            # The loser follows the winner's reply, as its page does.
            loser = tabs[1 - readings.index(won[0])]
            assert [event.what for event in loser.to_the_end(lost[0].run_id)] == [
                event.what for event in [*won[0].events, *won[0].rest()]
            ]
            leave(*tabs)
        judge(history, racing, model, tap=tap)
    print("won on", dict(workers))
    assert counts(racing)["runs"] == before + 2 * rounds


# -- Stop and the last token -------------------------------------------------------------------------------------------


def test_stop_against_the_last_token_has_one_end_and_both_are_told_the_same(
    racing: Server, model: Running, long: bool, rounds: int, dice: random.Random
) -> None:
    history = History()
    ends = Counter[str]()
    reader, stopper = tabs_of(racing, history, "owner")
    usual = 0.05
    with Tap(racing) as tap:
        for _ in range(rounds):
            reading = reader.ask(tokens=4, rate=100)
            reading.take(1)
            began, moment = time.monotonic(), dice.uniform(0, 1.4 * usual)
            answer, _ = at_once(lambda r=reading, m=moment: (wait(m), stopper.stop(r.run_id).body)[1], reading.rest)
            end = reading.events[-1].event
            if end == "done":
                usual = 0.8 * usual + 0.2 * (time.monotonic() - began)
            assert end in ("done", "stopped")
            assert answer["state"] == end
            message = reader.client.message(reading.start["conversation_id"], reading.start["message_id"])
            assert message["status"] == end
            assert stopper.stop(reading.run_id).body["state"] == end, "the second Stop changed something"
            ends[end] += 1
            leave(reader, stopper)
        judge(history, racing, model, tap=tap)
    print(dict(ends))
    assert not long or set(ends) == {"done", "stopped"}, "they never met"


def wait(seconds: float) -> None:
    """So long, in steps that a test may sleep."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


# -- deleting what is being written ------------------------------------------------------------------------------------


def test_who_reads_on_another_worker_what_is_deleted_does_not_wait_for_ever(racing: Server, rounds: int) -> None:
    """Where it was written the end and all of its events leave the log again before the other worker has looked."""
    client = racing.client()
    for _ in range(max(8, rounds // 10)):
        stream = client.send(json.dumps({"tokens": 4000, "rate": 50}))
        start = json.loads(stream.take(2)[0].data)
        (elsewhere,) = (pid for pid in racing.workers() if pid != stream.worker)
        reader = client.follow(stream.run_id, connection=client.connect_to(elsewhere))
        reader.take(2)
        connection = client.connect_to(stream.worker)
        path = f"/conversations/{start['conversation_id']}"
        assert client.request("DELETE", path, connection=connection).status == 204
        waits = threading.Thread(target=reader.rest)
        waits.start()
        waits.join(60)
        if waits.is_alive():
            reader.close()
            waits.join()
            pytest.fail("it is still given heartbeats")
        if reader.frames[-1].event not in TERMINAL:
            assert client.follow(stream.run_id).status == 404


def test_a_conversation_that_is_deleted_while_it_is_written_leaves_nothing(
    racing: Server, model: Running, rounds: int, dice: random.Random
) -> None:
    """Nor does a question that is sent into it at the same moment: it is refused, or stopped with the others."""
    history = History()
    before = counts(racing)
    tags = []
    asked = Counter[int]()
    ends = Counter[str]()
    for _ in range(rounds):
        reader, deleter, sender = tabs = tabs_of(racing, history, "owner", 3)
        first = reader.ask(tokens=2)
        first.rest()
        conversation = first.start["conversation_id"]
        reading = reader.ask(tokens=2000, rate=100, more={"conversation_id": conversation})
        tags.append(history.posts[-1].tag)
        reading.take(1)
        # at the root of the tree, so that the reply that is being written is not in its way
        into = {"conversation_id": conversation, "parent_id": None}
        moment = dice.uniform(0.02, 0.1)

        def send(
            into: dict[str, Any] = into, moment: float = moment + dice.uniform(-0.02, 0.02), sender: Visitor = sender
        ) -> Reading:
            wait(moment)
            sent = sender.ask(tokens=2000, rate=100, more=into)
            sent.rest()
            return sent

        answer, _, sent = at_once(
            lambda d=deleter, c=conversation, m=moment: (wait(m), d.delete(c))[1], reading.rest, send
        )
        assert answer.status == 204
        # The reader sees the end, or that the stream ended and then that there is nothing any more.
        if not reading.ended:
            assert reading.how == "end"
            assert reader.follow(reading.run_id, reading.last).status == 404
        else:
            assert reading.events[-1].event == "stopped"
        asked[sent.status] += 1
        tags.append(history.posts[-1].tag)
        assert sent.status in (200, 404)
        assert sent.status == 404 or not sent.ended or sent.events[-1].event == "stopped", sent.events[-1]
        ends["stopped" if reading.ended else "gone"] += 1
        assert deleter.conversation(conversation).status == 404
        assert deleter.delete(conversation).status == 404
        assert deleter.follow(reading.run_id).status == 404
        assert deleter.call("POST", f"/runs/{reading.run_id}/stop", {}).status == 404
        leave(*tabs)
    print(dict(ends), "the other question:", dict(asked))
    for _ in deadline(30, "the model to be left by all"):
        if not any(model.stats(tag)["live"] for tag in tags):
            break
    assert counts(racing) == before
    judge(history, racing, model)


# -- a reader at the end -----------------------------------------------------------------------------------------------


def test_a_reader_that_comes_between_the_last_event_and_the_end_misses_nothing_and_does_not_wait(
    racing: Server, model: Running, rounds: int, dice: random.Random
) -> None:
    """At both workers, from the start, from the last event but one and from the last; around the run's last moment."""
    history = History()
    found = Counter[str]()
    asker, *tabs = tabs_of(racing, history, "owner", 5)
    usual = 0.05
    with Tap(racing) as tap:
        for _ in range(rounds):
            reading = asker.ask(tokens=4, rate=100)
            first = reading.take(2)
            began = time.monotonic()

            def come(tab: Visitor, cursor: int, moment: float, run_id: str = reading.run_id) -> list[Event]:
                wait(max(0.0, moment))
                return tab.to_the_end(run_id, cursor or None)

            moments = [usual + dice.uniform(-0.03, 0.03) for _ in tabs]

            whole, *others = at_once(
                lambda r=reading, f=first: [*f, *r.rest()],
                *(
                    lambda t=tab, c=cursor, m=moment, come=come: come(t, c, m)
                    for tab, cursor, moment in zip(tabs, (0, 1, 2, 2), moments, strict=True)
                ),
            )
            usual = 0.7 * usual + 0.3 * (reading.events[-1].at - began)
            for cursor, events in zip((0, 1, 2, 2), others, strict=True):
                assert [event.what for event in events] == [event.what for event in whole[cursor:]]
            # And now: at the end, where it is 204, and one before it.
            assert tabs[0].follow(reading.run_id, whole[-1].seq).status == 204
            late = tabs[1].follow(reading.run_id, whole[-1].seq - 1)
            assert [event.what for event in late.rest()] == [whole[-1].what]
            for other in history.readings[-7:-2]:
                found["live" if len(other.events) > 1 else "at the end"] += 1
            leave(asker, *tabs)
        judge(history, racing, model, tap=tap)
    print(dict(found))


# -- equal questions and a restart -------------------------------------------------------------------------------------


def test_equal_questions_at_a_restart_are_one_generation(
    serve: Callable[..., Server], model: Running, long: bool, rounds: int, dice: random.Random
) -> None:
    """Five questions at once, each sent by three tabs, while a worker leaves, is killed, or all of them are replaced.

    Each tab sends again until it has an answer, as the page does (short: one restart of each kind).
    """
    server = serve(settings(model), app=FAULTY)
    server.client().json("/conversations")
    history = History()
    how = Counter[str]()
    with Tap(server) as tap:
        for number in range(rounds // 5 if long else 3):
            kind = ("TERM", "KILL", "HUP")[number % 3]
            struck = server.workers() if kind == "HUP" else [dice.choice(server.workers())]

            def strike(kind: str = kind, pid: int = struck[0]) -> None:
                wait(dice.uniform(0, 0.08))
                if kind == "HUP":
                    server.process.send_signal(signal.SIGHUP)
                else:
                    history.fault(kind, pid)
                    os.kill(pid, signal.SIGTERM if kind == "TERM" else signal.SIGKILL)

            questions = [ask_from_three_tabs(server, history, f"owner {number} {n}", dice) for n in range(5)]
            _, *runs = at_once(strike, *(send for sends in questions for send in sends))
            for at in range(0, 15, 3):
                assert len(set(runs[at : at + 3])) == 1, "one question, two runs"
            how[kind] += 5
            wait_for_two(server, struck)
        judge(history, server, model, tap=tap)
    print(dict(how))
    assert counts(server)["runs"] == sum(how.values())


def ask_from_three_tabs(server: Server, history: History, name: str, dice: random.Random) -> list[Callable[[], str]]:
    """Each sends the same question until it has an answer, reads it to its end, and returns its run."""
    tag = uuid.uuid4().hex
    body = {"message": {"id": uuid.uuid4().hex, "text": json.dumps({"tag": tag, "tokens": 5})}}
    history.expected[tag] = text_of({"tag": tag, "tokens": 5})

    def send(tab: Visitor, moment: float) -> str:
        wait(moment)
        for _ in deadline(40, "an answer"):
            try:
                reading = tab.post(body, tag)
            except (OSError, HTTPException):
                continue
            if reading.status == 200:
                reading.rest()
                if not reading.ended:
                    tab.to_the_end(reading.run_id, reading.last or None, seconds=40)
                leave(tab)
                return reading.run_id
            assert reading.status == 503
        raise AssertionError

    moments = [dice.uniform(0, 0.08) for _ in range(3)]
    return [
        lambda tab=tab, moment=moment: send(tab, moment)
        for tab, moment in zip(tabs_of(server, history, name, 3), moments, strict=True)
    ]


def wait_for_two(server: Server, gone: list[int]) -> None:
    """Until two workers serve, none of them one of those. gunicorn forgets a signal to a worker that still boots."""
    for _ in deadline(30, "two workers again"):
        now = server.workers()
        if len(now) == 2 and not set(now) & set(gone):
            break
    client = server.client()
    for pid in now:
        client.connect_to(pid)
    client.close()

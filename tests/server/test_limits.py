"""Limits over two workers: twenty clients at once, streams that come back on the other worker, a killed worker."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable

from tests.conftest import Server
from tests.server.client import Client, Stream, deadline

SETTINGS = {"FLASKCHAT_MODELS": "silent", "FLASKCHAT_DRAIN": "1", "FLASKCHAT_DATABASE_TIMEOUT": "60"}


def twins(server: Server, client: Client, number: int) -> list[Client]:
    """So many browsers of one visitor."""
    found = [server.client() for _ in range(number)]
    for one in found:
        one.cookie = client.cookie
    return found


def visitor(server: Server) -> Client:
    client = server.client()
    client.get("/").close()
    assert client.cookie
    return client


def at_once(calls: list[Callable[[], Stream]]) -> list[Stream]:
    """The answers' heads; all ask at the same moment."""
    answers: list[Stream] = []
    barrier = threading.Barrier(len(calls))

    def ask(call: Callable[[], Stream]) -> None:
        barrier.wait(60)
        answers.append(call())

    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(calls)
    return answers


def statuses(answers: list[Stream]) -> dict[int, int]:
    for answer in answers:
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["Content-Type"] == "application/problem+json"
    return dict(Counter(answer.status for answer in answers))


def started(stream: Stream) -> None:
    assert stream.status == 200
    stream.take(1)


def test_of_twenty_questions_at_once_three_are_answered(serve: Callable[..., Server]) -> None:
    server = serve({**SETTINGS, "FLASKCHAT_MAX_RUNS_PER_OWNER": 3})
    client = visitor(server)
    ask = [lambda twin=twin: twin.send("x", model="silent") for twin in twins(server, client, 20)]
    answers = at_once(ask)
    assert statuses(answers) == {200: 3, 429: 17}
    assert len({answer.worker for answer in answers if answer.status == 200} | {0}) >= 2


def test_of_twenty_questions_at_once_as_many_as_a_minute_allows_are_answered(serve: Callable[..., Server]) -> None:
    server = serve({**SETTINGS, "FLASKCHAT_MESSAGES_PER_MINUTE": 7})
    client = visitor(server)
    answers = at_once([lambda twin=twin: twin.send("1 0") for twin in twins(server, client, 20)])
    found = statuses(answers)
    # A database that a busy machine keeps waiting is told as 503; it lets nobody past the limit.
    assert (found[200], found[429] + found.get(503, 0)) == (7, 13)


def test_of_twenty_streams_at_once_ten_are_opened(serve: Callable[..., Server]) -> None:
    server = serve({**SETTINGS, "FLASKCHAT_MAX_STREAMS_PER_OWNER": 10})
    client = visitor(server)
    first = client.send("x", model="silent")
    started(first)
    pids = itertools.cycle(server.workers())
    ways = [(twin, twin.connect_to(next(pids))) for twin in twins(server, client, 20)]
    answers = at_once([lambda twin=twin, way=way: twin.follow(first.run_id, connection=way) for twin, way in ways])
    assert statuses(answers) == {200: 9, 429: 11}
    assert {answer.worker for answer in answers} == set(server.workers()), "on both workers"
    for answer in answers:
        answer.close()
    again = None
    for _ in deadline(60, "the places of those that left"):
        again = client.follow(first.run_id)
        if again.status == 200:
            break
        again.close()
    other = visitor(server)
    assert other.send("x", model="silent").status == 200, "another owner has places of their own"


def test_an_address_has_so_many_streams_over_both_workers(serve: Callable[..., Server]) -> None:
    server = serve({**SETTINGS, "FLASKCHAT_MAX_STREAMS_PER_ADDRESS": 6})
    answers = at_once([lambda: visitor(server).send("x", model="silent") for _ in range(20)])
    assert statuses(answers) == {200: 6, 429: 14}


def test_the_places_of_a_killed_worker_are_free_and_its_runs_end(serve: Callable[..., Server]) -> None:
    limits = {"FLASKCHAT_MAX_STREAMS_PER_OWNER": 4, "FLASKCHAT_MAX_RUNS_PER_OWNER": 1}
    # The killed one is seen by its lock; nobody is counted out whom a busy machine holds up for a second.
    sweep = {"TEST_SWEEP_ROUND": 0.3, "TEST_GONE_AFTER": 1_000_000}
    server = serve({**SETTINGS, **limits, **sweep}, app="tests.server.faulty:app")
    client = visitor(server)
    first = client.send("x", model="silent")
    started(first)
    killed = first.worker
    connections = [client.connect_to(killed) for _ in range(3)]
    held = [client.follow(first.run_id, connection=connection) for connection in connections]
    assert statuses(held) == {200: 3}
    refused = client.follow(first.run_id)
    assert refused.status == 429
    assert client.send("y", model="silent").status == 429
    os.kill(killed, signal.SIGKILL)
    again: list[Stream] = []
    for _ in deadline(60, "four places"):
        if all(pid != killed for pid in server.workers()):
            stream = client.follow(first.run_id)
            if stream.status == 200:
                again.append(stream)
        if len(again) == 4:
            break
    for _ in deadline(60, "the end of the run that was lost"):
        stream = client.send("y", model="silent")
        if stream.status == 200:
            break


def test_who_comes_back_on_the_other_worker_is_let_in_and_the_stream_before_ends(
    serve: Callable[..., Server],
) -> None:
    server = serve({**SETTINGS, "FLASKCHAT_MAX_STREAMS_PER_OWNER": 2})
    client = visitor(server)
    first = client.send("x", model="silent")
    started(first)
    other = next(pid for pid in server.workers() if pid != first.worker)
    second = client.follow(first.run_id, connection=client.connect_to(first.worker))
    started(second)
    assert client.follow(first.run_id, connection=client.connect_to(other)).status == 429
    back = client.follow(first.run_id, 1, connection=client.connect_to(other))
    assert back.status == 200
    assert first.rest() is not None, "the oldest has ended, cleanly: it may come back itself"
    assert not any(frame.event in ("done", "stopped", "error", "interrupted") for frame in first.frames)
    client.stop(first.run_id)
    assert second.rest()[-1].event == "stopped", "the newer one goes on"
    assert back.rest()[-1].event == "stopped"


def test_ten_browsers_that_lose_their_network_again_and_again_are_always_let_in(serve: Callable[..., Server]) -> None:
    """None of the streams before has been noticed as gone when the next comes."""
    server = serve({**SETTINGS, "FLASKCHAT_MAX_STREAMS_PER_OWNER": 10})
    client = visitor(server)
    first = client.send("x", model="silent")
    started(first)
    for _ in range(3):
        backs = at_once([lambda twin=twin: twin.follow(first.run_id, 1) for twin in twins(server, client, 10)])
        assert statuses(backs) == {200: 10}
    client.stop(first.run_id)

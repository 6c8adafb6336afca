"""More streams than there are places: who is refused, and what still gets through (P8)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.server.client import Client, Stream, deadline

# on one backend: no stream is let in, wherever it would come from
pytestmark = pytest.mark.backends("sqlite")

SETTINGS = {
    "FLASKCHAT_MODEL": "lines",
    "FLASKCHAT_MODELS": "silent,count",
    "FLASKCHAT_DRAIN": "1",
}


@pytest.fixture
def one(serve: Callable[..., Server]) -> Callable[..., Server]:
    def start(**more: object) -> Server:
        args = more.pop("args", [])
        settings = {**SETTINGS, **{f"FLASKCHAT_{key.upper()}": value for key, value in more.items()}}
        return serve(settings, workers=1, app="tests.server.faulty:app", args=args)

    return start


def test_above_capacity_streams_are_refused_and_health_and_stop_get_through(one: Callable[..., Server]) -> None:
    server = one(args=["--worker-connections", "20"])
    client = server.client()
    capacity = client.json("/readyz")["capacity"]
    assert capacity == 18
    streams = [client.send("x", model="silent") for _ in range(capacity)]
    assert {stream.status for stream in streams} == {200}
    refused = client.send("x", model="silent")
    assert refused.status == 503
    assert refused.json()["code"] == "full"
    assert 0 < int(refused.headers["Retry-After"]) < 60
    refused.close()
    later = client.follow(streams[0].run_id)
    assert (later.status, later.rest(), later.raw) == (200, [], b": hb\n"), "an EventSource must come back"
    later.close()
    health = client.get("/healthz")
    assert health.status == 200
    health.close()
    ready = client.get("/readyz")
    assert (ready.status, list(ready.json()["wrong"])) == (503, ["full"])
    ready.close()
    assert client.stop(streams[0].run_id)["state"] == "stopped"
    streams[0].rest()
    for _ in deadline(30, "the place to be free"):
        again = client.send("x", model="silent")
        if again.status == 200:
            break
        again.close()


def test_a_burst_of_questions_is_not_let_in_above_capacity(one: Callable[..., Server]) -> None:
    """All ask at once, while none has its stream yet."""
    server = one(max_streams=5)
    clients = [server.client() for _ in range(16)]
    for client in clients:
        client.json("/conversations")
    barrier = threading.Barrier(16)
    found: list[Stream] = []

    def ask(client: Client) -> None:
        barrier.wait()
        found.append(client.send("x", model="silent"))

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [stream.status for stream in found]
    assert statuses.count(200) <= 5, statuses
    assert statuses.count(200) + statuses.count(503) == 16


def test_the_only_place_is_enough_to_ask_twice_for_the_same(one: Callable[..., Server]) -> None:
    server = one(max_streams=1)
    client = server.client()
    stream = client.send("5 0", model="count", client_id="same")
    frames = stream.rest()
    again = client.send("5 0", model="count", client_id="same")
    assert [frame[1:] for frame in again.rest()] == [frame[1:] for frame in frames]

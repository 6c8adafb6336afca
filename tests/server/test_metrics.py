"""`GET /metrics` of two real workers: what a scrape of one says of both, and of one that was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.conftest import Server
from tests.server.client import Client, deadline
from tests.test_metrics import TOKEN, read

SETTINGS = {
    "FLASKCHAT_METRICS_TOKEN": TOKEN, "FLASKCHAT_MODELS": "silent,raises", "TEST_SWEEP_ROUND": "0.3",
    "TEST_GONE_AFTER": "1000000", "FLASKCHAT_HEARTBEAT": "0.3", "FLASKCHAT_MAX_STREAMS_PER_OWNER": "3",
    "FLASKCHAT_DRAIN": "1",
}  # fmt: skip


def scrape(client: Client, worker: int) -> dict[str, float]:
    stream = client.get(
        "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, connection=client.connect_to(worker)
    )
    assert stream.status == 200
    assert stream.worker == worker
    return read(stream.response.read().decode())


def test_each_worker_tells_of_both_and_of_one_that_was_killed(serve: Callable[..., Server]) -> None:
    server = serve(SETTINGS, app="tests.server.faulty:app")
    assert server.client().get("/metrics").status == 401
    one, two = server.workers()
    client = server.client()
    client.get("/").close()  # one visitor
    for worker in (one, two):
        assert client.send("3 0", connection=client.connect_to(worker)).rest()[-1].event == "done"
    assert client.send("x", model="raises", connection=client.connect_to(two)).rest()[-1].event == "error"
    lost = client.send("x", model="silent", connection=client.connect_to(one))
    lost.take(2)
    followed = client.follow(lost.run_id, connection=client.connect_to(two))
    followed.take(2)
    last = client.follow(lost.run_id, connection=client.connect_to(two))
    last.take(2)
    assert client.follow(lost.run_id).status == 429
    for worker in (one, two):
        for _ in deadline(60, "heartbeats, and a gauge that knows of the last reply's end"):
            found = scrape(client, worker)
            if (
                found["flaskchat_heartbeats_total"] > 0
                and found["flaskchat_replies_running"] == 1
                and found["flaskchat_streams_open"] == 3
            ):
                break
        assert found["flaskchat_workers"] == 2
        assert found["flaskchat_replies_started_total"] == 4
        assert found["flaskchat_replies_ended_total done"] == 2
        assert found["flaskchat_reply_errors_total model_raised"] == 1
        assert found["flaskchat_streams_open"] == 3
        assert found["flaskchat_requests_refused_total too_many_streams"] == 1
        assert found["flaskchat_log_unavailable"] == 0
    last.close()
    for _ in deadline(60, "a client that vanished"):
        if scrape(client, two)["flaskchat_streams_lost_total vanished"] == 1:
            break

    before = scrape(client, two)
    os.kill(one, signal.SIGKILL)
    for _ in deadline(60, "the end of the reply that was lost"):
        found = scrape(client, two)
        if (
            found["flaskchat_takeovers_total"] == 1
            and found.get("flaskchat_replies_ended_total interrupted") == 1
            and found["flaskchat_replies_running"] == 0
            and found["flaskchat_streams_open"] <= 1
        ):
            break
    assert found["flaskchat_replies_ended_total interrupted"] == 1
    assert found["flaskchat_replies_running"] == 0
    assert found["flaskchat_streams_open"] <= 1
    for _ in deadline(60, "a worker in the place of the killed one"):
        if set(server.workers()) - {one, two}:
            break
    (third,) = set(server.workers()) - {one, two}
    for worker in (third, two):  # it begins to count with its first request
        found = scrape(client, worker)
        assert found["flaskchat_workers"] == 2
        less = {name for name in before if "_total" in name and found[name] < before[name]}
        assert not less, "a counter went back"
        assert found["flaskchat_replies_ended_total done"] == 2
    assert len(list((server.folder / "instance").glob("*-places/metrics-*"))) == 2

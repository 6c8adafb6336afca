"""`GET /sse`: a greeting, ten messages a second apart, a goodbye; and clean-up when the client leaves."""

import time
from itertools import pairwise

from tests.conftest import Server
from tests.server.checks import FAULTY
from tests.server.client import deadline, seqs


def test_sse_greets_counts_to_ten_a_second_apart_and_says_goodbye(server: Server) -> None:
    client = server.client()
    stream = client.get("/sse")
    times, frames = [], []
    for frame in stream:
        times.append(time.monotonic())
        frames.append(frame)
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert [frame.data.decode() for frame in frames] == [
        "Connected to SSE endpoint",
        *(f"Message number {number}" for number in range(1, 11)),
        "Closing connection",
    ]
    assert {frame.event for frame in frames} == {"message"}
    assert seqs(frames) == list(range(1, 13))
    gaps = sorted(later - earlier for earlier, later in pairwise(times[1:12]))
    assert sum(gaps) > 8, gaps
    assert gaps[len(gaps) // 2] > 0.8, gaps
    assert gaps[2] < 1.8, gaps  # a busy machine makes some longer
    assert client.get("/sse", headers={"Last-Event-ID": "12"}).status == 204
    assert seqs(client.get("/sse", headers={"Last-Event-ID": "9"}).take(1)) == [10]


def test_a_client_that_leaves_sse_is_noticed_at_once(serve) -> None:  # type: ignore[no-untyped-def]
    settings = {"FLASKCHAT_MAX_STREAMS": "1", "TEST_SSE_PAUSE": "60", "FLASKCHAT_HEARTBEAT": "60"}
    server = serve(settings, workers=1, app=FAULTY)
    client = server.client()
    stream = client.get("/sse")
    stream.take(1)
    assert client.get("/sse").status == 503
    stream.close()
    left_at = time.monotonic()
    for _ in deadline(90, "the place to be free again"):
        again = client.get("/sse")
        if again.status == 200:
            break
    assert time.monotonic() - left_at < 30, "it was noticed with the next message only"

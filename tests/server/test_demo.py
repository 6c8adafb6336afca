"""`GET /sse`: a greeting, ten messages a second apart, a goodbye; and clean-up when the client leaves."""

import time
from itertools import pairwise

from tests.conftest import Server
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
    gaps = [later - earlier for earlier, later in pairwise(times[1:12])]
    assert all(0.8 < gap < 1.8 for gap in gaps), gaps
    assert client.get("/sse", headers={"Last-Event-ID": "12"}).status == 204
    assert seqs(client.get("/sse", headers={"Last-Event-ID": "9"}).take(1)) == [10]


def test_a_client_that_leaves_sse_is_noticed_at_once(serve) -> None:  # type: ignore[no-untyped-def]
    server = serve({"FLASKCHAT_MAX_STREAMS": "1"}, workers=1)
    client = server.client()
    stream = client.get("/sse")
    stream.take(2)
    assert client.get("/sse").status == 503
    stream.close()
    left_at = time.monotonic()
    for _ in deadline(30, "the place to be free again"):
        again = client.get("/sse")
        if again.status == 200:
            break
    assert time.monotonic() - left_at < 0.9, "it was noticed with the next message only"

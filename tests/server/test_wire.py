"""The HTTP contract on the wire, of a real gunicorn: headers, frames, heartbeats, bodies in chunks."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Server
from tests.hosts import ID, PROBLEM, send
from tests.server.client import deadline, seqs

EVENTS = "start|delta|reasoning|tool|title|done|error|stopped|interrupted"
FRAME = re.compile(rb"(?:retry: \d+\n)?id: \d+\nevent: (?:" + EVENTS.encode() + rb")\ndata: \{[^\r\n]*\}\n\n")


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two gevent workers; one server for all tests here that need one."""
    server = Server(
        tmp_path_factory.mktemp("contract"),
        {"FLASKCHAT_MODEL": "count", "FLASKCHAT_HEARTBEAT": "0.2", "FLASKCHAT_MAX_BODY_BYTES": "4096"},
        workers=2, kind="gevent", app="tests.server.app:app", args=[],
    )  # fmt: skip
    yield server
    server.close()


def test_a_stream_has_exactly_the_headers_of_the_contract(gunicorn: Server) -> None:
    client = gunicorn.client()
    posted = client.send("3 0")
    posted.rest()
    followed = client.follow(posted.run_id)
    followed.rest()
    for stream in (posted, followed):
        assert stream.status == 200
        assert stream.headers.get_all("Content-Type") == ["text/event-stream; charset=utf-8"]
        assert stream.headers.get_all("Cache-Control") == ["no-cache, no-store, no-transform"]
        assert stream.headers.get_all("X-Accel-Buffering") == ["no"]
        assert stream.headers.get_all("X-Content-Type-Options") == ["nosniff"]
        assert stream.headers.get_all("Flaskchat-Run-Id") == [posted.run_id]
        assert re.fullmatch(ID["run_id"], stream.run_id)
        assert not [name for name in stream.headers if name.lower().startswith("access-control-")]


def test_a_stream_is_frames_as_the_contract_writes_them(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("30 200")
    frames = stream.rest()
    raw = stream.raw.replace(b": hb\n", b"")  # where a busy machine made a silence
    assert re.match(rb"retry: \d+\nid: 1\nevent: start\ndata: \{", raw), "the retry stands inside the first frame"
    assert raw.count(b"retry:") == 1
    assert 1000 <= int(raw.split(b"\n")[0].split()[1]) <= 3000
    assert b"".join(FRAME.findall(raw)) == raw, "nothing stands between the frames"
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert [frame.event for frame in frames[1:-1]] == ["delta"] * (len(frames) - 2)
    start = json.loads(frames[0].data)
    assert list(start) == ["run_id", "conversation_id", "message_id", "user_message_id", "model", "title"]
    assert start["run_id"] == stream.run_id
    assert re.fullmatch(ID["conversation_id"], start["conversation_id"])
    assert re.fullmatch(ID["message_id"], start["message_id"])
    assert re.fullmatch(ID["message_id"], start["user_message_id"])
    assert (start["model"], start["title"]) == ("count", "30 200")
    assert all(list(json.loads(frame.data)) == ["text"] for frame in frames[1:-1])
    assert list(json.loads(frames[-1].data)) == ["finish_reason", "usage"]
    assert frames[-1].event == "done"


def test_silence_brings_heartbeats_without_a_blank_line_after_them(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("2 1")
    stream.rest()
    raw = stream.raw
    assert stream.heartbeats >= 2
    assert raw.count(b": hb\n") == stream.heartbeats
    assert b": hb\n\n" not in raw
    assert b"".join(FRAME.findall(raw)) == raw.replace(b": hb\n", b"")


def test_a_body_too_large_is_refused_by_its_length_and_when_it_comes_in_chunks(gunicorn: Server) -> None:
    client = gunicorn.client()
    large = json.dumps(send("x" * 5000)).encode()
    answers = [client.request("POST", "/conversation", large)]
    connection = client.connect()
    connection.request(
        "POST", "/conversation", iter([large[:2500], large[2500:]]), {"Content-Type": "application/json"},
        encode_chunked=True,
    )  # fmt: skip
    chunked = connection.getresponse()
    assert (chunked.status, chunked.headers["Content-Type"]) == (413, PROBLEM)
    assert json.loads(chunked.read())["code"] == "body_too_large"
    assert (answers[0].status, answers[0].headers["Content-Type"]) == (413, PROBLEM)
    found = answers[0].json()
    assert (found["code"], found["status"]) == ("body_too_large", 413)
    small = json.dumps(send("2 0", "chunked")).encode()
    connection = client.connect()
    connection.request(
        "POST", "/conversation", iter([small[:20], small[20:]]), {"Content-Type": "application/json"},
        encode_chunked=True,
    )  # fmt: skip
    assert b"event: done" in connection.getresponse().read()


def test_a_worker_that_is_full_says_so_and_when_to_try_again(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MAX_STREAMS": "1"}, workers=1)
    client = server.client()
    stream = client.send("4000 20")
    stream.take(1)
    for refused in (client.send("1 0"), client.get("/sse")):
        assert (refused.status, refused.headers["Content-Type"]) == (503, PROBLEM)
        found = refused.json()
        assert (found["code"], found["status"]) == ("full", 503)
        assert int(refused.headers["Retry-After"]) >= found["retry_after"] > 0
    not_ready = client.get("/readyz")
    found = not_ready.json()
    assert (not_ready.status, not_ready.headers["Content-Type"]) == (503, PROBLEM)
    assert found["code"] == "not_ready"
    assert list(found["wrong"]) == ["full"]
    assert client.get("/healthz").status == 200
    assert client.get("/conversations").status == 200
    assert client.stop(stream.run_id)["state"] == "stopped", "Stop always gets through"
    stream.rest()
    for _ in deadline(30, "the place to be free again"):
        if client.get("/readyz").status == 200:
            break


def test_a_cursor_that_means_nothing_gets_one_reset_and_then_what_is_live(gunicorn: Server) -> None:
    client = gunicorn.client()
    stream = client.send("30 30")
    stream.take(5)
    for cursor in ("999999", "abc", "-1", "1.5", "0x1", "1-0"):
        follower = client.follow(stream.run_id, cursor)
        frames = follower.rest()
        assert re.match(rb"retry: \d+\nevent: reset\ndata: \{", follower.raw)
        assert frames[0].event == "reset", cursor
        assert frames[0].id == "", "a reset is not numbered"
        reset = json.loads(frames[0].data)
        assert list(reset) == ["seq", "text"]
        assert [frame.event for frame in frames[1:]].count("reset") == 0
        rest = frames[1:]
        assert seqs(rest) == list(range(reset["seq"] + 1, reset["seq"] + 1 + len(rest)))
        text = reset["text"] + "".join(json.loads(f.data)["text"] for f in rest if f.event == "delta")
        assert text == "".join(f"word{n} ü€😀 " for n in range(30))
        assert rest[-1].event == "done"
    stream.close()


def test_sse_is_a_stream_like_the_others(gunicorn: Server) -> None:
    stream = gunicorn.client().get("/sse")
    assert stream.take(2)[1].data == b"Message number 1"
    assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert "no-store" in stream.headers["Cache-Control"]
    assert stream.raw.startswith(b"id: 1\ndata: Connected to SSE endpoint\n\nid: 2\ndata: Message number 1\n\n")
    stream.close()


def test_a_request_that_is_no_http_does_no_harm(gunicorn: Server) -> None:
    wrong_length = b"POST /conversation HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"
    for sent in (wrong_length, b"\x16\x03\x01\x00", b"GET /" + b"a" * 9000):
        with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=60) as sock:
            sock.sendall(sent)
            # gunicorn may have refused it and hung up already: then there is nothing left to shut or to read.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                assert b" 200 " not in sock.recv(65536)
    assert gunicorn.client().get("/healthz").status == 200

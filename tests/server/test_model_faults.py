"""Models that are silent, slow, busy, endless or wrong: every run ends in time, once, with its text (P3, P5)."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.server.badmodel import Running, text_of
from tests.server.checks import FAULTY, ask, assert_closed_in_time, assert_whole, error_of, everything, start_of
from tests.server.client import Stream, deadline, text


def started(folder: Path, model: Running, **more: object) -> Iterator[Server]:
    """Two workers with the misbehaving model, and little room for a reply."""
    settings = {
        "FLASKCHAT_MODEL": "openai:fake",
        "FLASKCHAT_OPENAI_BASE_URL": model.base_url,
        "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_RETRIES": "1",
        "FLASKCHAT_MAX_REPLY_BYTES": "20000",
        "FLASKCHAT_DRAIN": "1",
        **more,
    }
    server = Server(folder, settings, workers=2, kind="gevent", app=FAULTY, args=[])
    yield server
    server.close()
    print(server.log())


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Server]:
    """With short deadlines: for what runs into one of them, as anything may on a busy machine."""
    deadlines = {"FIRST_BYTE": "2", "GAP": "2.5", "RUN": "5"}
    more = {f"FLASKCHAT_{name}_TIMEOUT": value for name, value in deadlines.items()}
    yield from started(tmp_path_factory.mktemp("quick"), model, **more)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Server]:
    """With the deadlines as they come: for what must not run into one."""
    yield from started(tmp_path_factory.mktemp("patient"), model)


LONG = 30.0
"""Seconds, where otherwise a minute would be waited for."""


@pytest.mark.parametrize(
    ("server", "directive", "code", "at_least"),
    [
        ("quick", {"fault": "silent-before-head", "hold": 60}, "model_timeout", 2.0),
        ("quick", {"fault": "silent-before-first-token", "hold": 60}, "model_timeout", 2.0),
        ("quick", {"tokens": 20, "fault": "stall", "after": 5, "hold": 60}, "model_timeout", 2.0),
        ("quick", {"tokens": 2000, "rate": 20}, "model_timeout", 2.0),
        ("patient", {"fault": "503"}, "model_busy", 0.1),
        ("patient", {"fault": "429", "retry_after": 600}, "model_busy", 0.0),
        ("patient", {"fault": "401"}, "model_refused", 0.0),
    ],
    ids=["head", "first byte", "gap", "whole run", "busy", "busy for longer than we wait", "refused"],
)
def test_a_model_gets_so_much_time_and_so_many_attempts(
    request: pytest.FixtureRequest, model: Running, server: str, directive: dict[str, Any], code: str, at_least: float
) -> None:
    client = request.getfixturevalue(server).client(timeout=60)
    began = time.monotonic()
    directive, stream = ask(client, **directive)
    frames = stream.rest()
    took = time.monotonic() - began
    assert error_of(frames) == code
    assert at_least < took < LONG, took
    assert_whole(client, stream, frames, "error")
    assert text_of({"tokens": 20, **directive}).startswith(text(frames))
    for _ in deadline(30, "the model's connection to be closed"):
        stats = model.stats(directive["tag"])
        if stats["live"] == 0:
            break
    assert stats["posts"] == (2 if directive.get("fault") == "503" else 1)


def test_a_python_model_that_never_speaks_is_given_up(quick: Server) -> None:
    client = quick.client()
    stream = client.send("x", model="mute")
    frames = stream.rest()
    assert error_of(frames) == "model_timeout"
    assert_whole(client, stream, frames, "error")


def test_a_server_that_accepts_no_connection_is_given_up(serve: Callable[..., Server]) -> None:
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(3):  # what its backlog takes, and more: the next SYN gets no answer
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        server = serve(
            {
                "FLASKCHAT_MODEL": "openai:fake",
                "FLASKCHAT_OPENAI_BASE_URL": f"http://127.0.0.1:{hole.getsockname()[1]}/v1",
                "FLASKCHAT_CONNECT_TIMEOUT": "3", "FLASKCHAT_RETRIES": "1", "FLASKCHAT_FIRST_BYTE_TIMEOUT": "120",
            },
            workers=1, app=FAULTY,
        )  # fmt: skip
        client = server.client(timeout=60)
        began = time.monotonic()
        stream = client.send("x")
        frames = stream.rest()
        assert error_of(frames) == "model_unreachable"
        assert 6 < time.monotonic() - began < LONG, "two attempts of 3 s and a pause"
        assert_whole(client, stream, frames, "error")

        def stop() -> Any:
            second = client.send("y")
            second.take(1)
            return client.stop(second.run_id)

        assert_closed_in_time(stop)


def test_a_reply_ends_at_its_largest_size_and_the_model_is_let_go(patient: Server, model: Running) -> None:
    client = patient.client()
    words = "Größe €😀 " * 2000
    directive, stream = ask(client, text=words, size=50)
    frames = stream.rest()
    assert error_of(frames) == "reply_too_long"
    assert_whole(client, stream, frames, "error")
    assert words.startswith(text(frames))
    assert 19_990 < len(text(frames).encode()) <= 20_000
    for _ in deadline(30, "the model's connection to be closed"):
        if model.stats(directive["tag"])["live"] == 0:
            break


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("raises", "error", "Before "),
        ("number", "error", "One "),
        ("none", "error", ""),
        ("empty", "done", ""),
        ("exits", "error", "Before "),
        ("expires", "error", "Before "),
        ("odd", "done", "a\ufffdb\ufffd\ufffd\r\ndata: forged\n\nid: 99\n\u2028\u0085"),
    ],
)
def test_a_python_model_that_misbehaves_ends_its_own_run(patient: Server, name: str, state: str, said: str) -> None:
    client = patient.client()
    before = set(patient.workers())
    stream = client.send("x", model=name)
    frames = stream.rest()
    assert frames[-1].event == state
    if state == "error":
        assert error_of(frames) == "model_raised"
    spoken = text(frames)
    assert spoken.replace("😀", "\ufffd\ufffd") == said, "the halves of a pair may meet in one tick"
    assert_whole(client, stream, frames, state)
    assert set(patient.workers()) == before


def test_a_python_model_that_yields_ten_megabytes_at_once_is_cut(patient: Server) -> None:
    client = patient.client()
    stream = client.send(str(10 << 20), model="huge")
    frames = stream.rest()
    assert error_of(frames) == "reply_too_long"
    assert len(text(frames)) == 20_000
    assert_whole(client, stream, frames, "error")


def test_stop_runs_the_finally_of_a_sleeping_python_model(patient: Server) -> None:
    client = patient.client()

    def stop() -> Any:
        marker = uuid.uuid4().hex
        stream = client.send(marker, model="sleeps")
        stream.take(2)
        stopped = client.stop(stream.run_id)
        for _ in deadline(30, "its finally"):
            if (patient.folder / marker).exists():
                break
        assert stream.rest()[-1].event == "stopped"
        return stopped

    assert_closed_in_time(stop)


def test_stop_does_not_wait_for_a_python_model_that_will_not_end(patient: Server) -> None:
    client = patient.client()
    stream = client.send("40", model="stubborn")
    stream.take(2)
    began = time.monotonic()
    assert client.stop(stream.run_id)["state"] == "stopped"
    assert time.monotonic() - began < 15
    frames = everything(stream)
    assert_whole(client, stream, frames, "stopped")


def test_a_reply_ends_though_the_host_gives_up_the_stop_while_it_waits_for_the_model(patient: Server) -> None:
    """It waits 50 ms for a model that will not end; each of these is given up at another moment before or in them."""
    client = patient.client()
    for seconds in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06):
        stream = client.send("4", model="stubborn")
        stream.take(2)
        given_up = client.request("POST", f"/runs/{stream.run_id}/stop", {}, headers={"X-Seconds": str(seconds)})
        given_up.response.read()
        assert client.stop(stream.run_id)["state"] != "running"  # the first may have come to nothing
        frames = everything(stream)
        assert_whole(client, stream, frames, frames[-1].event)


# -- conversations over HTTP -----------------------------------------------------------------------------------------


def test_a_stopped_reply_goes_on_in_the_same_message(patient: Server) -> None:
    client = patient.client()
    stream = client.send("1000 40", model="count")
    stream.take(4)
    assert client.stop(stream.run_id)["state"] == "stopped"
    start = start_of(stream)
    before = client.message(start["conversation_id"], start["message_id"])["text"]
    body = {"action": "continue", "message_id": start["message_id"], "request_id": uuid.uuid4().hex, "model": "empty"}
    further = client.request("POST", "/conversation", body)
    frames = further.rest()
    assert json.loads(frames[0].data)["message_id"] == start["message_id"]
    assert further.run_id != stream.run_id
    message = client.message(start["conversation_id"], start["message_id"])
    assert (message["status"], message["text"]) == ("done", before)
    again = client.request("POST", "/conversation", {**body, "request_id": uuid.uuid4().hex})
    assert (again.status, again.json()["code"]) == (422, "invalid")


def test_two_tabs_that_send_at_once_at_one_fork_get_one_reply_and_one_409(patient: Server) -> None:
    client = patient.client()
    first = client.send("3 0", model="count")
    first.rest()
    start = start_of(first)
    body = {"conversation_id": start["conversation_id"], "parent_id": start["message_id"], "model": "sleeps"}
    barrier = threading.Barrier(2)
    found: list[Stream] = []

    def tab(name: str) -> None:
        barrier.wait()
        found.append(client.send(name, **body))

    tabs = [threading.Thread(target=tab, args=(uuid.uuid4().hex,)) for _ in range(2)]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    winner, loser = sorted(found, key=lambda stream: stream.status)
    assert (winner.status, loser.status) == (200, 409)
    problem = loser.json()
    assert (problem["code"], problem["run_id"]) == ("run_in_progress", winner.run_id)
    assert client.stop(winner.run_id)["state"] == "stopped"
    winner.rest()

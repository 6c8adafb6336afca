"""Resets: they are dear, so who asks for one needs a place first, and they are put together one at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flaskchat import FlaskChat, limits
from flaskchat.past import Past, unreadable
from flaskchat.testing import ChatClient
from tests.hosts import Gate, bare, problem, send


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """A host whose model says one word and waits; one stream for each."""
    app, gate = bare(tmp_path, TESTING=False, FLASKCHAT_MAX_STREAMS_PER_OWNER=1), Gate()
    chat = FlaskChat(app)
    chat.model("gate")(gate)
    yield app
    gate.opened.set()
    app.extensions["flaskchat"].close()


def begin(chat: ChatClient, client_id: str) -> str:
    """A reply that goes on without a reader."""
    response = chat.client.post("/chat/conversation", json=send("hello", client_id), buffered=False)
    response.close()
    return response.headers["Flaskchat-Run-Id"]


def lost(chat: ChatClient, run_id: str) -> Any:
    """Follow a run from a place that it does not have."""
    return chat.client.get(f"/chat/runs/{run_id}/events", headers={"Last-Event-ID": "nowhere"}, buffered=False)


def test_who_has_no_place_has_no_reset_made(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.0)
    chat = ChatClient(app)
    run_id, other = begin(chat, "a"), begin(chat, "b")
    stream = chat.client.get(f"/chat/runs/{other}/events", buffered=False)
    monkeypatch.setattr(Past, "reset", lambda *args: pytest.fail("a reset was made"))
    problem(lost(chat, run_id), 429, "too_many_streams")
    stream.close()
    monkeypatch.undo()
    reset = lost(chat, run_id)
    assert b"event: reset" in next(reset.response)
    reset.close()


def test_a_reset_that_cannot_be_made_gives_its_place_back(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatClient(app)
    run_id = begin(chat, "a")

    def fails(*args: object) -> None:
        raise unreadable()

    with monkeypatch.context() as patch:
        patch.setattr(Past, "reset", fails)
        for _ in range(3):
            assert lost(chat, run_id).get_data() == b": hb\n"
    stream = chat.client.get(f"/chat/runs/{run_id}/events", buffered=False)
    assert stream.status_code == 200
    assert b"event: start" in next(stream.response)
    stream.close()


def test_resets_are_put_together_one_at_a_time() -> None:
    """By the threads that the beat of the worker's lease waits for as well."""
    at_once, most, meeting = 0, 0, threading.Barrier(3, timeout=0.3)

    def offload(function: Callable[[], str]) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait()
        at_once -= 1
        return function()

    store: Any = SimpleNamespace(database=SimpleNamespace(offload=offload))
    pump: Any = None  # these runs are over, and nobody asks it
    past = Past(pump, store)
    threads = [threading.Thread(target=past.text, args=(b"",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1

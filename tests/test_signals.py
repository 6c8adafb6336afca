"""The signals that a host may connect to."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from flaskchat import FlaskChat, Request, run_ended, run_started
from flaskchat.testing import ChatClient
from tests.conftest import ROOT
from tests.hosts import Gate, bare, host, send
from tests.server.client import deadline

Told = list[tuple[str, Flask, dict[str, Any]]]


@pytest.fixture
def told() -> Any:
    """What was told to somebody who listens to every application."""
    heard: Told = []

    def started(sender: Flask, **fields: Any) -> None:
        heard.append(("started", sender, fields))

    def ended(sender: Flask, **fields: Any) -> None:
        heard.append(("ended", sender, fields))

    with run_started.connected_to(started), run_ended.connected_to(ended):
        yield heard


def test_a_run_is_told_when_it_begins_and_when_it_has_ended(tmp_path: Path, told: Told) -> None:
    app = host(tmp_path, identity=lambda: "ada")
    with ChatClient(app) as chat:
        reply = chat.ask("hello")
    assert [name for name, _, _ in told] == ["started", "ended"], "both, once the block is left"
    common = {"run_id": reply.run_id, "conversation_id": reply.conversation_id, "owner": "user:ada", "model": "parrot"}
    assert told[0][2] == common
    assert told[1][2] == {**common, "state": "done", "usage": None}
    assert all(sender is app for _, sender, _ in told)


def test_the_documentation_names_all_that_is_sent(tmp_path: Path, told: Told) -> None:
    with ChatClient(host(tmp_path)) as chat:
        chat.ask("hello")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begun, ended = re.findall(r"^Both are sent with (.*?); *\n?`run_ended` also with (.*?)\. ", text, re.M | re.S)[0]
    for name in told[0][2]:
        assert f"`{name}`" in begun
    for name in told[1][2].keys() - told[0][2].keys():
        assert f"`{name}`" in ended


def test_what_has_ended_is_in_the_store_when_it_is_told(tmp_path: Path) -> None:
    app = host(tmp_path)
    seen: list[str] = []

    @run_ended.connect_via(app)
    def look(sender: Flask, run_id: str, **more: Any) -> None:
        assert current_app == app, "handlers run in the application's context"
        seen.append(sender.extensions["flaskchat"].runtime.store.run(run_id, None).state)

    with ChatClient(app) as chat:
        chat.ask("hello")
        for _ in deadline(30, "the signal"):
            if seen:
                break
    assert seen == ["done"]


def test_a_handler_hears_its_own_application_only(tmp_path: Path) -> None:
    one, two = host(tmp_path / "1"), host(tmp_path / "2")
    heard: list[Flask] = []

    @run_ended.connect_via(one)
    def hear(sender: Flask, **more: Any) -> None:
        heard.append(sender)

    with ChatClient(one) as first, ChatClient(two) as second:
        first.ask("a")
        second.ask("b")
    assert heard == [one]


@pytest.mark.parametrize("how", ["stopped", "error"])
def test_every_end_is_told_with_its_state(tmp_path: Path, told: Told, how: str) -> None:
    app, gate = bare(tmp_path), Gate()

    def raises(request: Request) -> list[str]:
        raise ValueError

    FlaskChat(app).model("model")(gate if how == "stopped" else raises)
    with ChatClient(app) as chat:
        response = chat.client.post("/chat/conversation", json=send(), buffered=False)
        if how == "stopped":
            chat.client.post(f"/chat/runs/{response.headers['Flaskchat-Run-Id']}/stop")
            gate.opened.set()
        response.get_data()
        response.close()
    assert [(name, fields.get("state")) for name, _, fields in told] == [("started", None), ("ended", how)]


def test_a_run_that_ends_with_its_worker_is_told_too(tmp_path: Path, told: Told) -> None:
    app, gate = bare(tmp_path, FLASKCHAT_DRAIN=0), Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        chat.client.post("/chat/conversation", json=send(), buffered=False).close()
    gate.opened.set()
    assert [(name, fields.get("state")) for name, _, fields in told] == [("started", None), ("ended", "interrupted")]


def test_a_repeated_message_is_told_once(tmp_path: Path, told: Told) -> None:
    with ChatClient(host(tmp_path)) as chat:
        for _ in range(3):
            chat.client.post("/chat/conversation", json=send()).close()
    assert len(told) == 2


def test_a_handler_that_raises_is_logged_and_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = host(tmp_path)

    @run_started.connect_via(app)
    def broken(sender: Flask, **more: Any) -> None:
        raise RuntimeError("in a handler")

    with caplog.at_level(logging.ERROR, "flaskchat"), ChatClient(app) as chat:
        assert chat.ask("a").state == "done"
    assert "a handler of the signal flaskchat-run-started failed" in caplog.text
    assert "in a handler" in caplog.text


def test_closing_waits_for_handlers_that_are_at_work(tmp_path: Path) -> None:
    app = host(tmp_path)
    billed: list[str] = []

    @run_ended.connect_via(app)
    def bill(sender: Flask, run_id: str, **more: Any) -> None:
        threading.Event().wait(0.05)
        billed.append(run_id)

    with ChatClient(app) as chat:
        reply = chat.ask("a")
    assert billed == [reply.run_id]


def test_a_handler_that_waits_holds_up_no_reply(tmp_path: Path) -> None:
    app, go_on = host(tmp_path), threading.Event()

    @run_started.connect_via(app)
    def slow(sender: Flask, **more: Any) -> None:
        go_on.wait(60)

    with ChatClient(app) as chat:
        assert chat.ask("a").state == "done"
        assert chat.ask("b").state == "done"
        go_on.set()

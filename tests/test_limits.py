"""What one owner and one address may use: 429 with Retry-After, before any model is asked; repeating is free."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from flaskchat import FlaskChat, Request
from flaskchat.errors import TooMany
from flaskchat.limits import Visitor, network
from flaskchat.models import Done, Usage
from flaskchat.providers.openai import usage_of
from flaskchat.store.schema import usage
from flaskchat.testing import ChatClient
from tests.hosts import Gate, bare, host, problem, send
from tests.server.client import deadline

Made = tuple[Flask, Gate, list[Request]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    """A host whose model says one word and waits; with what the model was asked."""
    made: list[Made] = []

    def start(**config: Any) -> Made:
        app = bare(tmp_path, TESTING=False, **{f"FLASKCHAT_{name.upper()}": value for name, value in config.items()})
        gate, asked = Gate(), list[Request]()
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]

        def model(request: Request) -> Iterator[str]:
            asked.append(request)
            return gate(request)

        FlaskChat(app).model("gate")(model)
        made.append((app, gate, asked))
        return made[-1]

    yield start
    for app, gate, _ in made:
        gate.opened.set()
        app.extensions["flaskchat"].close()


def post(chat: ChatClient, client_id: str, text: str = "hello", **more: Any) -> TestResponse:
    """A question whose answer is left open."""
    headers = {"X-Forwarded-For": more.pop("address")} if "address" in more else {}
    return chat.client.post("/chat/conversation", json=send(text, client_id, **more), headers=headers, buffered=False)


def refused(response: TestResponse, code: str) -> dict[str, Any]:
    body = problem(response, 429, code)
    assert body["retry_after"] > 0
    assert float(response.headers["Retry-After"]) >= body["retry_after"]
    return body


# -- replies at once ---------------------------------------------------------------------------------------------------


def test_the_fourth_reply_at_once_is_refused_before_its_model_is_asked(make: Callable[..., Made]) -> None:
    app, gate, asked = make()
    chat = ChatClient(app)
    for number in range(3):
        assert post(chat, f"q{number}").status_code == 200
    found = refused(post(chat, "q3"), "too_many_runs")
    assert "3 replies are being written for you" in found["detail"]
    for _ in deadline(30, "the three questions at the model"):
        if len(asked) == 3:
            break
    assert chat.client.get("/chat/conversations").json["items"][0]["title"] == "hello"  # type: ignore[index]
    assert len(chat.client.get("/chat/conversations").json["items"]) == 3, "nothing of it is kept"  # type: ignore[index]
    assert post(ChatClient(app), "q3").status_code == 200, "somebody else may"
    gate.opened.set()
    for _ in deadline(30, "an ended reply"):
        if post(chat, "q3").status_code == 200:
            break


def test_repeating_a_question_is_no_further_one(make: Callable[..., Made]) -> None:
    app, _, asked = make(max_runs_per_owner=1, messages_per_minute=1, tokens_per_day=1, connections_per_second=1)
    chat = ChatClient(app)
    assert post(chat, "q").status_code == 200
    for _ in range(5):
        assert post(chat, "q").status_code == 200
    assert post(chat, "other").status_code == 429
    assert len(asked) <= 1


def test_another_body_under_a_known_id_is_told_as_such_also_over_a_limit(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_runs_per_owner=1, max_streams_per_owner=1)
    chat = ChatClient(app)
    assert post(chat, "q").status_code == 200
    problem(post(chat, "q", "something else"), 422, "idempotency_conflict")


# -- messages and tokens -----------------------------------------------------------------------------------------------


def test_messages_are_counted_over_any_sixty_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = host(tmp_path, FLASKCHAT_MESSAGES_PER_MINUTE=3)
    with ChatClient(app) as chat:
        began = time.time()
        at = [began]
        monkeypatch.setattr("time.time", lambda: at[0])
        for second in (0, 20, 40):
            at[0] = began + second
            assert chat.ask("hello").state == "done"
        at[0] = began + 59
        found = refused(chat.client.post("/chat/conversation", json=send(client_id="x")), "too_many_messages")
        assert found["retry_after"] == pytest.approx(1, abs=0.1)
        assert ChatClient(app).ask("hello").state == "done", "each owner by itself"
        at[0] = began + 61
        assert chat.ask("hello").state == "done"
        refused(chat.client.post("/chat/conversation", json=send(client_id="x")), "too_many_messages")
        at[0] = began - 3600
        assert chat.ask("hello").state == "done", "a clock that was set back must not lock anybody out"


def test_what_was_used_is_not_forgotten_with_the_conversation(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_MESSAGES_PER_MINUTE=2)
    with ChatClient(app) as chat:
        for _ in range(2):
            reply = chat.ask("hello")
            assert chat.client.delete(f"/chat/conversations/{reply.conversation_id}").status_code == 204
        refused(chat.client.post("/chat/conversation", json=send(client_id="x")), "too_many_messages")


def test_tokens_are_counted_as_the_model_says_else_by_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = host(tmp_path, FLASKCHAT_TOKENS_PER_DAY=110)  # to the last one
    with ChatClient(app) as chat:
        chat.ask("x" * 40)  # a parrot: 10 tokens there and 10 back
        assert used(app) == [20]
        monkeypatch.setattr("flaskchat.feed.Done", Counted)
        monkeypatch.setattr("flaskchat.providers.callable.Done", Counted)
        chat.ask("hello")
        assert used(app) == [20, 90]
        refused(chat.client.post("/chat/conversation", json=send(client_id="x")), "too_many_tokens")
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + 86401)
        chat.ask("a new day")


class Counted(Done):
    """The end of a reply of a model that counts: 60 tokens read, 30 written."""

    def __post_init__(self) -> None:
        self.usage = Usage(input_tokens=60, output_tokens=30)


def used(app: Flask) -> list[int]:
    select = sa.select(usage.c.tokens).order_by(usage.c.at)
    return list(app.extensions["flaskchat"].runtime.database.read(lambda c: c.execute(select).scalars().all()))


def test_a_stopped_reply_has_used_what_it_said(make: Callable[..., Made]) -> None:
    app, _, _ = make(tokens_per_day=1000)
    chat = ChatClient(app)
    response = post(chat, "q", "y" * 400)
    run_id = response.headers["Flaskchat-Run-Id"]
    for _ in deadline(30, "the first word"):
        if b"Well" in next(iter(response.iter_encoded()), b""):
            break
    assert chat.client.post(f"/chat/runs/{run_id}/stop", json={}).status_code == 200
    assert used(app)[0] >= 101


def test_where_no_limit_asks_for_it_nothing_is_written_down(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_MESSAGES_PER_MINUTE=0)
    with ChatClient(app) as chat:
        chat.ask("hello")
        assert used(app) == []


# -- streams -----------------------------------------------------------------------------------------------------------


def follow(chat: ChatClient, run_id: str, cursor: int = 0, **headers: str) -> TestResponse:
    if cursor:
        headers["Last-Event-ID"] = str(cursor)
    return chat.client.get(f"/chat/runs/{run_id}/events", headers=headers, buffered=False)


def test_an_owner_has_so_many_streams_and_a_closed_one_makes_room(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_streams_per_owner=3)
    chat = ChatClient(app)
    first = post(chat, "q")
    run_id = first.headers["Flaskchat-Run-Id"]
    streams = [first, follow(chat, run_id), follow(chat, run_id)]
    assert [stream.status_code for stream in streams] == [200] * 3
    refused(follow(chat, run_id), "too_many_streams")
    refused(post(chat, "other"), "too_many_streams")
    streams[1].close()
    for _ in deadline(30, "room"):
        if (again := follow(chat, run_id)).status_code == 200:
            break
    again.close()
    for stream in streams:
        stream.close()


def test_who_comes_back_is_let_in_and_the_stream_before_gives_way(make: Callable[..., Made]) -> None:
    """Nobody has noticed yet that the client is gone: as with a phone that lost its network."""
    app, _, _ = make(max_streams_per_owner=1)
    chat = ChatClient(app)
    dead = post(chat, "q")
    run_id = dead.headers["Flaskchat-Run-Id"]
    for _ in range(20):
        again = follow(chat, run_id, 1)
        assert again.status_code == 200
        assert len(list(dead.iter_encoded())) < 5, "it has ended"
        dead.close()
        dead = again
    runtime = app.extensions["flaskchat"].runtime
    assert len(runtime.readers) == 1
    dead.close()


def test_who_comes_back_to_one_run_does_not_end_the_stream_of_another(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_streams_per_owner=2)
    chat = ChatClient(app)
    first, second = post(chat, "q"), post(chat, "r")
    assert second.status_code == 200
    again = follow(chat, second.headers["Flaskchat-Run-Id"], 1)
    assert again.status_code == 200
    readers = app.extensions["flaskchat"].runtime.readers
    alive = {reader.run.run_id for reader in readers._open if not reader._gone}
    assert first.headers["Flaskchat-Run-Id"] in alive
    for stream in (first, second, again):
        stream.close()


def test_a_cursor_is_no_way_to_get_more_streams(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_streams_per_owner=3)
    chat = ChatClient(app)
    first = post(chat, "q")
    run_id = first.headers["Flaskchat-Run-Id"]
    streams = [first, *(follow(chat, run_id, 1) for _ in range(10))]
    assert {stream.status_code for stream in streams} == {200}
    readers = app.extensions["flaskchat"].runtime.readers
    assert len([reader for reader in readers._open if not reader._gone]) == 3
    for stream in streams:
        stream.close()


def test_an_address_has_so_many_streams_whoever_they_are(make: Callable[..., Made]) -> None:
    app, _, asked = make(max_streams_per_address=2)
    visitors = [ChatClient(app) for _ in range(3)]
    streams = [post(visitor, "q", address="192.0.2.1") for visitor in visitors[:2]]
    refused(post(visitors[2], "q", address="192.0.2.1"), "too_many_streams")
    assert len(asked) <= 2
    elsewhere = post(visitors[2], "q", address="192.0.2.2")
    assert elsewhere.status_code == 200
    refused(visitors[2].client.get("/chat/sse", headers={"X-Forwarded-For": "192.0.2.1"}), "too_many_streams")
    for stream in (*streams, elsewhere):
        stream.close()
    held = app.extensions["flaskchat"].runtime.places._held
    assert [key for key in held if key.startswith(("owner ", "address "))] == [], "all places were given back"


def test_so_many_new_streams_a_second_and_no_limit_for_who_comes_back(make: Callable[..., Made]) -> None:
    app, _, _ = make(connections_per_second=5, max_streams_per_owner=0)
    chat = ChatClient(app)
    first = post(chat, "q")
    run_id = first.headers["Flaskchat-Run-Id"]
    followed = [follow(chat, run_id) for _ in range(40)]
    codes = [response.status_code for response in followed]
    assert codes.count(429) > 0
    assert codes.count(200) < 40
    refused(next(response for response in followed if response.status_code == 429), "too_many_connections")
    back = [follow(chat, run_id, 1) for _ in range(40)]
    assert {response.status_code for response in back} == {200}
    for response in (first, *followed, *back):
        response.close()


def test_a_second_is_over_when_it_is_over(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, _ = make(connections_per_second=2)
    limits = app.extensions["flaskchat"].runtime.limits
    now = [1000.5]
    monkeypatch.setattr("flaskchat.limits.time.monotonic", lambda: now[0])
    for second in (1000.5, 1001.0, 1001.9, 1002.0):
        now[0] = second
        visitor = Visitor("ada", address="192.0.2.1")
        limits.enter(visitor)
        visitor.release()
    for _ in range(2):
        now[0] += 1
        for _ in range(2):
            limits.enter(Visitor("", address="192.0.2.1"))
        with pytest.raises(TooMany):
            limits.enter(Visitor("", address="192.0.2.1"))
        limits.enter(Visitor("", address="192.0.2.9"))
        back = Visitor("", address="192.0.2.1")
        back.returning = True
        limits.enter(back)  # at once
    held = app.extensions["flaskchat"].runtime.places._held
    assert sum(key.startswith("second") for key in held) == 2, "and leaves nothing behind"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", None),
        (None, None),
        ("unix:", None),
        ("<script>", None),
    ],
)
def test_an_address_is_counted_as_the_network_that_one_client_has(address: str | None, counted: str | None) -> None:
    assert network(address) == counted


def test_head_and_what_fails_hold_no_place(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_streams_per_owner=1)
    chat = ChatClient(app)
    first = post(chat, "q")
    run_id, conversation = first.headers["Flaskchat-Run-Id"], "c_unknown"
    first.close()
    for _ in range(3):
        with chat.client.head(f"/chat/runs/{run_id}/events") as head:
            assert head.status_code == 200
        assert post(chat, "r", conversation_id=conversation).status_code == 404
        assert follow(chat, "run_unknown").status_code == 404
        with chat.client.head("/chat/sse") as head:
            assert head.status_code == 200
    again = follow(chat, run_id)
    assert again.status_code == 200
    again.close()


# -- one worker --------------------------------------------------------------------------------------------------------


def test_a_worker_writes_so_many_replies_at_once(make: Callable[..., Made]) -> None:
    app, gate, asked = make(max_runs=2)
    streams = [post(ChatClient(app), "q") for _ in range(2)]
    response = post(ChatClient(app), "q")
    assert response.headers["Retry-After"]
    problem(response, 503, "full")
    assert len(asked) <= 2
    gate.opened.set()
    for stream in streams:
        stream.get_data()
        stream.close()
    post(ChatClient(app), "q").close()


def test_the_smallest_stream_gives_its_place_back(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_streams_per_address=1)
    for _ in range(3):
        response = app.test_client().get("/chat/sse", buffered=False)
        assert response.status_code == 200
        response.close()


def test_a_worker_that_holds_too_many_bytes_of_replies_begins_no_further_one(make: Callable[..., Made]) -> None:
    app, _, _ = make(max_queued_bytes=1 << 16, max_runs_per_owner=0, messages_per_minute=0)
    chat = ChatClient(app)
    first = post(chat, "q")
    runs = app.extensions["flaskchat"].runtime.runs
    (feed,) = app.extensions["flaskchat"].runtime.pump.feeds.values()
    feed.text += b"x" * (1 << 17)
    for _ in deadline(30, "a refusal"):
        response = post(chat, uuid.uuid4().hex)
        if response.status_code == 503:
            break
        response.close()
    problem(response, 503, "full")
    assert response.headers["Retry-After"]
    assert post(chat, "q").status_code == 200, "one that began already is followed"
    assert runs._queued > 1 << 16
    del feed.text[:]
    first.close()


def test_usage_is_of_what_providers_say() -> None:
    found = usage_of({"prompt_tokens": 3, "completion_tokens": 4})
    assert found == Usage(input_tokens=3, output_tokens=4)

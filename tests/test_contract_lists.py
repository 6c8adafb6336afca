"""The HTTP contract of conversations, models, the page and operations, line by line."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from flask import Flask

from flaskchat import FlaskChat
from flaskchat.testing import ChatClient
from tests.backends import EVERYWHERE, Backend
from tests.hosts import ID, bare, host, parrot, problem

pytestmark = pytest.mark.backends("sqlite", long=EVERYWHERE[1:])


@pytest.fixture
def app(tmp_path: Path, backend: Backend) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False, **backend.settings())
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def visitor(app: Flask) -> ChatClient:
    return ChatClient(app)


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_the_list_has_the_newest_first_in_pages(visitor: ChatClient) -> None:
    replies = [visitor.ask(f"question {number}") for number in range(7)]
    wanted = [reply.conversation_id for reply in reversed(replies)]
    found, cursor, pages = [], "", 0
    while True:
        page = visitor.client.get("/chat/conversations", query_string={"limit": 3, "cursor": cursor}).json
        assert page is not None
        assert list(page) == ["items", "next_cursor"]
        found += [item["id"] for item in page["items"]]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["items"]) == 3
        assert re.fullmatch(r"[\x21-\x7e]+", cursor)
    assert found == wanted
    assert pages == 3
    exactly = visitor.client.get("/chat/conversations?limit=7").json
    assert exactly is not None
    assert (len(exactly["items"]), exactly["next_cursor"]) == (7, None)


def test_an_item_of_the_list_has_exactly_the_members_of_the_contract(visitor: ChatClient) -> None:
    visitor.ask("hello you")
    listed = visitor.client.get("/chat/conversations")
    assert listed.json is not None
    (item,) = listed.json["items"]
    assert set(item) == {"id", "title", "model", "updated_at", "running_run_id"}
    assert (item["title"], item["model"], item["running_run_id"]) == ("hello you", "parrot", None)
    assert_is_a_time(item["updated_at"])
    assert listed.headers["Cache-Control"] == "no-store"


def assert_is_a_time(text: str) -> None:
    """RFC 3339 in UTC, and of now."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(text)
    assert datetime.timedelta(seconds=-1) < age < datetime.timedelta(minutes=2)


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "x", "", "1.5", "٣", "00000000000000000150", "1e1", " 5", "9" * 5000]
)
def test_a_limit_out_of_bounds_is_refused(visitor: ChatClient, limit: str) -> None:
    found = problem(visitor.client.get("/chat/conversations", query_string={"limit": limit}), 422, "invalid")
    assert found["errors"][0]["field"] == "limit"


@pytest.mark.parametrize("cursor", ["x", "W10", "bnVsbA", "eyJhIjoxfQ", "ü", "=", "WzEsMl0x", "!!!!"])
def test_a_cursor_of_the_list_that_is_none_of_ours_is_refused(visitor: ChatClient, cursor: str) -> None:
    found = problem(visitor.client.get("/chat/conversations", query_string={"cursor": cursor}), 422, "invalid")
    assert found["errors"] == [{"field": "cursor", "reason": "unknown"}]


def searched(visitor: ChatClient, query: str) -> set[str]:
    found = visitor.client.get("/chat/conversations", query_string={"q": query}).json
    assert found is not None
    return {item["id"] for item in found["items"]}


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_a_search_finds_words_of_titles_and_of_texts(visitor: ChatClient) -> None:
    both = visitor.ask("the quick fox")
    other = visitor.ask("slow snail")
    visitor.ask("hidden treasure", conversation_id=other.conversation_id)
    search = partial(searched, visitor)

    assert search("fox") == {both.conversation_id}
    assert search("FOX quick") == {both.conversation_id}
    assert search("treasure") == {other.conversation_id}
    assert search("fox snail") == set()
    assert search("%") == search("_") == search("absent") == set()
    assert search("quick quick slow snail") == search("thequick") == set()
    assert search("") == search("  ") == {both.conversation_id, other.conversation_id}
    assert ChatClient(visitor.client.application).client.get("/chat/conversations?q=fox").json["items"] == []  # type: ignore[index]


LONG = "".join(chr(0x4E00 + number) for number in range(90))
"""A word of more parts than an index is asked for."""


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
@pytest.mark.parametrize(
    ("text", "found", "not_found"),
    [
        ("banana bandana", ["anan", "BANDANA", "ana"], ["banandana", "nanab", "bananab"]),  # of whose parts it has all
        (
            "Die Äpfel sind GRÜN, не КРАСНЫЕ",
            ["ÄPFEL", "grün", "красные", "äp", "НЕ", "äp красн"],
            ["apfel", "grünn", "äpf xy"],
        ),
        ("日本語のテキスト", ["日本語", "語のテキスト"], ["日本の"]),
        ("\"abc\" 'def' (x AND y) a\\b%c_d*", ['"abc"', "'def'", "(x", "a\\b%c_d*", "and"], ['"abd"', "b%%c", "c_*"]),
        (LONG, [LONG, LONG[7:]], [LONG[:-1] + "x"]),
    ],
    ids=["letters", "alphabets", "no spaces", "signs", "long"],
)
def test_a_word_is_found_where_it_stands_whole_whatever_its_case(
    visitor: ChatClient, text: str, found: list[str], not_found: list[str]
) -> None:
    visitor.client.patch(f"/chat/conversations/{visitor.ask(text).conversation_id}", json={"title": "something else"})
    for words in (found, not_found):
        for word in words:
            assert len(searched(visitor, word)) == (words is found), word


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_a_conversation_has_exactly_the_members_of_the_contract(visitor: ChatClient) -> None:
    reply = visitor.ask("hello")
    found = visitor.client.get(f"/chat/conversations/{reply.conversation_id}").json
    assert found is not None
    assert set(found) == {"id", "title", "model", "system_prompt", "current_leaf_id", "messages", "running"}
    assert (found["system_prompt"], found["running"], found["model"]) == (None, [], "parrot")
    promised = {"id", "parent_id", "role", "text", "parts", "model", "status", "run_id", "usage", "created_at"}
    for message in found["messages"]:
        assert promised <= set(message)
        assert re.fullmatch(ID["message_id"], message["id"])
        assert_is_a_time(message["created_at"])
        assert message["status"] == "done"
    question, answer = found["messages"]
    assert (question["role"], question["run_id"]) == ("user", None)
    assert (answer["role"], answer["run_id"], answer["model"]) == ("assistant", reply.run_id, "parrot")
    assert answer["parts"] == [{"type": "text", "text": "hello "}]


def test_the_models_are_listed_the_default_first(tmp_path: Path) -> None:
    app = bare(tmp_path, FLASKCHAT_MODELS="openai:gpt-5, openai:llama3:8b")
    FlaskChat(app).model("parrot")(parrot)
    found = app.test_client().get("/chat/models").json
    assert found is not None
    assert list(found) == ["items"]
    assert all(set(item) == {"id", "label", "default", "capabilities"} for item in found["items"])
    assert [item["id"] for item in found["items"]] == ["parrot", "openai:gpt-5", "openai:llama3:8b"]
    assert [item["default"] for item in found["items"]] == [True, False, False]


@pytest.mark.parametrize("path", ["/chat/", "/chat/c/c_anything"])
def test_the_page_is_html_under_a_policy(app: Flask, path: str) -> None:
    page = app.test_client().get(path)
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "<script>" not in page.text


def test_health_and_readiness(app: Flask) -> None:
    client = app.test_client()
    assert (client.get("/chat/healthz").status_code, client.get("/chat/healthz").json) == (200, {"status": "ok"})
    ready = client.get("/chat/readyz")
    assert ready.status_code == 200
    assert ready.json is not None
    assert ready.json["status"] == "ready"


def test_a_database_that_cannot_be_used_is_not_ready_but_healthy(tmp_path: Path) -> None:
    app = host(tmp_path, TESTING=False)
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / "flaskchat.sqlite3").write_bytes(b"this is no database" * 100)
    client = app.test_client()
    found = problem(client.get("/chat/readyz"), 503, "not_ready")
    assert list(found["wrong"]) == ["store"]
    assert str(tmp_path) not in json.dumps(found)
    assert client.get("/chat/healthz").status_code == 200
    problem(client.get("/chat/conversations"), 500, "internal_error")

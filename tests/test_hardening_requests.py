"""Hostile cursors, paths, queries and headers, one named test each: none is answered with a 5xx or taken for
something else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flaskchat.testing import ChatClient
from tests.hosts import host, problem, send


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False)
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def visitor(app: Flask, client: FlaskClient) -> ChatClient:
    return ChatClient(app, client)


# -- cursors -----------------------------------------------------------------------------------------------------------

CURSORS = [
    "-1", "+1", "1.0", "1e3", "0x1", "0b1", "1_0", "٣", "½", "²", "NaN", "inf", "None", "null", "true", "1 2", "1,2",
    "1-0", "$", "*", "' OR 1=1 --", "<script>", "\x00", "\x7f", "é", "99999999999999999999999", "9" * 5000,
    "0" * 5000 + "1", "run_x:1", "../1",
]  # fmt: skip


@pytest.mark.parametrize("cursor", CURSORS, ids=lambda cursor: repr(cursor)[:24])
def test_a_cursor_with_anything_in_it_is_a_reset(visitor: ChatClient, cursor: str) -> None:
    reply = visitor.ask("one two")
    path = f"/chat/runs/{reply.run_id}/events"
    by_query = visitor.client.get(path, query_string={"last_event_id": cursor})
    raw = cursor.encode().decode("latin-1")
    by_header = visitor.client.get(path, environ_overrides={"HTTP_LAST_EVENT_ID": raw})
    both = visitor.client.get(f"{path}?last_event_id=1", environ_overrides={"HTTP_LAST_EVENT_ID": raw})
    for response in (by_query, by_header, both):
        events = visitor._events(response)
        assert [event.name for event in events] == ["reset", "done"]
        assert events[0].data == {"seq": reply.events[-1].seq - 1, "text": "one two "}


def test_a_cursor_that_is_a_million_ahead_is_a_reset(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    assert visitor.follow(reply.run_id, after=1_000_000)[0].name == "reset"


def test_two_cursors_in_the_query(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    last = reply.events[-1].seq
    response = visitor.client.get(f"/chat/runs/{reply.run_id}/events?last_event_id=1&last_event_id={last}")
    assert visitor._events(response)[0].seq == 2


# -- paths and queries -------------------------------------------------------------------------------------------------

IDS = [
    "%00", "%0d%0aX-Injected:%20yes", "%ff%fe", "%ed%a0%80", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a%20b",
    "'%20OR%201=1--", "%22%3E%3Cscript%3E", "%E2%80%AE", "run_" + "x" * 3000, "%25%30%30", "c_*", "*",
    "__all__", "-1", "0",
]  # fmt: skip


@pytest.mark.parametrize("path_id", IDS, ids=lambda value: value[:20])
def test_an_id_in_a_path_with_anything_in_it_is_unknown(client: FlaskClient, path_id: str) -> None:
    for method, path in (
        ("GET", f"/chat/runs/{path_id}/events"),
        ("POST", f"/chat/runs/{path_id}/stop"),
        ("GET", f"/chat/conversations/{path_id}"),
    ):
        response = client.open(path, method=method)
        problem(response, 404, "not_found")
        assert "X-Injected" not in response.headers
    page = client.get(f"/chat/c/{path_id}")
    assert page.status_code in (200, 404)
    assert "<script>" not in page.text


def test_a_conversation_id_cannot_leave_its_attribute(client: FlaskClient) -> None:
    page = client.get("/chat/c/" + quote('x" onload="alert(1)', safe="")).text
    assert 'conversation="x&#34; onload=&#34;alert(1)"' in page


def test_a_path_out_of_the_assets(client: FlaskClient) -> None:
    for path in (
        "../config.py", "..%2fconfig.py", "%2e%2e/config.py", "....//config.py", "/etc/passwd", "..\\config.py", "%00",
    ):  # fmt: skip
        assert client.get(f"/chat/assets/{path}").status_code in (404, 308)
        assert "SETTINGS" not in client.get(f"/chat/assets/{path}", follow_redirects=True).text


QUERIES = [
    '"', "'", '"unbalanced', "a AND", "OR", "NOT", "NEAR(", "NEAR(a b)", "title:x", "{a b}:c", "*", "a*", "^a", "-a",
    "+", "(", ")", "a)b", "%", "_", "\\", "\\%", "\x00", "a\x00b", ";", "--", "/* */", "' OR '1'='1", "x" * 5000,
    "a " * 2000, "😀", "\u202e", "\ufffd", "rank", "1", "|", "&", "~", "@", "#", "$", "=", "a:b", "...", ",",
    "`", "[", "]",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: repr(query)[:20])
def test_a_search_for_anything_is_a_search(visitor: ChatClient, query: str) -> None:
    visitor.ask("plain words")
    response = visitor.client.get("/chat/conversations", query_string={"q": query})
    assert response.status_code == 200, response.text


def test_a_search_in_invalid_utf8(client: FlaskClient) -> None:
    for raw in ("%ff", "%ed%a0%80", "%00", "%c0%80", "%"):
        assert client.get(f"/chat/conversations?q={raw}").status_code == 200


def test_a_search_does_not_see_what_others_wrote(app: Flask, visitor: ChatClient) -> None:
    visitor.ask("password hunter2")
    stranger = app.test_client()
    for query in ("hunter2", "hunter*", '"', "password OR hunter2", "*"):
        found = stranger.get("/chat/conversations", query_string={"q": query}).json
        assert found == {"items": [], "next_cursor": None}


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


PAGE_CURSORS = {
    "not base64": "!!!!",
    "one character": "A",
    "not json": encoded("x"),
    "NUL": encoded('[1, "c_\\u0000"]'),
    "deeply nested": encoded("[" * 2500),
    "a number too large for a float": encoded(f'[{"9" * 400}, "c_x"]'),
    "nothing": encoded("null"),
    "too few": encoded("[1]"),
    "too many": encoded('[1, "a", "b"]'),
    "a text for a time": encoded('["now", "a"]'),
    "a list for a time": encoded('[[], "a"]'),
    "sql": encoded('["1 OR 1=1", "a"]'),
    "very long": "A" * 100_000,
    "padding": encoded('[1, "c_x"]') + "=",
}


@pytest.mark.parametrize("cursor", PAGE_CURSORS.values(), ids=PAGE_CURSORS.keys())
def test_a_page_cursor_that_is_none_of_ours(visitor: ChatClient, cursor: str) -> None:
    visitor.ask("one")
    found = problem(visitor.client.get("/chat/conversations", query_string={"cursor": cursor}), 422, "invalid")
    assert found["errors"] == [{"field": "cursor", "reason": "unknown"}]


def test_a_page_cursor_with_a_surrogate(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path)) as chat:
        cursor = encoded('[1, "\\ud800"]')
        problem(chat.client.get("/chat/conversations", query_string={"cursor": cursor}), 422, "invalid")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e308", "-1", "0"])
def test_a_page_cursor_with_a_time_that_cannot_be(app: Flask, visitor: ChatClient, number: str) -> None:
    visitor.ask("one")
    stranger = app.test_client()
    cursor = encoded(f'[{number}, "c_x"]')
    assert visitor.client.get("/chat/conversations", query_string={"cursor": cursor}).status_code in (200, 422)
    theirs = stranger.get("/chat/conversations", query_string={"cursor": cursor})
    assert theirs.status_code == 422 or theirs.json == {"items": [], "next_cursor": None}


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ['evil.example"><script>', "evil.example", "a b", "[::1", "", "x" * 3000, "é"])
def test_a_host_header_with_anything_in_it_is_in_no_page(client: FlaskClient, name: str) -> None:
    page = client.get("/chat/", environ_overrides={"HTTP_HOST": name})
    assert page.status_code in (200, 400)
    assert "evil" not in page.text.replace("does not match", "")
    assert "evil" not in page.headers.get("Location", "")


def test_no_host_and_no_origin_are_not_the_same_place(client: FlaskClient) -> None:
    for name in ("", "a b", "/", "\x00"):
        response = client.get("/chat/models", headers={"Origin": "null"}, environ_overrides={"HTTP_HOST": name})
        assert response.status_code in (400, 403), name


def test_forwarded_headers_are_not_believed_by_themselves(client: FlaskClient) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil", "X-Forwarded-Proto": "https"}
    page = client.get("/chat/", headers=headers)
    assert "evil" not in page.text
    assert "Secure" not in page.headers["Set-Cookie"]
    origin = {**headers, "Origin": "https://evil.example"}
    problem(client.post("/chat/conversation", json=send(), headers=origin), 403, "cross_origin")


def test_a_method_in_a_header_or_a_form_is_no_method(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    path = f"/chat/conversations/{reply.conversation_id}"
    for headers in ({"X-HTTP-Method-Override": "DELETE"}, {"X-Method-Override": "DELETE"}):
        visitor.client.get(path, headers=headers)
        visitor.client.post(path, headers=headers, data={"_method": "DELETE"})
    assert visitor.client.get(path).status_code == 200


def test_many_cookies_of_the_same_name(app: Flask, visitor: ChatClient) -> None:
    reply = visitor.ask("mine")
    cookie = visitor.client.get_cookie("flaskchat_owner", path="/chat")
    assert cookie is not None
    header = "flaskchat_owner=x; " * 200 + f"flaskchat_owner={cookie.value}"
    response = app.test_client(use_cookies=False).get(
        f"/chat/conversations/{reply.conversation_id}", environ_overrides={"HTTP_COOKIE": header}
    )
    assert response.status_code in (200, 404)


def test_an_answer_cannot_be_framed_sniffed_or_read_by_others(visitor: ChatClient) -> None:
    reply = visitor.ask("<html><script>alert(1)</script>")
    for path in (f"/chat/runs/{reply.run_id}/events", f"/chat/conversations/{reply.conversation_id}", "/chat/models"):
        response = visitor.client.get(path)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in response.headers["Cache-Control"]
        assert "Access-Control-Allow-Origin" not in response.headers
        assert not response.content_type.startswith("text/html")


def policy(response: TestResponse) -> dict[str, str]:
    """The directives of the answer's Content-Security-Policy."""
    directives = (part.strip().partition(" ") for part in response.headers["Content-Security-Policy"].split(";"))
    return {name: value for name, _, value in directives}


def test_what_a_model_wrote_can_do_nothing_where_it_is_opened_by_itself(visitor: ChatClient) -> None:
    reply = visitor.ask("<html><script>alert(1)</script>")
    export = f"/chat/conversations/{reply.conversation_id}/export"
    sent = visitor.client.post("/chat/conversation", json=send("again", "second"))
    answers = [sent, *(visitor.client.get(path) for path in (f"/chat/runs/{reply.run_id}/events", export))]
    for response in answers:
        assert policy(response) == {"sandbox": "", "default-src": "'none'"}
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert answers[-1].headers["Content-Disposition"].startswith("attachment;")


def test_the_page_takes_nothing_from_elsewhere_and_nothing_inline(visitor: ChatClient) -> None:
    response = visitor.client.get("/chat/")
    assert policy(response) == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' data:", "font-src": "'self'", "base-uri": "'none'", "form-action": "'none'",
        "frame-ancestors": "'self'", "require-trusted-types-for": "'script'",
    }  # fmt: skip
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert "private" in response.headers["Cache-Control"]

"""One shape for all errors; methods, and requests from other sites."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from flaskchat import FlaskChat
from flaskchat.testing import ChatClient
from tests.backends import EVERYWHERE, Backend
from tests.hosts import PROBLEM, Gate, bare, host, problem, send

pytestmark = pytest.mark.backends("sqlite", long=EVERYWHERE[1:])


@pytest.fixture
def app(tmp_path: Path, backend: Backend) -> Iterator[Flask]:
    app = host(tmp_path, TESTING=False, **backend.settings())
    yield app
    app.extensions["flaskchat"].close()


@pytest.fixture
def visitor(app: Flask) -> ChatClient:
    return ChatClient(app)


ROUTES = [
    ("/chat/conversation", {"POST"}),
    ("/chat/conversations", {"GET", "HEAD"}),
    ("/chat/conversations/c_x", {"GET", "HEAD"}),
    ("/chat/runs/run_x/events", {"GET", "HEAD"}),
    ("/chat/runs/run_x/stop", {"POST"}),
    ("/chat/models", {"GET", "HEAD"}),
    ("/chat/sse", {"GET", "HEAD"}),
    ("/chat/healthz", {"GET", "HEAD"}),
    ("/chat/readyz", {"GET", "HEAD"}),
    ("/chat/", {"GET", "HEAD"}),
]


@pytest.mark.parametrize(("path", "methods"), ROUTES)
def test_another_method_is_refused_with_those_that_are_allowed(app: Flask, path: str, methods: set[str]) -> None:
    client = app.test_client()
    for method in {"GET", "POST", "PUT", "TRACE", "FOO"} - methods:
        refused = client.open(path, method=method)
        problem(refused, 405, "method_not_allowed")
        assert methods <= set(refused.headers["Allow"].split(", "))
    options = client.options(path)
    assert options.status_code == 200
    assert methods <= set(options.headers["Allow"].split(", "))
    assert not [name for name in options.headers.keys() if name.lower().startswith("access-control-")]  # noqa: SIM118


def test_head_answers_without_a_body_and_holds_no_place(visitor: ChatClient) -> None:
    reply = visitor.ask("one")
    state = visitor.client.application.extensions["flaskchat"]
    for path in (f"/chat/runs/{reply.run_id}/events", "/chat/sse", "/chat/conversations", "/chat/"):
        response = visitor.client.head(path)
        assert (response.status_code, response.data) == (200, b"")
        assert response.content_type == visitor.client.get(path, buffered=False).content_type
    assert state.runtime.readers._places == 0


def test_head_of_a_live_run_leaves_no_reader_behind(tmp_path: Path) -> None:
    app = bare(tmp_path)
    gate = Gate()
    FlaskChat(app).model("gate")(gate)
    with ChatClient(app) as chat:
        posted = chat.client.post("/chat/conversation", json=send(), buffered=False)
        readers = app.extensions["flaskchat"].runtime.readers
        assert len(readers) == 1
        head = chat.client.head(f"/chat/runs/{posted.headers['Flaskchat-Run-Id']}/events")
        assert head.status_code == 200
        head.close()
        assert len(readers) == 1
        gate.opened.set()
        posted.get_data()
        posted.close()
        assert len(readers) == 0


OF_OTHERS: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost:81"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "localhost"},
    {"Origin": "http://"},
]
OURS: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},  # where TLS ends at a proxy that nobody told us about
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
]
GUARDED = [
    ("POST", "/chat/conversation"), ("POST", "/chat/runs/run_x/stop"), ("GET", "/chat/runs/run_x/events"),
    ("GET", "/chat/sse"), ("GET", "/chat/conversations"), ("GET", "/chat/conversations/c_x"), ("GET", "/chat/models"),
]  # fmt: skip


@pytest.mark.parametrize("headers", OF_OTHERS, ids=str)
def test_another_sites_page_is_refused_everywhere(app: Flask, headers: dict[str, str]) -> None:
    client = app.test_client()
    for method, path in GUARDED:
        response = client.open(path, method=method, json=send() if method == "POST" else None, headers=headers)
        problem(response, 403, "cross_origin")
        assert "Set-Cookie" not in response.headers
    assert not Path(app.instance_path, "flaskchat.sqlite3").exists(), "it came to no database"


@pytest.mark.parametrize("headers", OURS, ids=str)
def test_our_own_pages_and_programs_are_served(app: Flask, headers: dict[str, str]) -> None:
    client = app.test_client()
    for method, path in GUARDED:
        body = send() if method == "POST" else None
        response = client.open(path, method=method, json=body, headers=headers, buffered=False)
        assert response.status_code in (200, 404)
        response.close()


def test_the_origin_is_that_of_the_browser_behind_a_proxy(tmp_path: Path) -> None:
    app = host(tmp_path)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1)  # type: ignore[method-assign]
    client = app.test_client()
    proxied = {"X-Forwarded-Host": "chat.example", "X-Forwarded-Proto": "https"}
    for origin, status in (("https://chat.example", 200), ("http://localhost", 403), ("https://evil.example", 403)):
        assert client.get("/chat/models", headers={**proxied, "Origin": origin}).status_code == status
    port = {"X-Forwarded-Host": "chat.example:8443", "X-Forwarded-Proto": "https"}
    assert client.get("/chat/models", headers={**port, "Origin": "https://chat.example:8443"}).status_code == 200
    standard = {"X-Forwarded-Host": "chat.example:443", "X-Forwarded-Proto": "https"}
    assert client.get("/chat/models", headers={**standard, "Origin": "https://chat.example"}).status_code == 200


def provoke(client: FlaskClient) -> Iterator[tuple[TestResponse, int]]:
    """Every endpoint, in every way of going wrong that it has."""
    cross = {"Sec-Fetch-Site": "cross-site"}
    yield client.post("/chat/conversation", data=b"{", content_type="application/json"), 415
    yield client.post("/chat/conversation", json={}), 422
    yield client.post("/chat/conversation", json=send(conversation_id="c_x")), 404
    yield client.post("/chat/conversation", json=send(), headers=cross), 403
    yield client.post("/chat/conversation", data=b" " * (2 << 20), content_type="application/json"), 413
    yield client.get("/chat/conversation"), 405
    yield client.get("/chat/runs/run_x/events"), 404
    yield client.get("/chat/runs/run_x/events", headers=cross), 403
    yield client.post("/chat/runs/run_x/events"), 405
    yield client.post("/chat/runs/run_x/stop"), 404
    yield client.get("/chat/runs/run_x/stop"), 405
    yield client.get("/chat/sse", headers=cross), 403
    yield client.post("/chat/sse"), 405
    yield client.get("/chat/conversations?limit=x"), 422
    yield client.get("/chat/conversations?cursor=x"), 422
    yield client.put("/chat/conversations"), 405
    yield client.get("/chat/conversations/c_x"), 404
    yield client.post("/chat/models"), 405
    yield client.get("/chat/models", headers=cross), 403
    yield client.post("/chat/"), 405
    yield client.post("/chat/c/c_x"), 405
    yield client.post("/chat/healthz"), 405
    yield client.post("/chat/readyz"), 405
    yield client.get("/chat/assets/nothing"), 404
    yield client.get("/chat/nothing"), 404
    yield client.get("/chat/runs/"), 404
    yield client.get("/chat/runs/run_x"), 404


@pytest.mark.backends("sqlite", "postgres+redis", long=("postgres",))
def test_every_error_of_every_endpoint_has_one_shape(app: Flask) -> None:
    for response, status in provoke(app.test_client()):
        where = f"{response.request.method} {response.request.path}"
        assert response.status_code == status, where
        assert response.content_type == PROBLEM, where
        body = response.json
        assert isinstance(body, dict)
        assert {"type", "title", "status", "detail", "code"} <= set(body), where
        assert set(body) <= {"type", "title", "status", "detail", "code", "errors", "retry_after", "run_id"}, where
        assert body["status"] == status, where
        assert re.fullmatch(r"[a-z_]+", body["code"]), where
        assert response.headers["Cache-Control"] == "no-store", where
        assert response.headers["X-Content-Type-Options"] == "nosniff", where
        for error in body.get("errors", []):
            assert set(error) == {"field", "reason"}, where


def test_the_standalone_application_answers_unknown_paths_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASKCHAT_DATA", str(tmp_path / "imported"))
    monkeypatch.setenv("FLASKCHAT_MODEL", "guide")
    from wsgi import create_app

    client = create_app({"FLASKCHAT_DATA": str(tmp_path / "data"), "FLASKCHAT_MODEL": "guide"}).test_client()
    problem(client.get("/nowhere"), 404, "not_found")
    problem(client.get("/conversation"), 405, "method_not_allowed")
    assert client.get("/").status_code == 200

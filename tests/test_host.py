"""A host's own templates, routes, handlers and other extensions: they and the chat leave each other alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, got_request_exception, render_template_string, request, session
from flask_wtf.csrf import CSRFProtect
from jinja2 import StrictUndefined
from werkzeug.test import create_environ

from flaskchat import FlaskChat
from flaskchat.testing import ChatClient
from tests.hosts import Gate, bare, host, parrot, send

# -- the host's templates ----------------------------------------------------------------------------------------------


def test_the_host_overrides_the_page(tmp_path: Path) -> None:
    (tmp_path / "templates" / "flaskchat").mkdir(parents=True)
    (tmp_path / "templates" / "flaskchat" / "page.html").write_text("mine at {{ endpoint }}, {{ conversation_id }}")
    client = host(tmp_path).test_client()
    assert client.get("/chat/c/c_1").text == "mine at /chat, c_1"


def test_the_hosts_page_may_extend_ours(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir(parents=True)
    (tmp_path / "templates" / "mine.html").write_text(
        "{% extends 'flaskchat/page.html' %}{% block head %}<meta name=x>{% endblock %}"
    )
    app = host(tmp_path)

    @app.get("/mine")
    def mine() -> str:
        from flask import render_template

        from flaskchat.views.page import asset

        return render_template("mine.html", title="Mine", endpoint="/chat", asset=asset)

    page = app.test_client().get("/mine").text
    assert "<meta name=x>" in page
    assert "<flask-chat" in page


def widget(app: Flask, source: str, **context: Any) -> str:
    with app.test_request_context():
        return render_template_string(source, **context)


def test_the_widget_places_the_element_and_its_script(tmp_path: Path) -> None:
    html = widget(host(tmp_path), "{{ flaskchat() }}")
    assert '<flask-chat endpoint="/chat"></flask-chat>' in html
    assert '<script type="module" src="/chat/assets/flaskchat.js"></script>' in html


def test_the_element_is_told_of_heartbeats_that_are_not_the_usual(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_HEARTBEAT=45)
    assert '<flask-chat endpoint="/chat" heartbeat="45.0">' in widget(app, "{{ flaskchat() }}")
    assert 'heartbeat="45.0"' in app.test_client().get("/chat/").text
    assert 'heartbeat="7"' in widget(app, "{{ flaskchat(heartbeat=7) }}")


def test_attributes_of_the_widget_are_escaped_and_named_as_in_html(tmp_path: Path) -> None:
    app = host(tmp_path)
    source = "{{ flaskchat(model=m, aria_label='x', class_='c', page=True, hidden=False, title=None) }}"
    html = widget(app, source, m='"><script>')
    assert ' model="&#34;&gt;&lt;script&gt;"' in html
    assert ' aria-label="x" class="c" page></flask-chat>' in html
    assert "hidden" not in html
    assert "title" not in html
    assert html.count("<script") == 1


@pytest.mark.parametrize("name", ["onload x", "a>b", "", "endpoint", "a=b", "1a", "x\n"])
def test_an_attribute_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be given as an attribute"):
        widget(host(tmp_path), "{{ flaskchat(**more) }}", more={name: "x"})


def test_what_comes_from_outside_is_escaped_also_where_the_host_escapes_nothing(tmp_path: Path) -> None:
    app = host(tmp_path)
    app.jinja_env.autoescape = False
    app.jinja_env.undefined = StrictUndefined
    assert "<script>alert" not in app.test_client().get("/chat/c/%22%3E%3Cscript%3Ealert(1)").text
    assert widget(app, "{{ flaskchat(model=m) }}", m='"><script>').count("<script") == 1


def test_the_host_overrides_the_widget_and_keeps_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "templates" / "flaskchat").mkdir(parents=True)
    (tmp_path / "templates" / "flaskchat" / "widget.html").write_text("mine at {{ endpoint }}")
    assert widget(host(tmp_path), "{{ flaskchat() }}") == "mine at /chat"
    app = bare(tmp_path / "other")
    app.jinja_env.globals["flaskchat"] = "theirs"
    FlaskChat(app)
    assert widget(app, "{{ flaskchat }}") == "theirs"


# -- the host's own routes and handlers --------------------------------------------------------------------------------


@pytest.fixture
def busy_host(tmp_path: Path) -> Flask:
    """A project with handlers of its own for everything."""
    app = bare(tmp_path, TESTING=False)
    app.extensions["torn_down"] = torn = []

    @app.errorhandler(Exception)
    def fault(error: Exception) -> tuple[str, int]:
        return f"host: {type(error).__name__}", 500

    for status in (401, 404, 405, 413, 500):
        app.register_error_handler(status, lambda error: (f"host: {error.code}", error.code))

    @app.after_request
    def stamp(response: Response) -> Response:
        response.headers["X-Host"] = "yes"
        return response

    @app.teardown_request
    def down(error: BaseException | None) -> None:
        torn.append(request.path)

    @app.get("/fault")
    def fault_here() -> str:
        raise RuntimeError("mine")

    @app.get("/teapot")
    def teapot() -> str:
        abort(404)

    @app.post("/chat/mine")
    def mine() -> str:
        return "mine"

    chat = FlaskChat(app)
    chat.model("parrot")(parrot)
    return app


def test_the_hosts_handlers_are_asked_for_its_own_routes(busy_host: Flask) -> None:
    client = busy_host.test_client()
    assert client.get("/fault").text == "host: RuntimeError"
    assert client.get("/teapot").text == "host: 404"
    assert client.get("/nowhere").text == "host: 404"
    assert client.post("/fault").text == "host: 405"
    assert client.get("/chat/mine").text == "host: 405", "a route of the host's below our prefix"
    assert client.post("/chat/mine").text == "mine"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/chat/conversation", 405, "method_not_allowed"),
        ("PUT", "/chat/conversations", 405, "method_not_allowed"),
        ("GET", "/chat/nowhere/at/all", 404, "not_found"),
        ("POST", "/chat", 404, "not_found"),
        ("GET", "/chat/assets/nothing.js", 404, "not_found"),
        ("GET", "/chat/conversations/c_x", 404, "not_found"),
        ("POST", "/chat/conversation", 415, "not_json"),
    ],
)
def test_our_errors_are_problems_whatever_handlers_the_host_has(
    busy_host: Flask, method: str, path: str, status: int, code: str
) -> None:
    response = busy_host.test_client().open(path, method=method)
    busy_host.extensions["flaskchat"].close()
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert response.json is not None
    assert response.json["code"] == code
    assert response.headers["X-Host"] == "yes"
    if status == 405:
        assert response.headers["Allow"]


def test_the_hosts_after_request_and_teardown_run_for_a_stream_before_it_is_read(busy_host: Flask) -> None:
    with ChatClient(busy_host) as chat:
        response = chat.client.post("/chat/conversation", json=send(), buffered=False)
        assert response.headers["X-Host"] == "yes"
        assert busy_host.extensions["torn_down"] == ["/chat/conversation"]
        assert b"event: done" in response.get_data()
        response.close()


def test_streams_whose_response_a_hook_of_the_host_s_refuses_take_no_places(busy_host: Flask) -> None:
    @busy_host.after_request
    def measure(response: Response) -> Response:
        if "X-Measured" in request.headers:
            response.get_data()  # which a stream does not let anybody have
        return response

    with ChatClient(busy_host) as chat:
        reply = chat.ask("hello you")
        readers = busy_host.extensions["flaskchat"].runtime.readers
        for _ in range(readers._limits._per_owner + 1):
            path = f"/chat/runs/{reply.run_id}/events"
            assert chat.client.get(path, headers={"X-Measured": "yes"}, buffered=False).status_code == 500
        assert len(readers) == 0
        assert [event.seq for event in chat.follow(reply.run_id)] == [event.seq for event in reply.events]


def test_streams_whose_head_the_server_refuses_take_no_places(busy_host: Flask) -> None:
    def refuses(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        raise ValueError("invalid header")  # as gunicorn does, of one that a hook of the host's has set

    with ChatClient(busy_host) as chat:
        reply = chat.ask("hello you")
        readers = busy_host.extensions["flaskchat"].runtime.readers
        cookies = chat.client.get("/chat/models").request.headers.get("Cookie", "")
        for _ in range(readers._limits._per_owner + 1):
            environ = create_environ(f"/chat/runs/{reply.run_id}/events", headers={"Cookie": cookies})
            with pytest.raises(ValueError, match="invalid header"):
                busy_host.wsgi_app(environ, refuses)
        assert len(readers) == 0
        assert [event.seq for event in chat.follow(reply.run_id)] == [event.seq for event in reply.events]


def test_a_fault_of_ours_is_told_to_error_trackers_and_logged_and_says_nothing(
    busy_host: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[Exception] = []

    def tracker(sender: Flask, exception: Exception, **more: Any) -> None:
        caught.append(exception)

    with got_request_exception.connected_to(tracker, busy_host):
        state = busy_host.extensions["flaskchat"]
        state.identity._callback = lambda: {}["secret inner words"]
        response = busy_host.test_client().get("/chat/conversations")
    assert (response.status_code, response.json["code"]) == (500, "internal_error")  # type: ignore[index]
    assert "secret" not in response.text
    assert [type(error) for error in caught] == [KeyError]
    assert "secret inner words" in caplog.text


def test_a_fault_of_ours_is_raised_where_the_host_wants_it(tmp_path: Path) -> None:
    def identity() -> None:
        raise KeyError("mine")

    for config in ({"TESTING": True}, {"TESTING": False, "DEBUG": True}, {"PROPAGATE_EXCEPTIONS": True}):
        app = host(tmp_path, identity=identity, **config)
        with pytest.raises(KeyError):
            app.test_client().get("/chat/models")
    app = host(tmp_path, identity=identity, TESTING=True, PROPAGATE_EXCEPTIONS=False)
    assert app.test_client().get("/chat/models").status_code == 500


def test_the_hosts_routes_of_similar_names_stay_the_hosts(tmp_path: Path) -> None:
    app = bare(tmp_path)
    theirs = Blueprint("chat", "theirs", url_prefix="/chatter")
    theirs.add_url_rule("/", "page", lambda: "theirs")
    app.register_blueprint(theirs)
    app.add_url_rule("/", "page", lambda: "home")
    app.add_url_rule("/models", "models", lambda: "models")
    FlaskChat(app)
    client = app.test_client()
    assert [client.get(path).text for path in ("/", "/models", "/chatter/")] == ["home", "models", "theirs"]
    assert client.get("/chat/models").is_json


def test_at_the_root_the_hosts_other_paths_stay_the_hosts(tmp_path: Path) -> None:
    app = bare(tmp_path)
    app.add_url_rule("/about/", "about", lambda: "about")
    app.register_error_handler(404, lambda error: ("host: 404", 404))
    FlaskChat(app, url_prefix="").model("parrot")(parrot)
    client = app.test_client()
    assert client.get("/about/").text == "about"
    assert client.get("/about").status_code == 308
    assert client.get("/nowhere").text == "host: 404"
    assert client.get("/conversation").json["code"] == "method_not_allowed"  # type: ignore[index]


@pytest.mark.parametrize("first", ["chat", "csrf"])
def test_a_hosts_csrf_protection_spares_the_chat_and_keeps_its_own_forms(tmp_path: Path, first: str) -> None:
    app = bare(tmp_path)
    chat, csrf = FlaskChat(), CSRFProtect()
    for extension in (chat, csrf) if first == "chat" else (csrf, chat):
        extension.init_app(app)  # type: ignore[attr-defined]
    chat.model("parrot")(parrot)
    app.add_url_rule("/form", "form", lambda: "taken", methods=["POST"])
    with ChatClient(app) as client:
        assert client.ask("hello").text == "hello "
        assert client.client.post("/chat/runs/run_x/stop").status_code == 404
        assert client.client.post("/form").status_code == 400
        refused = client.client.post("/chat/conversation", json=send(), headers={"Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403, "what stands in for the token"


def test_requests_under_one_application_context_have_owners_of_their_own(tmp_path: Path) -> None:
    app = host(tmp_path)
    with app.app_context(), ChatClient(app) as one:  # as a host's tests do, for their database's sake
        two = ChatClient(app)
        reply = one.ask("mine")
        assert one.client.get(f"/chat/conversations/{reply.conversation_id}").status_code == 200
        assert two.client.get(f"/chat/conversations/{reply.conversation_id}").status_code == 404
        first, second = (c.client.get_cookie("flaskchat_owner", path="/chat") for c in (one, two))
        assert first is not None
        assert second is not None
        assert first.value != second.value


def test_a_model_runs_within_the_hosts_application_context(tmp_path: Path) -> None:
    from flask import current_app

    app = bare(tmp_path)
    FlaskChat(app).model("name")(lambda request: [current_app.name, " ", request.owner[:5]])
    with ChatClient(app) as client:
        assert client.ask("x").text == "host anon:"


def test_debug_mode_works_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    app = host(tmp_path)
    assert app.debug
    with ChatClient(app) as client:
        assert client.ask("a").text == "a "
        assert client.client.get("/chat/nowhere").json["code"] == "not_found"  # type: ignore[index]
        assert client.client.post("/chat/conversation", data="{").status_code == 415


def test_it_can_be_closed_and_used_again(tmp_path: Path) -> None:
    app = host(tmp_path)
    threads = threading.active_count()
    for _ in range(2):
        with ChatClient(app) as client:
            assert client.ask("a").text == "a "
        assert threading.active_count() == threads


def test_a_wrong_default_model_is_told_by_readyz(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = host(tmp_path, FLASKCHAT_MODEL="unheard-of")
    response = app.test_client().get("/chat/readyz")
    assert response.status_code == 503
    assert json.loads(response.data)["code"] == "not_ready"
    assert "unheard-of" not in response.text
    assert "FLASKCHAT_MODEL='unheard-of'" in caplog.text
    assert app.test_client().get("/chat/healthz").status_code == 200


def test_a_run_in_one_application_is_not_stopped_by_closing_another(tmp_path: Path) -> None:
    one, two = host(tmp_path / "1"), bare(tmp_path / "2")
    gate = Gate()
    FlaskChat(two).model("gate")(gate)
    with ChatClient(two) as second:
        with ChatClient(one) as first:
            first.ask("x")
            response = second.client.post("/chat/conversation", json=send(), buffered=False)
        gate.opened.set()
        assert b"then." in response.get_data()
        response.close()


def test_the_host_s_answers_vary_with_the_cookie_only_where_the_host_looks_at_it(tmp_path: Path) -> None:
    """Whoever looks for a sign-out in each answer must not make all of them private to a browser."""
    app = host(tmp_path)

    @app.get("/login")
    def login() -> str:
        session["user"] = "ada"
        return "in"

    @app.get("/news")
    def news() -> str:
        return "none"

    client = app.test_client()
    assert client.get("/login").headers["Vary"] == "Cookie"
    assert "Vary" not in client.get("/news").headers

"""The extension in a host's project: three lines, and nothing of the host's is in its way."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from flaskchat import ConfigurationError, FlaskChat, Request
from flaskchat.testing import ChatClient
from tests.conftest import ROOT
from tests.hosts import bare, host, parrot

# -- set-up ------------------------------------------------------------------------------------------------------------


def test_three_lines_give_a_project_a_chat(tmp_path: Path) -> None:
    app = Flask("project", instance_path=str(tmp_path))
    chat = FlaskChat(app)

    @chat.model("parrot")
    def parrot(request: Request) -> Iterator[str]:
        for word in request.text.split():
            yield word + " "

    with ChatClient(app) as client:
        reply = client.ask("hello you")
        assert (reply.text, reply.state) == ("hello you ", "done")
        page = client.client.get("/chat/")
        assert page.status_code == 200
        assert b"<flask-chat" in page.data


def test_an_application_factory_may_be_called_again(tmp_path: Path) -> None:
    chat = FlaskChat()

    def create_app(folder: Path) -> Flask:
        app = bare(folder)
        chat.init_app(app)

        @chat.model("parrot")
        def parrot(request: Request) -> Iterator[str]:
            yield request.text

        return app

    for name in ("a", "b"):
        with ChatClient(create_app(tmp_path / name)) as client:
            assert client.ask("hi").text == "hi"


@pytest.mark.parametrize("before", [True, False])
def test_a_model_may_be_registered_before_init_app_and_after(tmp_path: Path, before: bool) -> None:
    app, chat = bare(tmp_path), FlaskChat()
    if not before:
        chat.init_app(app)
    chat.model("parrot")(parrot)
    if before:
        chat.init_app(app)
    with ChatClient(app) as client:
        assert client.ask("a b").text == "a b "
        chat.model("later")(lambda request: ["late"])
        assert client.ask("x", model="later").text == "late"


def test_a_second_init_app_says_what_to_do(tmp_path: Path) -> None:
    app = host(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has a FlaskChat already.*DispatcherMiddleware|.*dispatcher"):
        FlaskChat(app)


def test_an_init_app_that_failed_can_be_repeated(tmp_path: Path) -> None:
    app = bare(tmp_path, FLASKCHAT_HEARTBEAT="often")
    with pytest.raises(ConfigurationError, match="FLASKCHAT_HEARTBEAT='often'"):
        FlaskChat(app)
    assert "flaskchat" not in app.extensions
    app.config["FLASKCHAT_HEARTBEAT"] = 5
    FlaskChat(app)
    assert app.extensions["flaskchat"].settings.heartbeat == 5.0


def test_an_unknown_key_is_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flaskchat"):
        host(tmp_path, FLASKCHAT_WORDS_PER_MINUTE=5)
    assert len(caplog.messages) == 1
    assert "FLASKCHAT_WORDS_PER_MINUTE" in caplog.text


@pytest.mark.parametrize(("drain", "warned"), [(4.9, False), (5, True), (60, True)])
def test_a_drain_that_gunicorn_would_cut_short_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, drain: float, *, warned: bool
) -> None:
    class Worker:
        alive = True
        cfg = SimpleNamespace(graceful_timeout=5, worker_connections=100)

        def handle_exit(self, *_: object) -> None:
            raise AssertionError("nobody sends it")

    before = signal.signal(signal.SIGTERM, Worker().handle_exit)  # as gunicorn does
    try:
        app = host(tmp_path, FLASKCHAT_DRAIN=drain)
        with caplog.at_level(logging.WARNING, "flaskchat"), ChatClient(app):
            app.extensions["flaskchat"].start()
    finally:
        signal.signal(signal.SIGTERM, before)
    told = [words for words in caplog.messages if "graceful_timeout of 5 s" in words]
    assert [words.partition(" ")[0] for words in told] == ([f"FLASKCHAT_DRAIN={drain:g}"] if warned else [])


def test_a_model_without_its_key_is_warned_about_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flaskchat"):
        FlaskChat(bare(tmp_path, FLASKCHAT_MODEL="openai:gpt-5"))
    assert len(caplog.messages) == 1
    assert "FLASKCHAT_OPENAI_API_KEY" in caplog.text


def test_the_worker_s_log_says_which_model_answers_and_that_its_name_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the chat is opened, because a Python model that is registered later would answer."""
    for name, models in (("a", {}), ("b", {"parrot": parrot})):
        app = bare(tmp_path / name, FLASKCHAT_OPENAI_BASE_URL="http://127.0.0.1:9/v1")
        chat = FlaskChat(app)
        for model, function in models.items():
            chat.model(model)(function)
        caplog.clear()
        with caplog.at_level(logging.INFO, "flaskchat"), ChatClient(app):
            app.extensions["flaskchat"].start()
        assert f"flaskchat answers with {'parrot' if models else 'openai:gpt-5-mini'}" in caplog.messages
        warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert ["FLASKCHAT_MODEL" in words for words in warned] == ([] if models else [True])


@pytest.mark.parametrize("url", ["nonsense", "sqlite//x", "postgresql://u:hunter2@h:port/d"])
def test_a_database_url_that_is_none_is_told_at_the_start_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="FLASKCHAT_DATABASE_URL=") as caught:
        host(tmp_path, FLASKCHAT_DATABASE_URL=url)
    assert "hunter2" not in str(caught.value)


def test_a_model_needs_a_name_a_name_of_its_own_and_a_plain_generator() -> None:
    chat = FlaskChat()
    with pytest.raises(ConfigurationError, match="expected letters"):
        chat.model(parrot)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected letters"):
        chat.model("a b")
    chat.model("parrot")(parrot)
    assert chat.model("parrot")(parrot) is parrot
    with pytest.raises(ConfigurationError, match="'parrot' is registered already"):
        chat.model("parrot")(lambda request: [])

    async def coroutine(request: Request) -> list[str]:
        return []

    async def generator(request: Request) -> Any:
        yield ""

    for function in (coroutine, generator):
        with pytest.raises(ConfigurationError, match="asynchronous"):
            chat.model("other")(function)  # type: ignore[arg-type]


def test_nothing_is_opened_by_an_import_or_by_init_app(tmp_path: Path) -> None:
    code = """
import sys, threading
import flask, sqlalchemy, jinja2, ssl, certifi, alembic, gunicorn  # what others do when they are imported is theirs
seen = []
def audit(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].endswith((".py", ".pyc")):
        return
    if event in ("open", "os.mkdir", "sqlite3.connect", "socket.__new__", "socket.connect", "socket.bind",
                 "_thread.start_new_thread", "subprocess.Popen", "os.fork", "ssl.SSLContext"):
        seen.append((event, args))
import flaskchat  # once, so that what its packages read (metadata and the like) is over
for name in [name for name in sys.modules if name.split(".")[0] == "flaskchat"]:
    del sys.modules[name]
sys.addaudithook(audit)
import flaskchat, flaskchat.testing
app = flask.Flask("x", instance_path=sys.argv[1])
app.config.update(FLASKCHAT_MODEL="openai:x", FLASKCHAT_OPENAI_API_KEY="k", FLASKCHAT_MODELS="anthropic:y")
chat = flaskchat.FlaskChat(app)
chat.model("parrot")(lambda request: [])
assert threading.active_count() == 1
assert seen == [], seen
"""
    folder = tmp_path / "instance"
    result = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", code, str(folder)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not folder.exists()


def test_state_is_on_the_application_and_shows_no_password(tmp_path: Path) -> None:
    url = "sqlite:////tmp/x?password=hunter2"
    app = host(tmp_path, FLASKCHAT_DATABASE_URL=url, FLASKCHAT_OPENAI_API_KEY="sk-secret")
    assert "hunter2" not in repr(app.extensions["flaskchat"])
    assert "sk-secret" not in repr(app.extensions["flaskchat"])


# -- two applications --------------------------------------------------------------------------------------------------


def test_two_applications_in_one_process_share_nothing(tmp_path: Path) -> None:
    first, second = host(tmp_path / "1"), bare(tmp_path / "2")
    FlaskChat(second).model("other")(lambda request: ["other"])
    with ChatClient(first) as one, ChatClient(second) as two:
        reply = one.ask("hello")
        assert two.ask("hello").text == "other"
        cookie = one.client.get_cookie("flaskchat_owner", path="/chat")
        assert cookie is not None
        two.client.set_cookie("flaskchat_owner", cookie.value)  # the same key signed it, and still
        assert two.client.get(f"/chat/conversations/{reply.conversation_id}").status_code == 404
        assert two.client.get(f"/chat/runs/{reply.run_id}/events").status_code == 404
        assert [item["id"] for item in two.client.get("/chat/models").json["items"]] == ["other"]
        assert [item["id"] for item in one.client.get("/chat/models").json["items"]] == ["parrot"]
        one_file = Path(first.instance_path, "flaskchat.sqlite3")
        assert one_file.exists()
        assert Path(second.instance_path, "flaskchat.sqlite3").exists()
        state = first.extensions["flaskchat"]
    assert state.lazy is not second.extensions["flaskchat"].lazy


def test_two_applications_beside_each_other_under_a_dispatcher(tmp_path: Path) -> None:
    outer, inner = host(tmp_path / "1"), host(tmp_path / "2", url_prefix="")
    client = Client(DispatcherMiddleware(outer, {"/inner": inner}))
    try:
        page = client.get("/inner/")
        assert b'endpoint="/inner"' in page.data
        assert "; Path=/inner" in page.headers["Set-Cookie"]
        assert b'endpoint="/chat"' in client.get("/chat/").data
        assert client.get("/inner/models").json["items"][0]["id"] == "parrot"
    finally:
        inner.extensions["flaskchat"].close()
        outer.extensions["flaskchat"].close()


# -- where it is mounted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "root"), [("/a/b", "/a/b"), ("", ""), ("/", ""), ("/talk/", "/talk")])
@pytest.mark.parametrize("by_argument", [True, False])
def test_the_prefix_comes_from_the_argument_or_the_setting(
    tmp_path: Path, prefix: str, root: str, by_argument: bool
) -> None:
    app = host(tmp_path, url_prefix=prefix) if by_argument else host(tmp_path, FLASKCHAT_URL_PREFIX=prefix)
    with ChatClient(app) as client:
        page = client.client.get(f"{root}/")
        assert f'endpoint="{root}"' in page.text
        assert f'src="{root}/assets/flaskchat.js"' in page.text
        assert client.ask("a").text == "a "
        assert client.client.get(f"{root}/c/c_x").status_code == 200


def test_the_argument_goes_before_the_setting_and_leaves_the_hosts_configuration_alone(tmp_path: Path) -> None:
    app = host(tmp_path, url_prefix="/talk", FLASKCHAT_URL_PREFIX="/chat")
    assert app.extensions["flaskchat"].settings.url_prefix == "/talk"
    assert app.config["FLASKCHAT_URL_PREFIX"] == "/chat"


def test_the_page_is_found_without_its_last_slash(tmp_path: Path) -> None:
    response = host(tmp_path).test_client().get("/chat")
    assert (response.status_code, response.location) == (308, "http://localhost/chat/")


def test_the_page_follows_script_name_and_a_proxys_prefix(tmp_path: Path) -> None:
    app = host(tmp_path)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1, x_host=1, x_proto=1)  # type: ignore[method-assign]
    headers = {"X-Forwarded-Prefix": "/site", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example"}
    page = app.test_client().get("/chat/", headers=headers)
    assert 'endpoint="/site/chat"' in page.text
    assert 'src="/site/chat/assets/flaskchat.js"' in page.text
    assert "Secure" in page.headers["Set-Cookie"]
    assert "Path=/site" in page.headers["Set-Cookie"]


def test_all_files_of_a_chat_are_their_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        app = host(tmp_path, SECRET_KEY=None)
        with ChatClient(app) as chat:
            chat.ask("hello")
            made = [tmp_path / "instance", *(tmp_path / "instance").rglob("*")]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made}
            expected = {path.name: 0o700 if path.is_dir() else 0o600 for path in made}
            assert modes == expected
            database = "flaskchat.sqlite3"
            assert {database, f"{database}-wal", f"{database}-places", "flaskchat.key"} <= modes.keys()
    finally:
        os.umask(before)

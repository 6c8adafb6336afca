"""The standalone application: what it reads from the environment, and which model it chooses."""

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flaskchat.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def wsgi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, imported with an environment of its own, and no model server on this host."""
    for name in list(os.environ):
        if name.startswith(("FLASKCHAT_", "OPENAI_", "ANTHROPIC_")) or name == "SECRET_KEY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLASKCHAT_DATA", str(tmp_path / "imported"))
    monkeypatch.setenv("FLASKCHAT_MODEL", "guide")
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop("wsgi", None)
    module = importlib.import_module("wsgi")
    monkeypatch.setattr(module, "discover", lambda timeout: None)
    yield module
    sys.modules.pop("wsgi", None)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"FLASKCHAT_DATA": str(tmp_path / "data")}


def test_the_module_has_the_application(wsgi: ModuleType) -> None:
    assert wsgi.app.extensions["flaskchat"]
    assert wsgi.app.test_client().get("/healthz").status_code == 200


def test_settings_are_taken_unchanged(wsgi: ModuleType, environ: dict[str, str]) -> None:
    app = wsgi.create_app({**environ, "FLASKCHAT_HEARTBEAT": "7", "FLASKCHAT_MODEL": "guide"})
    assert app.config["FLASKCHAT_HEARTBEAT"] == "7"
    assert app.extensions["flaskchat"].settings.heartbeat == 7.0


def test_who_asks_for_the_models_is_told_why_that_one_answers(wsgi: ModuleType, environ: dict[str, str]) -> None:
    for more, why in (({}, "no model is connected"), ({"OPENAI_API_KEY": "k"}, "OPENAI_API_KEY is set")):
        app = wsgi.create_app({**environ, **more})
        told = app.test_cli_runner().invoke(args=["chat", "models"]).output
        assert told.endswith(f", because {why}\n"), told


def test_a_wrong_setting_is_named(wsgi: ModuleType, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="FLASKCHAT_HEARTBEAT='often'"):
        wsgi.create_app({**environ, "FLASKCHAT_HEARTBEAT": "often"})
    with pytest.raises(ConfigurationError, match="FLASKCHAT_TRUSTED_PROXIES='yes'"):
        wsgi.create_app({**environ, "FLASKCHAT_TRUSTED_PROXIES": "yes"})


def test_the_data_folder_is_for_its_owner_alone(wsgi: ModuleType, tmp_path: Path) -> None:
    app = wsgi.create_app({"FLASKCHAT_DATA": str(tmp_path / "a" / "b")})
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert app.instance_path == str(tmp_path / "a" / "b")
    assert app.extensions["flaskchat"].database_url.endswith("/a/b/flaskchat.sqlite3")


def test_a_data_folder_that_cannot_be_is_named(wsgi: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="FLASKCHAT_DATA="):
        wsgi.create_app({"FLASKCHAT_DATA": str(tmp_path / "file")})


def test_making_the_application_opens_no_database(wsgi: ModuleType, environ: dict[str, str]) -> None:
    wsgi.create_app(environ)
    assert list(Path(environ["FLASKCHAT_DATA"]).iterdir()) == []


def test_the_usual_names_of_keys_are_understood_and_ours_go_first(wsgi: ModuleType) -> None:
    usual = {"OPENAI_API_KEY": "a", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "ANTHROPIC_API_KEY": "b", "OTHER": "c"}
    config = wsgi.configuration(usual)
    assert config == {
        "FLASKCHAT_OPENAI_API_KEY": "a",
        "FLASKCHAT_OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "FLASKCHAT_ANTHROPIC_API_KEY": "b",
        "FLASKCHAT_URL_PREFIX": "",
    }
    assert wsgi.configuration({**usual, "FLASKCHAT_OPENAI_API_KEY": ""})["FLASKCHAT_OPENAI_API_KEY"] == "a"
    assert wsgi.configuration({**usual, "FLASKCHAT_OPENAI_API_KEY": "ours"})["FLASKCHAT_OPENAI_API_KEY"] == "ours"


def test_its_own_variables_are_no_settings(wsgi: ModuleType, environ: dict[str, str]) -> None:
    own = {"FLASKCHAT_SECRET_KEY": "k", "FLASKCHAT_TRUSTED_PROXIES": "1", **environ}
    assert wsgi.configuration(own) == {"FLASKCHAT_URL_PREFIX": ""}
    assert wsgi.create_app({**own, "FLASKCHAT_MODEL": "guide"}).secret_key == "k"


def test_headers_of_a_proxy_are_believed_only_when_told_so(wsgi: ModuleType, environ: dict[str, str]) -> None:
    headers = {"X-Forwarded-For": "192.0.2.1, 10.9.8.7", "X-Forwarded-Proto": "ftp, https", "X-Forwarded-Host": "a, b"}

    def address(**more: str) -> tuple[str, str, str]:
        app = wsgi.create_app({**environ, **more})
        seen: list[Any] = []
        inner = app.wsgi_app

        def spy(env: dict[str, Any], start: Any) -> Any:
            return inner(env, start)

        @app.before_request
        def note() -> None:
            from flask import request

            seen.append((request.remote_addr, request.scheme, request.host))

        app.wsgi_app = spy
        app.test_client().get("/healthz", headers=headers)
        return seen[0]

    assert address() == ("127.0.0.1", "http", "localhost")
    assert address(FLASKCHAT_TRUSTED_PROXIES="1") == ("10.9.8.7", "https", "b")
    assert address(FLASKCHAT_TRUSTED_PROXIES="2") == ("192.0.2.1", "ftp", "a")


def test_the_proxy_s_word_says_who_it_is(wsgi: ModuleType, environ: dict[str, str]) -> None:
    more = {"FLASKCHAT_TRUSTED_PROXIES": "1", "FLASKCHAT_IDENTITY_HEADER": "X-Remote-User", "FLASKCHAT_MODEL": "guide"}
    client = wsgi.create_app({**environ, **more}).test_client()
    ada, bob = {"X-Remote-User": "ada"}, {"X-Remote-User": "bob"}
    asked = client.post("/conversation", json={"message": {"id": "q", "text": "Hi"}}, headers=ada)
    asked.close()
    assert asked.status_code == 200
    assert len(client.get("/conversations", headers=ada).json["items"]) == 1
    assert client.get("/conversations", headers=bob).json["items"] == []
    for nobody in ({}, {"X-Remote-User": ""}):
        assert client.get("/conversations", headers=nobody).status_code == 401
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"FLASKCHAT_IDENTITY_HEADER": "X-Remote-User"}, "anybody can send it"),
        ({"FLASKCHAT_IDENTITY_REQUIRED": "true"}, "nobody can sign in"),
    ],
)
def test_a_door_that_is_open_or_closed_for_everybody_is_refused(
    wsgi: ModuleType, environ: dict[str, str], more: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        wsgi.create_app({**environ, **more, "FLASKCHAT_MODEL": "guide"})


def test_a_model_that_is_set_answers_and_nothing_is_looked_for(
    wsgi: ModuleType, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "discover", lambda timeout: pytest.fail("looked for a model server"))
    for more, provider in [
        ({"FLASKCHAT_MODEL": "guide"}, "guide"),
        ({"FLASKCHAT_MODEL": "openai:x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "openai:x"),
        ({"OPENAI_API_KEY": "k"}, "openai:"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic:"),
        ({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}, "openai:"),
    ]:
        app = wsgi.create_app({**environ, **more})
        answering = app.extensions["flaskchat.answering"]
        assert answering.model.startswith(provider), more
        assert answering.why
        assert app.extensions["flaskchat"].registry.default().id == answering.model


def test_a_model_server_on_this_host_answers_where_no_key_is_set(
    wsgi: ModuleType, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        id, why, openai_base_url = "openai:tiny", "found at port 11434", "http://127.0.0.1:11434/v1"

    monkeypatch.setattr(wsgi, "discover", lambda timeout: Found())
    app = wsgi.create_app(environ)
    assert app.extensions["flaskchat.answering"].model == "openai:tiny"
    assert app.extensions["flaskchat"].registry.default().id == "openai:tiny"
    assert app.extensions["flaskchat"].settings.openai_base_url == "http://127.0.0.1:11434/v1"


def test_else_the_guide_answers(wsgi: ModuleType, environ: dict[str, str]) -> None:
    answering = wsgi.create_app(environ).extensions["flaskchat.answering"]
    assert answering.model == "guide"
    assert answering.why


def test_secrets_may_stand_in_files(wsgi: ModuleType, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-hunter2\n")
    (tmp_path / "session").write_text("signing\n")
    given = {**environ, "OPENAI_API_KEY_FILE": str(tmp_path / "key"), "SECRET_KEY_FILE": str(tmp_path / "session")}
    app = wsgi.create_app(given)
    assert app.extensions["flaskchat"].settings.openai_api_key == "sk-hunter2"
    assert app.secret_key == "signing"
    assert "hunter2" not in repr(app.extensions["flaskchat"])
    given["OPENAI_API_KEY"] = "sk-other"
    assert wsgi.create_app(given).extensions["flaskchat"].settings.openai_api_key == "sk-other"


def test_a_secret_s_file_that_is_not_there_is_named(wsgi: ModuleType, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="FLASKCHAT_ANTHROPIC_API_KEY_FILE='/nowhere': expected a file"):
        wsgi.create_app({**environ, "FLASKCHAT_ANTHROPIC_API_KEY_FILE": "/nowhere"})

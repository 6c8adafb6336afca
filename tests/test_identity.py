"""Whose a conversation is: the host's callable, Flask-Login, or a signed cookie; never what a client says."""

from __future__ import annotations

import multiprocessing
import re
import stat
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from flask import redirect, request, session, url_for
from itsdangerous import URLSafeTimedSerializer
from werkzeug.exceptions import HTTPException

from flaskchat import ConfigurationError, FlaskChat
from flaskchat.security import COOKIE, COOKIE_AGE, COOKIE_FRESH, KEY_FILE, _kept_key
from flaskchat.testing import ChatClient
from tests.conftest import ROOT
from tests.hosts import bare, host, parrot, send, visible


def cookie_of(client: Any) -> str:
    cookie = client.get_cookie(COOKIE, path="/chat")
    assert cookie is not None
    return str(cookie.value)


def serializer(key: Any, salt: str = "flaskchat.owner") -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(key, salt=salt)


# -- the cookie --------------------------------------------------------------------------------------------------------


def test_a_visitor_is_given_one_cookie_and_keeps_it(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        reply = chat.ask("a")
        cookie = cookie_of(chat.client)
        assert visible(chat, reply.conversation_id)
        assert "Set-Cookie" not in chat.client.get("/chat/conversations").headers
        assert cookie_of(chat.client) == cookie
        assert not visible(ChatClient(app), reply.conversation_id)


def test_the_page_gives_a_new_visitor_the_cookie_of_everything_after(tmp_path: Path) -> None:
    app = host(tmp_path)
    client = app.test_client()
    response = client.get("/chat/", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200, "any site may link to the page"
    assert "Set-Cookie" in response.headers
    assert "private" in response.headers["Cache-Control"]
    with ChatClient(app, client) as chat:
        assert "Set-Cookie" not in chat.client.get("/chat/models").headers


def test_the_cookie_is_for_this_site_and_not_for_scripts(tmp_path: Path) -> None:
    header = host(tmp_path).test_client().get("/chat/").headers["Set-Cookie"]
    name, *flags = header.split("; ")
    assert name.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/chat", f"Max-Age={COOKIE_AGE}"} <= set(flags)
    assert "Secure" not in flags, "plain http, as on one's own machine"
    assert "Domain" not in header


@pytest.mark.parametrize("how", ["https", "SESSION_COOKIE_SECURE"])
def test_the_cookie_is_secure_over_https_and_where_the_host_says_so(tmp_path: Path, how: str) -> None:
    app = host(tmp_path, SESSION_COOKIE_SECURE=how != "https")
    base_url = "https://h/" if how == "https" else None
    assert "; Secure" in app.test_client().get("/chat/", base_url=base_url).headers["Set-Cookie"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda good: "",
        lambda good: "me",
        # not the last character: some of its bits mean nothing
        lambda good: good[:-9] + ("A" if good[-9] != "A" else "B") + good[-8:],
        lambda good: good.replace(".", "", 1),
        lambda good: good.partition(".")[0],
        lambda good: good.partition(".")[0] + "..",
        lambda good: serializer("other key").dumps("victim"),
        lambda good: serializer("").dumps("victim"),
        lambda good: serializer("key", salt="cookie-session").dumps("victim"),
        lambda good: serializer("key").dumps({"owner": "victim"}),
        lambda good: serializer("key").dumps(["victim"]),
        lambda good: serializer("key").dumps(None),
        lambda good: serializer("key").dumps(5),
        lambda good: "ü\x00\xff" * 100,
        lambda good: "\ud800",
        lambda good: "." * 3000,
        lambda good: "W10=." * 500,
    ],
)
def test_a_forged_cookie_is_a_new_visitor(tmp_path: Path, forge: Any) -> None:
    app = host(tmp_path)
    with ChatClient(app) as victim:
        reply = victim.ask("secret")
        forged = forge(cookie_of(victim.client))
        raw = f"{COOKIE}={forged}".encode("utf-8", "surrogatepass").decode("latin-1")
        for path, status in ((f"/chat/conversations/{reply.conversation_id}", 404), ("/chat/conversations", 200)):
            response = app.test_client(use_cookies=False).get(path, environ_overrides={"HTTP_COOKIE": raw})
            assert response.status_code == status
            assert b"secret" not in response.data
            assert COOKIE in response.headers["Set-Cookie"]


def test_the_owner_is_never_taken_from_the_client(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as victim:
        reply = victim.ask("secret")
        state = app.extensions["flaskchat"]
        owner = state.runtime.store.run(reply.run_id, None).owner
        assert owner.startswith("anon:")
        thief = ChatClient(app)
        body = {**send(client_id="x"), "owner": owner, "user": owner, "conversation_id": reply.conversation_id}
        headers = {"X-User": owner, "X-Owner": owner, "Authorization": f"Bearer {owner}", "X-Forwarded-User": owner}
        path = f"/chat/conversation?owner={owner}"
        assert thief.client.post(path, json=body, headers=headers).status_code == 404
        assert thief.client.post(path, json={**body, "conversation_id": None}, headers=headers).status_code == 200
        listed = victim.client.get("/chat/conversations").json
        assert listed is not None
        assert len(listed["items"]) == 1


def test_another_applications_cookie_is_a_new_visitor(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path, SECRET_KEY="one")) as one:
        reply = one.ask("a")
        stranger = ChatClient(host(tmp_path, SECRET_KEY="two"))  # even with the same database
        stranger.client.set_cookie(COOKIE, cookie_of(one.client), path="/chat")
        with stranger:
            assert not visible(stranger, reply.conversation_id)


def test_a_cookie_survives_the_rotation_of_the_key_and_is_then_signed_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatClient(host(tmp_path, SECRET_KEY="old")) as before:
        reply = before.ask("a")
    client = host(tmp_path, SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old", "older"]).test_client()
    client.set_cookie(COOKIE, cookie_of(before.client), path="/chat")
    with ChatClient(client.application, client) as during:
        assert visible(during, reply.conversation_id)
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + COOKIE_FRESH + 60)
        assert visible(during, reply.conversation_id)
        monkeypatch.undo()
    renewed = cookie_of(during.client)
    assert renewed != cookie_of(before.client)
    client = host(tmp_path, SECRET_KEY="new").test_client()
    client.set_cookie(COOKIE, renewed, path="/chat")
    with ChatClient(client.application, client) as after:
        assert visible(after, reply.conversation_id), "although it is signed in what is the future now"
        assert cookie_of(client) != renewed, "and it is signed anew, because its time means nothing"


def test_a_secret_key_that_comes_after_init_app_is_used(tmp_path: Path) -> None:
    app = host(tmp_path, SECRET_KEY=None)
    app.secret_key = b"later"
    client = app.test_client()
    client.get("/chat/")
    assert isinstance(serializer(b"later").loads(cookie_of(client)), str)
    assert not (tmp_path / "instance" / KEY_FILE).exists()


def test_without_a_secret_key_one_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    with ChatClient(host(tmp_path, SECRET_KEY=None)) as chat:
        reply = chat.ask("a")
    kept = tmp_path / "instance" / KEY_FILE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert len(kept.read_text()) >= 32
    assert [path.name for path in kept.parent.glob("*.key*")] == [KEY_FILE], "no draft is left"
    client = host(tmp_path, SECRET_KEY=None).test_client()  # after a restart
    client.set_cookie(COOKIE, cookie_of(chat.client), path="/chat")
    with ChatClient(client.application, client) as again:
        assert visible(again, reply.conversation_id)


def test_that_a_key_was_made_is_said_once_and_one_that_others_can_read_is_taken_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flaskchat")
    kept = tmp_path / "instance" / KEY_FILE
    host(tmp_path, SECRET_KEY=None).test_client().get("/chat/")
    assert caplog.messages == [f"SECRET_KEY is not set: a key was made, and is kept in {kept}"]
    kept.chmod(0o644)
    host(tmp_path, SECRET_KEY=None).test_client().get("/chat/")
    assert "readable by others" in caplog.messages[1]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text() not in caplog.text


def _key(path: str, barrier: Any, queue: Any) -> None:
    barrier.wait()
    queue.put(_kept_key(Path(path)))


def test_many_workers_at_once_keep_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(6), context.Queue()
    path = str(tmp_path / "new" / "folder" / KEY_FILE)
    workers = [context.Process(target=_key, args=(path, barrier, queue)) for _ in range(6)]
    for worker in workers:
        worker.start()
    keys = {queue.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert keys == {Path(path).read_bytes()}
    assert len(list(Path(path).parent.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b" " * 64])
def test_a_kept_key_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no key"):
        host(tmp_path, SECRET_KEY=None).test_client().get("/chat/")


def test_where_no_key_can_be_kept_the_error_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "instance").write_text("a file")
    with pytest.raises(ConfigurationError, match="SECRET_KEY is not set, and none can be kept in"):
        host(tmp_path, SECRET_KEY=None).test_client().get("/chat/")


def test_anonymous_visitors_are_refused_where_the_host_says_so(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_IDENTITY_REQUIRED="true")
    client = app.test_client()
    requests = [("POST", "/conversation"), ("POST", "/runs/run_x/stop")]
    requests += [("GET", path) for path in ("/", "/conversations", "/conversations/c_x", "/models", "/runs/r/events")]
    for method, path in requests:
        response = client.open(f"/chat{path}", method=method, json=send() if method == "POST" else None)
        assert (response.status_code, response.content_type) == (401, "application/problem+json"), path
        assert response.json is not None
        assert response.json["code"] == "unauthorized"
        assert "Set-Cookie" not in response.headers
    assert client.get("/chat/healthz").status_code == 200
    app.extensions["flaskchat"].close()


# -- the host's callable -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("ada", "user:ada"),
        (7, "user:7"),
        (0, "user:0"),
        (uuid.UUID(int=1), f"user:{uuid.UUID(int=1)}"),
        ("anon:x", "user:anon:x"),
        (" ", "user: "),
        ("名前", "user:名前"),
    ],
)
def test_the_callable_names_the_owner(tmp_path: Path, user: object, owner: str) -> None:
    app = host(tmp_path, identity=lambda: user)
    with ChatClient(app) as chat:
        reply = chat.ask("a")
        assert app.extensions["flaskchat"].runtime.store.run(reply.run_id, None).owner == owner
        assert visible(ChatClient(app), reply.conversation_id), "on another device, too"
        assert chat.client.get_cookie(COOKIE, path="/chat") is None


@pytest.mark.parametrize("nobody", [None, "", False])
def test_nobody_is_refused_and_never_an_owner_of_all(tmp_path: Path, nobody: object) -> None:
    client = host(tmp_path, identity=lambda: nobody).test_client()
    response = client.post("/chat/conversation", json=send())
    assert (response.status_code, response.json["code"]) == (401, "unauthorized")  # type: ignore[index]
    assert client.get("/chat/").status_code == 401


class Person:
    id = 5


class Named(Person):
    def __str__(self) -> str:
        return "ada"


@pytest.mark.parametrize("wrong", [Person(), True, object(), ["ada"], {"id": 1}, 1.0, ("ada",), "x" * 300])
def test_what_is_no_id_is_refused_in_words_for_the_developer(tmp_path: Path, wrong: object) -> None:
    client = host(tmp_path, identity=lambda: wrong).test_client()
    with pytest.raises(ConfigurationError, match=r"expected the user's id|expected at most 245"):
        client.get("/chat/models")


def test_an_object_with_a_text_of_its_own_is_that_text(tmp_path: Path) -> None:
    app = host(tmp_path, identity=Named)
    with ChatClient(app) as chat:
        reply = chat.ask("a")
        assert app.extensions["flaskchat"].runtime.store.run(reply.run_id, None).owner == "user:ada"


def test_the_callable_sees_the_request_and_the_session(tmp_path: Path) -> None:
    app = bare(tmp_path)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["user"] = name
        return "in"

    FlaskChat(app, identity=lambda: session.get("user")).model("parrot")(parrot)
    with ChatClient(app) as ada:
        assert ada.client.get("/chat/models").status_code == 401
        ada.client.get("/login/ada")
        reply = ada.ask("a")
        assert visible(ada, reply.conversation_id)
        ada.client.get("/login/bob")
        assert not visible(ada, reply.conversation_id)
        assert ada.client.get(f"/chat/runs/{reply.run_id}/events").status_code == 404


def test_the_callable_may_refuse_in_its_own_words(tmp_path: Path) -> None:
    def to_login() -> None:
        raise HTTPException(response=redirect("/login"))  # type: ignore[arg-type]

    response = host(tmp_path, identity=to_login).test_client().get("/chat/")
    assert (response.status_code, response.location) == (302, "/login")


def test_the_page_leads_to_the_hosts_sign_in_with_the_lines_that_the_documentation_gives(tmp_path: Path) -> None:
    app = bare(tmp_path)
    app.add_url_rule("/sign-in", "sign_in", lambda: "who are you?")
    FlaskChat(app, identity=lambda: session.get("user_id"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"^```python\n(@app\.before_request\n.*?)^```", text, re.M | re.S)
    assert lines is not None
    exec(lines[1], {"app": app, "redirect": redirect, "request": request, "session": session, "url_for": url_for})
    client = app.test_client()
    for path in ("/chat/", "/chat/c/c_1"):
        page = client.get(path)
        assert page.status_code == 302
        assert page.location.startswith("/sign-in?next=")
    assert client.get("/chat/models").status_code == 401, "a program is told so"
    with client.session_transaction() as signed_in:
        signed_in["user_id"] = "ada"
    for path in ("/chat/", "/chat/c/c_1", "/chat/models"):
        assert client.get(path).status_code == 200

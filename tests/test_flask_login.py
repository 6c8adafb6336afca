"""Flask-Login's current user as the owner of conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user

from flaskchat import FlaskChat
from flaskchat.security import COOKIE
from flaskchat.testing import ChatClient
from tests.hosts import bare, parrot, visible


class User(UserMixin):
    def __init__(self, user_id: str) -> None:
        self.id = user_id


@pytest.fixture(params=["before", "after"])
def login_app(tmp_path: Path, request: pytest.FixtureRequest) -> Flask:
    """A host with Flask-Login, set up before or after the chat."""
    app = bare(tmp_path)
    manager = LoginManager()
    manager.user_loader(User)
    if request.param == "before":
        manager.init_app(app)
    FlaskChat(app).model("parrot")(parrot)
    if request.param == "after":
        manager.init_app(app)

    @app.get("/login/<user_id>")
    def login(user_id: str) -> str:
        login_user(User(user_id))
        return str(current_user.get_id())

    @app.get("/logout")
    def logout() -> str:
        logout_user()
        return "out"

    return app


def test_the_current_user_of_flask_login_owns_the_conversations(login_app: Flask) -> None:
    with ChatClient(login_app) as ada:
        ada.client.get("/login/ada")
        reply = ada.ask("a")
        assert login_app.extensions["flaskchat"].runtime.store.run(reply.run_id, None).owner == "user:ada"
        assert ada.client.get_cookie(COOKIE, path="/chat") is None
        phone = ChatClient(login_app)
        phone.client.get("/login/ada")
        assert visible(phone, reply.conversation_id)
        ada.client.get("/logout")
        assert not visible(ada, reply.conversation_id)
        bob = ChatClient(login_app)
        bob.client.get("/login/bob")
        assert not visible(bob, reply.conversation_id)


def test_a_visitor_who_is_not_signed_in_is_known_by_the_cookie(login_app: Flask) -> None:
    with ChatClient(login_app) as chat:
        reply = chat.ask("a")
        assert login_app.extensions["flaskchat"].runtime.store.run(reply.run_id, None).owner.startswith("anon:")
        assert visible(chat, reply.conversation_id)


@pytest.mark.parametrize("login_view", [None, "sign_in"])
def test_the_page_leads_to_the_hosts_sign_in_where_somebody_must_be(tmp_path: Path, login_view: str | None) -> None:
    app = bare(tmp_path, FLASKCHAT_IDENTITY_REQUIRED=True)
    app.add_url_rule("/sign-in", "sign_in", lambda: "who are you?")
    manager = LoginManager(app)
    manager.user_loader(User)
    manager.login_view = login_view
    FlaskChat(app)
    client = app.test_client()
    page = client.get("/chat/c/c_1")
    if login_view is None:
        assert (page.status_code, page.content_type) == (401, "application/problem+json")
    else:
        assert (page.status_code, page.location) == (302, "/sign-in?next=%2Fchat%2Fc%2Fc_1")
    assert client.get("/chat/models").status_code == 401, "a program is told so"

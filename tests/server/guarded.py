"""A host whose users can be signed out, deleted and have their right taken away: `tests.server.guarded:app`.

GUARDED says how it knows them: `login` (Flask-Login), `session` (a callable that reads Flask's session), `g` (a
function before each request puts the user into `g`, as in Flask's tutorial) or `header` (a token that somebody else
checks).
"""

import os
from pathlib import Path

from flask import g, request, session
from flask_login import LoginManager, UserMixin, login_user, logout_user

os.environ.setdefault("SECRET_KEY", "for tests")

from tests.server.app import app, chat

KIND = os.environ.get("GUARDED", "login")
FOLDER = Path(os.environ["TEST_INSTANCE"]).parent
"""Users are files here, so that all workers see at once what becomes of them."""


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def known(name: str | None) -> str | None:
    return name if name and (FOLDER / f"user-{name}").exists() else None


if KIND == "login":
    manager = LoginManager(app)
    manager.user_loader(lambda name: User(name) if known(name) else None)


@app.before_request
def load_user() -> None:
    g.user = known(session.get("user"))


IDENTITY = {
    "session": lambda: known(session.get("user")),
    "g": lambda: g.user,
    "header": lambda: known(request.headers.get("X-Token")),
}
if KIND in IDENTITY:
    app.extensions["flaskchat"].identity._callback = IDENTITY[KIND]


@app.get("/login/<name>")
def login(name: str) -> str:
    (FOLDER / f"user-{name}").touch()
    if KIND == "login":
        login_user(User(name), remember=True)
    else:
        session["user"] = name
    return "in"


@app.get("/logout")
def logout() -> str:
    if KIND == "login":
        logout_user()
    else:
        session.clear()
    return "out"


@app.get("/gone/<name>")
def gone(name: str) -> str:
    (FOLDER / f"user-{name}").unlink()
    return "gone"


@app.get("/revoke/<name>")
def revoke(name: str) -> str:
    chat.sign_out(name)
    return "told"

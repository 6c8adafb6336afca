"""Who is asking, whether from our own pages, and what every answer carries.

Gets the request as an argument; the views are the only modules that touch `flask.request`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Request
from itsdangerous import BadData, URLSafeTimedSerializer

from .errors import ConfigurationError, CrossOrigin, Unauthorized

COOKIE = "flaskchat_owner"
COOKIE_AGE = 400 * 24 * 3600
"""Seconds; the longest that browsers keep one (RFC 6265bis, section 5.6)."""
COOKIE_FRESH = 30 * 24 * 3600
"""Seconds after which it is signed anew, with the newest key and for another COOKIE_AGE."""
KEY_FILE = "flaskchat.key"
LONGEST_OWNER = 250
"""Characters of an owner; what the tables hold is 255."""

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}


def check_origin(request: Request) -> None:
    """Refuse what another site's page asks for. Programs that are no browsers send neither header and pass.

    :raises CrossOrigin:
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise CrossOrigin("Only this site's own pages may ask for this.")
        return
    origin = request.headers.get("Origin")
    if origin is not None:
        host = origin.partition("://")[2]  # empty for "null", which is whoever hides where it comes from
        if not host or host != request.host:
            raise CrossOrigin("Only this site's own pages may ask for this.")


class Identity:
    """Resolves the owner of a request, as a string, in this order: the host's callable, Flask-Login, a cookie."""

    def __init__(self, app: Flask, callback: Callable[[], object] | None, *, required: bool) -> None:
        """:param callback: returns the signed-in user's id, or None for nobody.
        :param required: whether a visitor without one is refused.
        """
        self._app = app
        self._callback = callback
        self._required = required
        self._key: bytes | None = None

    def resolve(self, request: Request) -> tuple[str, str | None]:
        """:returns: the owner, and the cookie to be set where it is new or has grown old.
        :raises Unauthorized: nobody is signed in, and somebody must be.
        :raises ConfigurationError: the callable returned what identifies nobody; no key can be kept.
        """
        if self._callback is not None:
            return _owner(self._callback()), None
        user = self._flask_login()
        if user is not None:
            return _owner(user), None
        if self._required:
            raise Unauthorized("Sign in to use the chat.")
        serializer = URLSafeTimedSerializer(self._keys(), salt="flaskchat.owner")
        with contextlib.suppress(BadData):
            # Without `max_age`: it would take a clock that was set back for a forgery. Browsers let go by themselves.
            value, signed = serializer.loads(request.cookies.get(COOKIE, ""), return_timestamp=True)
            if isinstance(value, str):
                fresh = 0 <= time.time() - signed.timestamp() <= COOKIE_FRESH
                return f"anon:{value}", None if fresh else str(serializer.dumps(value))
        value = secrets.token_urlsafe(16)
        return f"anon:{value}", str(serializer.dumps(value))

    def _flask_login(self) -> object | None:
        if not hasattr(self._app, "login_manager"):
            return None
        from flask_login import current_user

        return current_user.get_id() if current_user.is_authenticated else None

    def _keys(self) -> list[Any]:
        """The host's SECRET_KEY and its fallbacks, the newest last; without one, a key kept in the instance folder."""
        if self._app.secret_key:
            return [*(self._app.config.get("SECRET_KEY_FALLBACKS") or ()), self._app.secret_key]
        if self._key is None:
            self._key = _kept_key(Path(self._app.instance_path) / KEY_FILE)
        return [self._key]


def _owner(user: object) -> str:
    """The owner that a user's id stands for.

    `None`, `False` and an empty text are nobody: `lambda: session.get("user", "")` must not make one owner of all
    visitors. An object without a text of its own would be one by its address in memory, another one's tomorrow.

    :raises Unauthorized: it is nobody.
    :raises ConfigurationError: it is no id.
    """
    if user is None or user is False or user == "":
        raise Unauthorized("Sign in to use the chat.")
    kind = user.__class__  # of what a proxy such as `current_user` stands for
    if user is True or not (issubclass(kind, str | int) or kind.__str__ is not object.__str__):
        raise ConfigurationError(
            f"the identity callable returned {kind.__name__}: expected the user's id, as text or a whole number, "
            "or None for nobody"
        )
    owner = f"user:{user}"
    if len(owner) > LONGEST_OWNER:
        raise ConfigurationError(f"the user's id has {len(owner) - 5} characters: expected at most 245")
    return owner


def _kept_key(path: Path) -> bytes:
    """Several workers may come here at once: the first to link its file wins, and all read that one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"SECRET_KEY is not set, and none can be kept in {str(path)!r}: {error}") from error
    if len(key) < 32:  # with an empty key anybody could sign
        raise ConfigurationError(f"{str(path)!r} holds no key: delete it, and one is made, or set SECRET_KEY")
    return key

"""Who is asking, whether from our own pages, and what every answer carries.

Gets the request as an argument; the views are the only modules that touch `flask.request`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Request
from itsdangerous import BadSignature, URLSafeSerializer

from .errors import ConfigurationError, CrossOrigin, Unauthorized

COOKIE = "flaskchat_owner"
COOKIE_AGE = 400 * 24 * 3600
"""Seconds; the longest that browsers keep one (RFC 6265bis, section 5.6)."""
KEY_FILE = "flaskchat.key"

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
    "Cache-Control": "no-cache",
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
    if origin is not None and origin.partition("://")[2] != request.host:
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
        self._key: str | None = None

    def resolve(self, request: Request) -> tuple[str, str | None]:
        """:returns: the owner, and the cookie to be set where it is new.
        :raises Unauthorized: nobody is signed in, and somebody must be.
        """
        if self._callback is not None:
            user = self._callback()
            if user is None:
                raise Unauthorized("Sign in to use the chat.")
            return f"user:{user}", None
        user = self._flask_login()
        if user is not None:
            return f"user:{user}", None
        if self._required:
            raise Unauthorized("Sign in to use the chat.")
        serializer = URLSafeSerializer(self._keys(), salt="flaskchat.owner")
        with contextlib.suppress(BadSignature):
            value = serializer.loads(request.cookies.get(COOKIE, ""))
            if isinstance(value, str):
                return f"anon:{value}", None
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


def _kept_key(path: Path) -> str:
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
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(f"SECRET_KEY is not set, and none can be kept in {str(path)!r}: {error}") from error

"""Who is asking, whether from our own pages, and what every answer carries.

Gets the request as an argument; the views are the only modules that touch `flask.request`.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flask import Flask, Request
from flask.sessions import SecureCookieSession, SessionMixin
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.exceptions import HTTPException

from .errors import ConfigurationError, CrossOrigin, Unauthorized

logger = logging.getLogger("flaskchat")

COOKIE = "flaskchat_owner"
COOKIE_AGE = 400 * 24 * 3600
"""Seconds; the longest that browsers keep one (RFC 6265bis, section 5.6)."""
COOKIE_FRESH = 30 * 24 * 3600
"""Seconds after which it is signed anew, with the newest key and for another COOKIE_AGE."""
KEY_FILE = "flaskchat.key"
USER = "user:"
"""How the owner begins that a signed-in user is."""
NOT_KEPT = frozenset({"wsgi.input", "gunicorn.socket", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "wsgi.file_wrapper"})
"""Of a request that is over: its body, and its connection."""
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
        self._preprocess: bool | None = None
        """Whether the functions before a request must run to find out who it is; None while that is not known."""
        self._warned = False

    def resolve(self, request: Request) -> tuple[str, str | None]:
        """:returns: the owner, and the cookie to be set where it is new or has grown old.
        :raises Unauthorized: nobody is signed in, and somebody must be.
        :raises ConfigurationError: the callable returned what identifies nobody; no key can be kept.
        """
        user = self.user()
        if user is not None:
            return user, None
        if self._required or self._callback is not None:
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

    def user(self) -> str | None:
        """The owner that the signed-in user is; None for nobody. Within a request.

        :raises ConfigurationError: the callable returned what identifies nobody.
        """
        found = self._callback() if self._callback is not None else self._flask_login()
        return None if nobody(found) else owner_of(found)

    # -- asking again, outside of the request ----------------------------------------------------------------------

    def credentials(self, environ: Mapping[str, Any], owner: str) -> dict[str, Any] | None:
        """What a request brought, to find out again later whose it would be; None where that cannot change.

        The first time, it is tried out what a host's identity needs: nothing but the request, or that the functions
        before a request have run as well, because one of them puts the user into `g`.
        """
        if not owner.startswith(USER):
            return None
        kept = {name: environ[name] for name in environ.keys() - NOT_KEPT if not name.startswith("werkzeug.")}
        if self._preprocess is None:
            self._preprocess = next((way for way in (False, True) if self._try_out(kept, way) == owner), None)
            if self._preprocess is None and not self._warned:
                self._warned = True
                logger.warning(
                    "who a user is cannot be found out a second time for the same request, so their streams are not "
                    "checked while they live; call FlaskChat.sign_out when somebody signs out or is deleted"
                )
        return None if self._preprocess is None else kept

    def _try_out(self, environ: Mapping[str, Any], preprocess: bool) -> str | None:
        try:
            return self.user_of(environ, preprocess)
        except Exception:
            return None  # there is no `g.user`, say

    def still(self, environ: Mapping[str, Any], owner: str) -> bool:
        """Whether a request that brings what this one brought is still this owner's. Whatever it raises, it is not
        known.
        """
        return self.user_of(environ, bool(self._preprocess)) == owner

    def user_of(
        self, environ: Mapping[str, Any], preprocess: bool | None = None, session: SessionMixin | None = None
    ) -> str | None:
        """As `user`, for a request that is over, or as it would be anew.

        :param session: in place of the one that the request brought.
        """
        before = bool(self._preprocess) if preprocess is None else preprocess
        # In a context of its own: where a test or a request holds an application's context, `g` would be shared.
        return contextvars.Context().run(self._user_of, environ, before, session)

    def _user_of(self, environ: Mapping[str, Any], preprocess: bool, session: SessionMixin | None) -> str | None:
        context = self._app.request_context({**environ, "wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"})
        if session is not None:
            setattr(context, "_session" if hasattr(context, "_session") else "session", session)  # Flask 3.2 or 3.1
        with context:
            try:
                if preprocess and self._app.preprocess_request() is not None:
                    return None  # a function before the request answers in its place: with the way to the login, say
                return self.user()
            except (Unauthorized, HTTPException):
                return None

    def left(self, environ: Mapping[str, Any], session: SessionMixin) -> str | None:
        """Who was signed in when the request that is being served came, and is not any more.

        :param session: as it is now.
        """
        before = self.user_of(environ)
        if before is None:
            return None
        # Anew, since what the host has put into `g` in this request is from before it signed anybody out.
        # With a copy: Flask-Login may write into it whom it remembers, and would sign in again who has just left.
        if self.user_of(environ, session=SecureCookieSession(dict(session))) != before:
            return before
        # And as it is now, since a cookie that remembers (Flask-Login's) is among what the request brought.
        try:
            return None if self.user() == before else before
        except (Unauthorized, HTTPException):
            return before

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


def nobody(user: object) -> bool:
    return user is None or user is False or user == ""


def owner_of(user: object) -> str:
    """The owner that a user's id stands for.

    `None`, `False` and an empty text are nobody: `lambda: session.get("user", "")` must not make one owner of all
    visitors. An object without a text of its own would be one by its address in memory, another one's tomorrow.

    :raises Unauthorized: it is nobody.
    :raises ConfigurationError: it is no id.
    """
    if nobody(user):
        raise Unauthorized("Sign in to use the chat.")
    kind = user.__class__  # of what a proxy such as `current_user` stands for
    if user is True or not (issubclass(kind, str | int) or kind.__str__ is not object.__str__):
        raise ConfigurationError(
            f"the identity callable returned {kind.__name__}: expected the user's id, as text or a whole number, "
            "or None for nobody"
        )
    owner = f"{USER}{user}"
    if len(owner) > LONGEST_OWNER:
        raise ConfigurationError(f"the user's id has {len(owner) - 5} characters: expected at most 245")
    if "\0" in owner:
        raise ConfigurationError("the user's id has a NUL character in it, which no database is asked for")
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
                logger.info("SECRET_KEY is not set: a key was made, and is kept in %s", path)
            draft.unlink()
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
            logger.warning("%s was readable by others; it is its owner's alone now. Delete it to have another", path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"SECRET_KEY is not set, and none can be kept in {str(path)!r}: {error}") from error
    if len(key) < 32:  # with an empty key anybody could sign
        raise ConfigurationError(f"{str(path)!r} holds no key: delete it, and one is made, or set SECRET_KEY")
    return key

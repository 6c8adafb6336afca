"""What all views share: the owner of a request, its body, its socket, and errors as problem+json."""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, got_request_exception, request
from flask.globals import app_ctx, request_ctx
from flask.sessions import SessionMixin
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    MethodNotAllowed,
    RequestEntityTooLarge,
    default_exceptions,
)

from .. import metrics
from ..errors import BadRequest, BodyTooLarge, NotFound, NotJSON, RequestError, TooSlow
from ..limits import Visitor, network
from ..security import COOKIE, COOKIE_AGE, check_origin
from ..state import current_state

logger = logging.getLogger("flaskchat")

BLUEPRINT = "flaskchat"
OWNER, FRESH_COOKIE = "flaskchat.owner", "flaskchat.cookie"
"""Keys of the WSGI environment. Not `flask.g`: where a test holds an application context, its requests share that."""


def make(url_prefix: str) -> Blueprint:
    blueprint = Blueprint(
        BLUEPRINT,
        "flaskchat",
        url_prefix=url_prefix or None,
        template_folder="templates",
        static_folder="static",
        static_url_path="/assets",
    )
    blueprint.register_error_handler(RequestError, problem)
    blueprint.register_error_handler(HTTPException, http_problem)
    for status in default_exceptions:  # each by itself, else a host's page for 404 would come before ours
        blueprint.register_error_handler(status, http_problem)
    blueprint.register_error_handler(Exception, unexpected)
    blueprint.before_app_request(unrouted)
    blueprint.url_value_preprocessor(exempt_from_csrf)
    blueprint.url_value_preprocessor(refuse_nul)
    blueprint.after_request(remember)
    blueprint.after_app_request(notice_sign_out)
    return blueprint


def refuse_nul(_endpoint: str | None, values: dict[str, Any] | None) -> None:
    """No id of ours has a NUL, and PostgreSQL takes none even in a question.

    :raises NotFound: as for any id that is not known.
    """
    if any("\0" in value for value in (values or {}).values() if isinstance(value, str)):
        raise NotFound("There is no such address.")


def unrouted() -> Any:
    """No route of ours fits, so no blueprint's error handler is asked either: a wrong method, an unknown path below us.

    What is not below our prefix, or fits a route of the host's, is left to the host.
    """
    error = request.routing_exception
    if error is None or error.code is None or error.code < 400:
        return None
    if isinstance(error, MethodNotAllowed):
        if not any(_ours(method) for method in error.valid_methods or ()):
            return None
    else:
        prefix = current_state().settings.url_prefix
        if not prefix or not f"{request.path}/".startswith(f"{prefix}/"):
            return None
    return http_problem(error)


def _ours(method: str) -> bool:
    """Whether the path would be a route of ours, asked with another method."""
    adapter = current_app.create_url_adapter(request)
    try:
        return adapter is not None and adapter.match(method=method)[0].startswith(BLUEPRINT + ".")
    except HTTPException:
        return False


def exempt_from_csrf(endpoint: str | None, values: dict[str, Any] | None) -> None:
    """Spare our routes Flask-WTF's CSRFProtect, where the host has it: `check_origin` refuses every other site's
    requests, and ours are JSON, without a form's token.

    Here, because these functions run before those of `before_request`, whatever the order of set-up was.
    """
    csrf = current_app.extensions.get("csrf")
    if csrf is not None and hasattr(csrf, "exempt"):
        csrf.exempt(current_app.blueprints[BLUEPRINT])


def json(body: object, status: int = 200, content_type: str = "application/json") -> Response:
    response = Response(msgspec.json.encode(body), status, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def problem(error: RequestError) -> Response:
    if error.status in (429, 503):
        count_refusal(error)
    response = json(error.problem(), error.status, "application/problem+json")
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return response


def count_refusal(error: RequestError) -> None:
    runtime = current_state().lazy.opened
    if runtime is not None:
        runtime.metrics.add(metrics.REFUSED, error.problem_code)


def http_problem(error: HTTPException) -> Any:
    """Flask's own refusals (405 and the like) in the shape of ours."""
    if error.code is None or error.response is not None or error.code < 400:
        return error
    name = "body_too_large" if error.code == 413 else (error.name or "error").lower().replace(" ", "_")
    response = document(error.code, error.name, error.description or error.name, name)
    for key, value in error.get_headers():
        if key.lower() not in ("content-type", "content-length"):
            response.headers[key] = value
    return response


def document(status: int, title: str, detail: str, code: str) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return json(body, status, "application/problem+json")


def unexpected(error: Exception) -> Response:
    """A fault of ours: its stack for the operator, one sentence for the user."""
    propagate = current_app.config["PROPAGATE_EXCEPTIONS"]
    if propagate or (propagate is None and (current_app.testing or current_app.debug)):
        raise error
    # As Flask does for the faults that it handles itself: error trackers listen to it.
    got_request_exception.send(current_app._get_current_object(), exception=error)  # type: ignore[attr-defined]
    logger.exception("%s %s failed", request.method, request.path)
    return document(500, "Internal error", "Something went wrong here. It has been logged.", "internal_error")


def owner() -> str:
    """Whose request this is, from our own pages or from a program; resolved once.

    :raises CrossOrigin, Unauthorized:
    """
    if OWNER not in request.environ:
        check_origin(request)
        identify()
    found: str = request.environ[OWNER]
    return found


def identify() -> None:
    """Resolve the owner without a look at where the request comes from: for pages, to which any site may link.

    :raises Unauthorized:
    """
    request.environ[OWNER], request.environ[FRESH_COOKIE] = current_state().identity.resolve(request)


def remember(response: Response) -> Response:
    """Give a visitor who is new the cookie that makes the conversations theirs."""
    cookie = request.environ.get(FRESH_COOKIE)
    if cookie is not None:
        response.set_cookie(
            # For the chat's paths alone: another chat on this host, at another path or port, has a key of its own, and
            # would take the cookie for a forged one and replace it.
            COOKIE, cookie, max_age=COOKIE_AGE, path=request.root_path + current_state().settings.url_prefix or "/",
            secure=request.is_secure or bool(current_app.config["SESSION_COOKIE_SECURE"]),
            httponly=True, samesite="Lax",
        )  # fmt: skip
    return response


def notice_sign_out(response: Response) -> Response:
    """End the streams of a user whom the host has just signed out, in whatever way it does that.

    Where Flask's session changed in a request, it is compared who the user was, by what the browser sent, with who it
    is now. A session that lies in the browser is the reason: nothing on the server's side says later that it is void.
    """
    state = current_state()
    # Also in a worker that has served no chat yet: the streams may be another's.
    if current_app.config["SESSION_COOKIE_NAME"] not in request.cookies:
        return response
    session = session_unseen()
    if session is None or not session.modified:
        return response
    try:
        left = state.identity.left(request.environ, session)
        if left is not None:
            state.runtime.readers.sign_out(left)
    except Exception:
        logger.exception("it could not be found out whether somebody signed out")
    return response


def session_unseen() -> SessionMixin | None:
    """Flask's session, not by its proxy: that notes an access, and all that the host answers would have `Vary: Cookie`.
    """
    # Flask types its proxies as what they stand for, without their own method.
    context = app_ctx._get_current_object()  # type: ignore[attr-defined]
    if not hasattr(context, "_session"):  # before Flask 3.2
        context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    found: SessionMixin | None = getattr(context, "_session" if hasattr(context, "_session") else "session")
    return found


def body() -> bytes:
    """The request's JSON, undecoded.

    :raises NotJSON: it says that it is something else.
    :raises BodyTooLarge:
    :raises TooSlow: it has not come within `body_timeout`.
    :raises BadRequest: it broke off.
    """
    state = current_state()
    limit = state.settings.max_body_bytes
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"At most {limit} bytes.")
    if request.mimetype != "application/json":
        raise NotJSON("Content-Type must be application/json.")
    # One more than may be: of a body in chunks, Werkzeug returns what fits and drops the rest without a word.
    request.max_content_length = limit + 1
    data: bytes | None = None
    with state.runtime.bodies.arriving(client_socket()) as arrival:
        try:
            data = request.get_data()
        except RequestEntityTooLarge:
            pass
        except (ClientDisconnected, OSError):  # the latter is gunicorn's
            if not arrival.late:
                raise BadRequest("The body broke off.") from None
    if arrival.late:  # not every reader of chunks tells a body that was cut off from one that has ended
        raise TooSlow(f"The body did not come within {state.settings.body_timeout:g} s.")
    if data is None or len(data) > limit:
        raise BodyTooLarge(f"At most {limit} bytes.")
    if len(data) < (request.content_length or 0):  # gunicorn hands on what came before the end of the connection
        raise BadRequest("The body broke off.")
    return data


def visitor(owner: str) -> Visitor:
    """The client of this request, as one that wants a stream."""
    environ = current_state().identity.credentials(request.environ, owner)
    return Visitor(owner, address=network(request.remote_addr), sock=client_socket(), environ=environ)


def client_socket() -> Any:
    """The client's socket, where the server tells; so that one that left is noticed, and one that stalls is cut off."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")

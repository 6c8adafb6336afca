"""What all views share: the owner of a request, its body, its socket, and errors as problem+json."""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec
from flask import Blueprint, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ..errors import BodyTooLarge, NotJSON, RequestError
from ..security import COOKIE, COOKIE_AGE, check_origin
from ..state import current_state

logger = logging.getLogger("flaskchat")


def make(url_prefix: str) -> Blueprint:
    blueprint = Blueprint(
        "flaskchat",
        "flaskchat",
        url_prefix=url_prefix or None,
        template_folder="templates",
        static_folder="static",
        static_url_path="/assets",
    )
    blueprint.register_error_handler(RequestError, problem)
    blueprint.register_error_handler(HTTPException, http_problem)
    blueprint.register_error_handler(Exception, unexpected)
    blueprint.after_request(remember)
    return blueprint


def json(body: object, status: int = 200, content_type: str = "application/json") -> Response:
    response = Response(msgspec.json.encode(body), status, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def problem(error: RequestError) -> Response:
    response = json(error.problem(), error.status, "application/problem+json")
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return response


def http_problem(error: HTTPException) -> Any:
    """Flask's own refusals (405 and the like) in the shape of ours."""
    if error.code is None or error.response is not None or error.code < 400:
        return error
    name = (error.name or "error").lower().replace(" ", "_")
    response = json(
        {
            "type": "about:blank",
            "title": error.name,
            "status": error.code,
            "detail": error.description,
            "code": name,
        },
        error.code,
        "application/problem+json",
    )
    for key, value in error.get_headers():
        if key.lower() not in ("content-type", "content-length"):
            response.headers[key] = value
    return response


def unexpected(error: Exception) -> Response:
    """A fault of ours: its stack for the operator, one sentence for the user."""
    if current_app.testing or current_app.debug or current_app.config.get("PROPAGATE_EXCEPTIONS"):
        raise error
    logger.exception("%s %s failed", request.method, request.path)
    return json(
        {
            "type": "about:blank",
            "title": "Internal error",
            "status": 500,
            "detail": "Something went wrong here. It has been logged.",
            "code": "internal_error",
        },
        500,
        "application/problem+json",
    )


def owner() -> str:
    """Whose request this is, from our own pages or from a program; resolved once.

    :raises CrossOrigin, Unauthorized:
    """
    if "flaskchat_owner" not in g:
        check_origin(request)
        g.flaskchat_owner, g.flaskchat_cookie = current_state().identity.resolve(request)
    found: str = g.flaskchat_owner
    return found


def remember(response: Response) -> Response:
    """Give a visitor who is new the cookie that makes the conversations theirs."""
    cookie = g.get("flaskchat_cookie")
    if cookie is not None:
        response.set_cookie(
            COOKIE, cookie, max_age=COOKIE_AGE, path=request.root_path or "/", secure=request.is_secure,
            httponly=True, samesite="Lax",
        )  # fmt: skip
    return response


def body() -> bytes:
    """The request's JSON, undecoded.

    :raises NotJSON: it says that it is something else.
    :raises BodyTooLarge:
    """
    limit = current_state().settings.max_body_bytes
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"At most {limit} bytes.")
    if request.mimetype != "application/json":
        raise NotJSON("Content-Type must be application/json.")
    request.max_content_length = limit
    try:
        return request.get_data()
    except RequestEntityTooLarge:
        raise BodyTooLarge(f"At most {limit} bytes.") from None


def client_socket() -> Any:
    """The client's socket, where the server tells; so that one that left is noticed, and one that stalls is cut off."""
    return request.environ.get("gunicorn.socket") or request.environ.get("werkzeug.socket")

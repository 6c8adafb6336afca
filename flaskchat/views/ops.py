"""`/healthz` and `/readyz`: whether the process answers, and should be sent more. `/metrics`: what was counted."""

from __future__ import annotations

import hmac
import logging

import sqlalchemy as sa
from flask import Blueprint, Response, request

from .. import metrics as counts
from ..errors import FlaskChatError, NotFound, NotReady, Unauthorized, Unavailable
from ..log.base import LogUnavailable
from ..state import current_state
from . import base

logger = logging.getLogger("flaskchat")


def healthz() -> Response:
    return base.json({"status": "ok"})


def readyz() -> Response:
    wrong: dict[str, str] = {}
    try:
        runtime = current_state().runtime
    except FlaskChatError:
        logger.exception("the chat cannot be opened")
        return _not_ready({"store": "The chat could not be opened; the server's log says why."})
    try:
        runtime.database.read(lambda c: c.execute(sa.text("SELECT 1 FROM flaskchat_runs LIMIT 1")).all())
    except Unavailable as error:
        wrong["store"] = error.detail
    try:
        runtime.readers.admit()
    except Unavailable as error:
        name = {"log_unavailable": "log"}.get(error.problem_code, error.problem_code)
        wrong[name] = error.detail
    try:
        runtime.pump.log.ready()
    except LogUnavailable as error:
        wrong["log"] = str(error)
    if wrong:
        return _not_ready(wrong)
    return base.json(
        {
            "status": "ready",
            "streams": len(runtime.readers),
            "capacity": runtime.readers.capacity,
            "runs": len(runtime.pump.feeds),
            runtime.database.kind: runtime.database.version,
        }
    )


def _not_ready(wrong: dict[str, str]) -> Response:
    return base.problem(NotReady(" ".join(wrong.values()), retry_after=2, wrong=wrong))


def metrics() -> Response:
    """How much is used, by how many, and how often a model fails, is nobody's but the operator's."""
    state = current_state()
    token = state.settings.metrics_token
    if token is None:
        raise NotFound("FLASKCHAT_METRICS_TOKEN is not set, so there are no metrics.")
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    # Headers are Latin-1 to WSGI (PEP 3333), whatever was sent.
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode()):
        response = base.problem(Unauthorized("The bearer token is missing, or not FLASKCHAT_METRICS_TOKEN."))
        response.headers["WWW-Authenticate"] = "Bearer"
        return response
    text = state.runtime.database.offload(state.runtime.metrics.text)
    response = Response(text, content_type=counts.CONTENT_TYPE)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/healthz", view_func=healthz, methods=["GET"])
    blueprint.add_url_rule("/readyz", view_func=readyz, methods=["GET"])
    blueprint.add_url_rule("/metrics", view_func=metrics, methods=["GET"])

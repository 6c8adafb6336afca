"""`/healthz` and `/readyz`: whether the process can answer, and whether it should be sent more."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from flask import Blueprint, Response

from ..errors import FlaskChatError, NotReady, Unavailable
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


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/healthz", view_func=healthz, methods=["GET"])
    blueprint.add_url_rule("/readyz", view_func=readyz, methods=["GET"])

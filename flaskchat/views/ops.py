"""`/healthz` and `/readyz`: whether the process can answer, and whether it should be sent more."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, Response

from ..errors import Unavailable
from ..state import current_state
from . import base


def healthz() -> Response:
    return base.json({"status": "ok"})


def readyz() -> Response:
    state = current_state()
    runtime = state.runtime
    wrong: dict[str, str] = {}
    try:
        runtime.database.read(lambda c: c.execute(sa.text("SELECT 1 FROM flaskchat_runs LIMIT 1")).all())
    except Unavailable as error:
        wrong["store"] = error.detail
    try:
        runtime.readers.admit()
    except Unavailable as error:
        name = {"log_unavailable": "log"}.get(error.problem_code, error.problem_code)
        wrong[name] = error.detail
    module = runtime.database.module
    return base.json(
        {
            "status": "not ready" if wrong else "ready",
            "wrong": wrong,
            "streams": len(runtime.readers),
            "capacity": runtime.readers.capacity,
            "runs": len(runtime.pump.feeds),
            "sqlite": f"{module.sqlite_version} ({module.__name__})",
        },
        503 if wrong else 200,
    )


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/healthz", view_func=healthz, methods=["GET"])
    blueprint.add_url_rule("/readyz", view_func=readyz, methods=["GET"])

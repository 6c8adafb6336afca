"""The shop: its pages are under a policy stricter than most, its style sheet is as rude as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask, Response, render_template

from flaskchat import FlaskChat, Request

app = Flask(__name__, instance_path=os.environ.get("TEST_INSTANCE"))
app.config.update({key: value for key, value in os.environ.items() if key.startswith("FLASKCHAT_")})
chat = FlaskChat(app)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html"
)


@chat.model("parrot")
def parrot(request: Request) -> Iterator[str]:
    for word in request.text.split():
        yield word + " "
        time.sleep(0.02)


@app.get("/")
def corner() -> str:
    return render_template("shop.html", where="corner")


@app.get("/within")
def within() -> str:
    return render_template("shop.html", where="within")


@app.get("/healthz")
def healthz() -> str:
    return "ok"


@app.after_request
def strict(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    return response

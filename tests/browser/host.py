"""A host's own project with the chat placed in one of its pages, under a policy as strict as the chat's own."""

from __future__ import annotations

import os

from flask import Flask, Response, render_template_string

from flaskchat import FlaskChat

app = Flask(__name__, instance_path=os.environ["TEST_INSTANCE"])
app.config.update({key: value for key, value in os.environ.items() if key.startswith("FLASKCHAT_")})
chat = FlaskChat(app)
PAGE = "<!doctype html><title>Shop</title><h1>Shop</h1>{{ flaskchat(model='parrot') }}<p>Below</p>"


@chat.model("parrot")
def parrot(request):  # type: ignore[no-untyped-def]
    for word in request.text.split():
        yield word + " "


@app.get("/")
def shop() -> Response:
    response = Response(render_template_string(PAGE))
    response.headers["Content-Security-Policy"] = "default-src 'none'; script-src 'self'; connect-src 'self'"
    return response


@app.get("/healthz")
def healthz() -> str:
    return "ok"

"""The chat page, and the widget that a host places in a page of its own."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, current_app, make_response, render_template, url_for
from markupsafe import Markup

from ..errors import Unauthorized
from ..security import PAGE_HEADERS
from ..state import current_state
from . import base

HEARTBEAT = 15
"""Seconds, as the element has it where it is not told (element.ts)."""
ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*\Z")


def asset(name: str) -> str:
    """The URL of a file of the built front end."""
    return url_for("flaskchat.static", filename=name)


def endpoint() -> str:
    """The prefix of the chat's routes as the browser sees it, behind whatever proxy."""
    return url_for("flaskchat.page").rstrip("/")


def heartbeat() -> float | None:
    """Seconds between the server's heartbeats, where that is not what the element takes for granted: from them it knows
    how long a silent stream may be a live one.
    """
    seconds = current_state().settings.heartbeat
    return None if seconds == HEARTBEAT else seconds


def widget(**attributes: object) -> Markup:
    """`{{ flaskchat() }}`: the `<flask-chat>` element with its script.

    :param attributes: of the element, such as `model="parrot"`; underscores become hyphens. True stands for an
        attribute without a value, False and None for none.
    :raises ValueError: a name cannot be an attribute's.
    """
    named: dict[str, object] = {"heartbeat": heartbeat()}
    named |= {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    for name in named:
        if not ATTRIBUTE.match(name) or name == "endpoint":
            raise ValueError(f"flaskchat(): {name!r} cannot be given as an attribute")
    template = current_app.jinja_env.get_template("flaskchat/widget.html")
    return Markup(template.render(endpoint=endpoint(), attributes=named, asset=asset))  # noqa: S704


def show(conversation_id: str | None = None) -> Any:
    # A new visitor gets the cookie here: the requests that the page then makes at once would each be given another one.
    try:
        base.identify()
    except Unauthorized:
        login = getattr(current_app, "login_manager", None)
        if login is None or not login.login_view:
            raise
        return login.unauthorized()  # the host's own way to sign in, and back to here
    html = render_template(
        "flaskchat/page.html", title="Chat", endpoint=endpoint(), conversation_id=conversation_id, asset=asset,
        heartbeat=heartbeat(),
    )
    response = make_response(html)
    response.headers.extend(PAGE_HEADERS)
    return response


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/", "page", view_func=show, methods=["GET"])
    blueprint.add_url_rule("/c/<conversation_id>", "page_at", view_func=show, methods=["GET"])

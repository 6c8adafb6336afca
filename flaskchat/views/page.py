"""The chat page, and the widget that a host places in a page of its own."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, g, make_response, render_template, request, url_for
from markupsafe import Markup

from ..security import PAGE_HEADERS
from ..state import current_state


def asset(name: str) -> str:
    """The URL of a file of the built front end."""
    return url_for("flaskchat.static", filename=name)


def endpoint() -> str:
    """The prefix of the chat's routes as the browser sees it, behind whatever proxy."""
    return url_for("flaskchat.page").rstrip("/")


def widget(**attributes: object) -> Markup:
    """`{{ flaskchat() }}`: the `<flask-chat>` element with its script.

    :param attributes: of the element, such as `model="parrot"`; underscores become hyphens.
    """
    named = {name.replace("_", "-"): value for name, value in attributes.items()}
    template = current_app.jinja_env.get_template("flaskchat/widget.html")
    return Markup(template.render(endpoint=endpoint(), attributes=named, asset=asset))  # noqa: S704


def show(conversation_id: str | None = None) -> Response:
    # Refuses who must sign in first. A new visitor gets the cookie here: the requests that the page then makes at once
    # would each be given another one.
    g.flaskchat_owner, g.flaskchat_cookie = current_state().identity.resolve(request)
    html = render_template(
        "flaskchat/page.html", title="Chat", endpoint=endpoint(), conversation_id=conversation_id, asset=asset
    )
    response = make_response(html)
    response.headers.extend(PAGE_HEADERS)
    return response


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/", "page", view_func=show, methods=["GET"])
    blueprint.add_url_rule("/c/<conversation_id>", "page_at", view_func=show, methods=["GET"])

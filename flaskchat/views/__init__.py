"""The blueprint: every route, the owner of each request, and errors as problem+json (RFC 9457).

The views are the only modules that touch `flask.request`.
"""

from __future__ import annotations

from flask import Blueprint

from . import base, conversation, demo, history, ops, page


def make_blueprint(url_prefix: str) -> Blueprint:
    """:param url_prefix: the path under which the chat is mounted; empty for the root."""
    blueprint = base.make(url_prefix)
    for module in (page, conversation, history, demo, ops):
        module.add(blueprint)
    return blueprint

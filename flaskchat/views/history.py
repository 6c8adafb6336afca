"""Conversations and models, as JSON."""

from __future__ import annotations

import re

from flask import Blueprint, Response, request

from .. import chat, export
from ..errors import Invalid, NotFound
from ..state import current_state
from . import base

PAGE = 30
PAGE_MOST = 100
CURSOR = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
"""What a page's cursor looks like; too short for whatever is costly to decode."""


def conversations() -> Response:
    owner = base.owner()
    text = request.args.get("limit", str(PAGE))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    if not 1 <= limit <= PAGE_MOST:
        raise Invalid(
            "Not valid: limit.", errors=[{"field": "limit", "reason": f"expected a whole number from 1 to {PAGE_MOST}"}]
        )
    cursor = request.args.get("cursor") or None
    if cursor is not None and not CURSOR.match(cursor):
        raise Invalid("The cursor is not one of ours.", errors=[{"field": "cursor", "reason": "unknown"}])
    page = current_state().runtime.store.conversations(
        owner, query=request.args.get("q", "")[:200], cursor=cursor, limit=limit
    )
    return base.json(page)


def conversation(conversation_id: str) -> Response:
    owner = base.owner()
    found = current_state().runtime.store.conversation(conversation_id, owner)
    if found is None:
        raise NotFound("There is no such conversation.")
    return base.json(found)


def change(conversation_id: str) -> Response:
    owner = base.owner()
    runtime = current_state().runtime
    return base.json(chat.change(runtime, owner, conversation_id, chat.parse_change(base.body(), runtime)))


def delete(conversation_id: str) -> Response:
    owner = base.owner()
    chat.delete(current_state().runtime, owner, conversation_id)
    return Response(status=204)


def download(conversation_id: str) -> Response:
    """The conversation as a file: everything as JSON, or the branch that is shown as Markdown."""
    owner = base.owner()
    found = current_state().runtime.store.conversation(conversation_id, owner)
    if found is None:
        raise NotFound("There is no such conversation.")
    kind = request.args.get("format", "json")
    if kind not in export.KINDS:
        raise Invalid(
            "Not valid: format.", errors=[{"field": "format", "reason": f"expected one of {', '.join(export.KINDS)}"}]
        )
    ending, content_type, write = export.KINDS[kind]
    response = Response(write(found), content_type=content_type)
    response.headers.set("Content-Disposition", "attachment", filename=export.filename(str(found["title"]), ending))
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


def models() -> Response:
    base.owner()
    return base.json({"items": current_state().registry.items()})


def add(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/conversations", view_func=conversations, methods=["GET"])
    blueprint.add_url_rule("/conversations/<conversation_id>", view_func=conversation, methods=["GET"])
    blueprint.add_url_rule("/conversations/<conversation_id>", view_func=change, methods=["PATCH"])
    blueprint.add_url_rule("/conversations/<conversation_id>", view_func=delete, methods=["DELETE"])
    blueprint.add_url_rule("/conversations/<conversation_id>/export", view_func=download, methods=["GET"])
    blueprint.add_url_rule("/models", view_func=models, methods=["GET"])

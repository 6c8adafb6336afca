"""A conversation as a file: JSON with every branch, or the branch that is shown as Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

ENDINGS = {
    "error": "The reply broke off: the model failed.",
    "stopped": "The reply was stopped here.",
    "interrupted": "The reply was interrupted here.",
    "running": "The reply is still being written.",
}


def as_json(conversation: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(conversation), indent=2) + b"\n"


def as_markdown(conversation: dict[str, Any]) -> bytes:
    """What the user and the model wrote is Markdown already and stands as it is, each under a heading of its own."""
    parts = [f"# {_one_line(conversation['title'])}"]
    for message in branch(conversation):
        if message["role"] == "user":
            parts.append(f"## You\n\n{message['text']}")
        else:
            parts.append(f"## {_one_line(message['model'] or 'Reply')}\n\n{message['text']}".rstrip())
            if message["status"] in ENDINGS:
                parts.append(f"*{ENDINGS[message['status']]}*")
    return ("\n\n".join(parts) + "\n").encode()


def branch(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages from the first to the leaf that is shown."""
    messages = {message["id"]: message for message in conversation["messages"]}
    found, at = [], conversation["current_leaf_id"]
    while at in messages:
        found.append(messages.pop(at))
        at = found[-1]["parent_id"]
    return found[::-1]


def filename(title: str, ending: str) -> str:
    """A name for the download that every system can hold."""
    name = re.sub(r"[^\w.-]+", "-", title).strip("-.")[:60]
    return f"{name or 'conversation'}.{ending}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


KINDS: dict[str, tuple[str, str, Callable[[dict[str, Any]], bytes]]] = {
    "json": ("json", "application/json", as_json),
    "markdown": ("md", "text/markdown; charset=utf-8", as_markdown),
}
"""By the name in the query: the file's ending, its content type, and what writes it."""

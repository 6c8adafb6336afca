"""What the use cases ask of the store, as data."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import FlaskChatError
from ..models import RunState, Turn


class Lease(NamedTuple):
    """Who a worker is to the log. A worker that lost its lease takes a new one, with another id."""

    worker_id: str
    epoch: int


class Ending(msgspec.Struct, kw_only=True):
    """A run that has ended, whole: what the store keeps of it."""

    run_id: str
    message_id: str
    conversation_id: str
    state: RunState
    text: str
    """The text that this run added to its message."""
    parts: bytes
    """JSON of the parts that are not text."""
    finish_reason: str | None = None
    usage: bytes | None = None
    tokens: int | None = None
    """Question and reply together, as the model counted them; None where it did not."""
    error: bytes | None = None
    upstream_closed_ms: float | None = None
    last_seq: int
    frames: bytes
    """Every event of the run, the terminal one last, as they were sent."""


class Fenced(FlaskChatError):
    """The lease is not ours any more: another worker has ended our runs."""


class Command(msgspec.Struct, kw_only=True, frozen=True):
    """One checked `POST /conversation`."""

    action: Literal["send", "regenerate", "continue"]
    client_id: str
    body_hash: str
    """Of the body, so that the same id with another body is told apart."""
    text: str = ""
    conversation_id: str | None = None
    parent_id: str | UnsetType | None = UNSET
    """Unset: the current leaf. None: a first question beside the first one."""
    message_id: str | None = None
    model: str | None = None
    system_prompt: str | None = None
    """Of a new conversation, from its first message on."""


class Begun(msgspec.Struct, kw_only=True):
    """A run as the store has it, with what its model is to be asked where it is new."""

    run_id: str
    conversation_id: str
    message_id: str
    user_message_id: str
    model: str
    title: str
    owner: str
    created: bool
    """False: this client id has been here before, and this is the run it began."""
    lease: Lease | None = None
    """Under which the run was begun; nothing may be appended to it under another. None where that does not matter."""
    turns: list[Turn] = []
    system_prompt: str = ""
    partial: str = ""
    """Text that the message has already, where a run continues it."""


class RunRow(msgspec.Struct, kw_only=True):
    run_id: str
    conversation_id: str
    message_id: str
    owner: str
    state: RunState
    worker_id: str
    epoch: int
    last_seq: int
    upstream_closed_ms: float | None


class Page(msgspec.Struct):
    items: list[dict[str, object]]
    next_cursor: str | None

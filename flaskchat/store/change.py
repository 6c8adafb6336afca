"""Changing a conversation. Each call is one transaction's work."""

from __future__ import annotations

import sqlalchemy as sa
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.engine import Connection

from ..errors import Invalid
from .schema import conversations, messages, runs


class Change(Struct, forbid_unknown_fields=True):
    """The body of `PATCH /conversations/<id>`; what is absent stays as it is."""

    title: str | UnsetType = UNSET
    current_leaf_id: str | UnsetType = UNSET
    system_prompt: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET


def apply(c: Connection, conversation_id: str, owner: str, change: Change) -> bool:
    """:returns: False when there is no such conversation, or it is another's.
    :raises Invalid: the leaf is not a message of the conversation.
    """
    mine = sa.and_(conversations.c.id == conversation_id, conversations.c.owner == owner)
    if c.execute(sa.select(conversations.c.number).where(mine)).scalar() is None:
        return False
    if change.current_leaf_id is not UNSET:
        leaf = sa.select(messages.c.number).where(
            messages.c.id == change.current_leaf_id, messages.c.conversation_id == conversation_id
        )
        if c.execute(leaf).scalar() is None:
            raise Invalid(
                "Not valid: current_leaf_id.",
                errors=[{"field": "current_leaf_id", "reason": "not a message of this conversation"}],
            )
    values = {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not UNSET}
    if values:
        c.execute(sa.update(conversations).where(mine).values(**values))
    return True


def retitle(c: Connection, conversation_id: str, before: str, title: str) -> bool:
    """:returns: False when the title is not `before` any more."""
    was = sa.and_(conversations.c.id == conversation_id, conversations.c.title == before)
    return c.execute(sa.update(conversations).where(was).values(title=title)).rowcount == 1


def running(c: Connection, conversation_id: str, owner: str) -> list[str] | None:
    """The runs of a conversation that are being written; None when it is not there, or another's."""
    mine = sa.and_(conversations.c.id == conversation_id, conversations.c.owner == owner)
    if c.execute(sa.select(conversations.c.number).where(mine)).scalar() is None:
        return None
    live = sa.select(runs.c.id).where(runs.c.conversation_id == conversation_id, runs.c.state == "running")
    return list(c.execute(live).scalars())

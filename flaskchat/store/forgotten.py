"""What was asked and has been deleted since is not asked again: the ids of deleted questions, unreadable, for a day.

A question may come late once more, from a worker that stood still with it in its socket, say, while another answered it
and its conversation was deleted. Without this it would begin a conversation that nobody wants, a second time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .schema import forgotten

KEPT = 86400.0
"""Seconds."""

_NOTE = sa.text("INSERT INTO flaskchat_forgotten (digest, at) VALUES (:digest, :at) ON CONFLICT (digest) DO NOTHING")
_HAS = sa.select(forgotten.c.at).where(forgotten.c.digest == sa.bindparam("wanted"))


def _digest(owner: str, client_id: str) -> str:
    return hashlib.blake2b(f"{owner}\0{client_id}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def note(c: Connection, asked: Iterable[tuple[str, str]]) -> None:
    """:param asked: the owners and client ids of what is being deleted."""
    now = time.time()
    rows = [{"digest": _digest(owner, client_id), "at": now} for owner, client_id in asked]
    if rows:
        c.execute(_NOTE, rows)


def has(c: Connection, owner: str, client_id: str) -> bool:
    return c.execute(_HAS, {"wanted": _digest(owner, client_id)}).first() is not None


def forget_old(c: Connection) -> None:
    c.execute(sa.delete(forgotten).where(forgotten.c.at < time.time() - KEPT))

"""Deleting so that nothing remains: messages, runs, events, client ids, the search index, journal, the file's pages.

The rows go in one transaction; the search index follows by its triggers, and `secure_delete` (store/engine.py) blanks
what they leave in the file. Two places keep a text for a while all the same, and are seen to here: the journal, whose
rows hold what all runs of a worker got in a tick, and the write-ahead log, which holds pages as they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .log.base import Log
from .store import change, forgotten, usage
from .store.engine import Database
from .store.schema import conversations, requests, runs

DAY = 86400.0
OLD = 50
"""Old conversations that are deleted in one transaction."""
CHORES = 1.0


class Deleted(NamedTuple):
    runs: list[str]
    first_row: int
    """Of the log: no older one is about these runs."""
    conversations: int


def conversation(
    database: Database, log: Log, conversation_id: str, owner: str, stopped: Collection[str] = ()
) -> list[str]:
    """Delete a conversation of this owner's, unless a reply is being written in it.

    A question may have been sent into it after the others were stopped. Nobody would see its run any more, and the
    model would write it to its end; so it has to be stopped first.

    :param stopped: runs that have been told to stop, whether they could or not.
    :returns: others that are being written; nothing has been deleted then.
    """
    mine = sa.and_(conversations.c.id == conversation_id, conversations.c.owner == owner)

    def delete(c: Connection) -> tuple[list[str], Deleted | None]:
        database.alone(c, owner)
        further = [run_id for run_id in change.running(c, conversation_id, owner) or () if run_id not in stopped]
        return further, None if further else _delete(c, mine)

    further, deleted = database.write(delete)
    if deleted is not None:
        log.forget(deleted.runs, deleted.first_row)
        database.forget()
    return further


def older_than(database: Database, days: float, seconds: float = math.inf) -> tuple[int, bool]:
    """Delete the conversations of all owners in which nothing has happened for so long.

    :param seconds: after which no more are begun with.
    :returns: how many there were, and whether some may be left.
    """
    until, found, end, left = database.read(database.now) - days * DAY, 0, time.monotonic() + seconds, True
    busy = sa.exists().where(runs.c.conversation_id == conversations.c.id, runs.c.state == "running")
    select = sa.select(conversations.c.id).where(conversations.c.updated_at < until, ~busy).limit(OLD)
    while time.monotonic() < end:
        ids = database.read(lambda c: list(c.execute(select).scalars()))
        if not ids:
            left = False
            break
        some = sa.and_(conversations.c.id.in_(ids), conversations.c.updated_at < until, ~busy)
        deleted = database.write(partial(_delete, which=some))
        found += deleted.conversations if deleted is not None else 0
    if found:
        database.forget()
    return found, left


def chores(database: Database, retention_days: float) -> bool:
    """What has to be forgotten from time to time; for about a second, since there is more to be seen to.

    :returns: whether more is left to be done.
    """
    database.write(lambda c: usage.forget_old(c, database.now(c)))
    database.write(forgotten.forget_old)
    return bool(retention_days) and older_than(database, retention_days, CHORES)[1]


def _delete(c: Connection, which: sa.ColumnElement[bool]) -> Deleted | None:
    # Locked, and one after the other in the order in which runs are ended: where somebody is just going on with one of
    # them, what they do is waited for, and that conversation is not meant any more.
    select = sa.select(conversations.c.id).where(which).order_by(conversations.c.id)
    ids = list(c.execute(select.with_for_update()).scalars())
    if not ids:
        return None
    theirs = c.execute(sa.select(runs.c.id, runs.c.first_row).where(runs.c.conversation_id.in_(ids))).all()
    asked = sa.select(requests.c.owner, requests.c.client_id).join(runs, runs.c.id == requests.c.run_id)
    forgotten.note(c, [(row.owner, row.client_id) for row in c.execute(asked.where(runs.c.conversation_id.in_(ids)))])
    c.execute(sa.delete(conversations).where(conversations.c.id.in_(ids)))
    return Deleted([row.id for row in theirs], min((row.first_row for row in theirs), default=0), len(ids))

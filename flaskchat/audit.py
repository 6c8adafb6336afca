"""Whether two databases hold the same, and whether one holds together. Reads only; says in words what is wrong."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import sse
from .models import TERMINAL_EVENTS
from .replay import Replay
from .store import whole
from .store.engine import Database
from .store.schema import conversations, messages, requests, run_events, runs

BUCKETS = 4096
"""Into which a table's rows are put by their keys, whatever order a database has them in."""
NAMED = 5
"""Rows that are named of those that are wrong in the same way."""
CONVERSATIONS = 50
"""That are looked at together."""

Progress = Callable[[str], object]


class Sums(NamedTuple):
    rows: int
    buckets: list[int]


def _bucket(key: whole.Key) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big") % BUCKETS


def _sums(database: Database, table: sa.Table, without: whole.Running, progress: Progress) -> Sums:
    buckets, rows = [0] * BUCKETS, 0
    for found in whole.batches(database, table):
        for row in found:
            whole.portable(table, row)
            if not without.touches(table, row):
                rows += 1
                at = _bucket(whole.key_of(table, row))
                buckets[at] = buckets[at] + whole.digest(row) & (1 << 64) - 1
        progress(f"comparing {whole.what(table)} in {database.name}: {rows}")
    return Sums(rows, buckets)


def _rows_in(database: Database, table: sa.Table, without: whole.Running, buckets: set[int]) -> dict[str, int]:
    """The digests of the rows in some buckets, by their keys."""
    found = {}
    for rows in whole.batches(database, table):
        for row in rows:
            whole.portable(table, row)
            key = whole.key_of(table, row)
            if _bucket(key) in buckets and not without.touches(table, row):
                found[" ".join(str(part) for part in key)] = whole.digest(row)
    return found


def compare(one: Database, other: Database, progress: Progress = lambda words: None) -> list[str]:
    """What differs, in words; nothing where both hold the same.

    Replies that are being written in one of them are left out, with what their end changes.
    """
    here, there = whole.running(one), whole.running(other)
    without = whole.Running(*(mine | theirs for mine, theirs in zip(here, there, strict=True)))
    wrong = []
    for table in whole.TABLES:
        first, second = _sums(one, table, without, progress), _sums(other, table, without, progress)
        differ = {at for at in range(BUCKETS) if first.buckets[at] != second.buckets[at]}
        if not differ and first.rows == second.rows:
            continue
        mine, theirs = _rows_in(one, table, without, differ), _rows_in(other, table, without, differ)
        for keys, words in (
            ([key for key in mine if key not in theirs], f"are missing in {other.name}"),
            ([key for key in theirs if key not in mine], f"are in {other.name} alone"),
            ([key for key in mine if theirs.get(key, mine[key]) != mine[key]], "differ"),
        ):
            if keys:
                wrong.append(f"{whole.what(table)}: {_named(keys, words)}")
    return wrong


def _named(keys: Iterable[str], words: str) -> str:
    found = sorted(keys)
    more = ", …" if len(found) > NAMED else ""
    return f"{len(found)} {words} ({', '.join(found[:NAMED])}{more})"


# -- one database ------------------------------------------------------------------------------------------------------


def inspect(database: Database, progress: Progress = lambda words: None) -> list[str]:
    """What does not hold together, in words: rows that refer to none, replies that are not what their events say."""
    wrong: dict[str, list[str]] = defaultdict(list)
    progress(f"looking at the tables and indexes of {database.name}")
    damage = database.read(database.damage)
    for words, select in _LOOSE.items():
        wrong[words] += [str(one) for one in database.read(lambda c, s=select: list(c.execute(s).scalars()))]  # type: ignore[misc]
    after, seen = 0, 0
    while True:
        found = database.read(partial(_look, after=after, wrong=wrong))
        if not found:
            break
        after, seen = found[-1], seen + len(found)
        progress(f"looking at conversations in {database.name}: {seen}")
    return damage + [_named(keys, words) for words, keys in wrong.items() if keys]


_QUESTION = messages.alias()
_LOOSE = {
    "messages belong to no conversation": sa.select(messages.c.id).where(
        ~sa.exists().where(conversations.c.id == messages.c.conversation_id)
    ),
    "runs belong to no conversation": sa.select(runs.c.id).where(
        ~sa.exists().where(conversations.c.id == runs.c.conversation_id)
    ),
    "runs have no message": sa.select(runs.c.id).where(
        ~sa.exists().where(messages.c.id == runs.c.message_id, messages.c.conversation_id == runs.c.conversation_id)
    ),
    "runs answer no question": sa.select(runs.c.id).where(
        ~sa.exists().where(
            messages.c.id == runs.c.user_message_id, messages.c.conversation_id == runs.c.conversation_id
        )
    ),
    "messages name a run that is not there": sa.select(messages.c.id).where(
        messages.c.run_id.is_not(None),
        ~sa.exists().where(runs.c.id == messages.c.run_id, runs.c.message_id == messages.c.id),
    ),
    "replies name no run": sa.select(messages.c.id).where(
        messages.c.role == "assistant", messages.c.run_id.is_(None)
    ),
    # Also one that comes later: whoever went from message to message would go in a circle.
    "messages follow one that is not there": sa.select(messages.c.id).where(
        messages.c.parent_id.is_not(None),
        ~sa.exists().where(
            _QUESTION.c.id == messages.c.parent_id,
            _QUESTION.c.conversation_id == messages.c.conversation_id,
            _QUESTION.c.position < messages.c.position,
        ),
    ),
    "conversations show a message that is not there": sa.select(conversations.c.id).where(
        conversations.c.current_leaf_id.is_not(None),
        ~sa.exists().where(
            messages.c.id == conversations.c.current_leaf_id, messages.c.conversation_id == conversations.c.id
        ),
    ),
    "runs' events belong to no run": sa.select(run_events.c.run_id).where(
        ~sa.exists().where(runs.c.id == run_events.c.run_id)
    ),
    "requests belong to no run": sa.select(requests.c.client_id).where(
        ~sa.exists().where(runs.c.id == requests.c.run_id)
    ),
}


def _look(c: Connection, after: int, wrong: dict[str, list[str]]) -> list[int]:
    """Look at the replies of the next conversations.

    :returns: those conversations' numbers.
    """
    select = sa.select(conversations.c.number, conversations.c.id).where(conversations.c.number > after)
    found = c.execute(select.order_by(conversations.c.number).limit(CONVERSATIONS)).all()
    ids = [row.id for row in found]
    texts = sa.select(messages.c.id, messages.c.text, messages.c.status, messages.c.run_id)
    texts = texts.where(messages.c.conversation_id.in_(ids), messages.c.run_id.is_not(None))
    replies = {row.id: row for row in c.execute(texts)}
    said: dict[str, str] = defaultdict(str)
    unfinished: set[str] = set()
    began = c.execute(
        sa.select(runs.c.id, runs.c.message_id, runs.c.state, runs.c.last_seq, runs.c.started_at)
        .where(runs.c.conversation_id.in_(ids))
    ).all()
    lasts = {reply.run_id for reply in replies.values()}
    for run in sorted(began, key=lambda run: (run.id in lasts, run.started_at)):  # the clocks of two nodes may differ
        reply = replies.get(run.message_id)
        if reply is not None and reply.run_id == run.id and reply.status != run.state:
            wrong["replies are in another state than their runs"].append(reply.id)
        if run.state == "running":
            unfinished.add(run.message_id)
            continue
        frames = c.execute(sa.select(run_events.c.frames).where(run_events.c.run_id == run.id)).scalar()
        if frames is None:
            wrong["runs have ended without events"].append(run.id)
            unfinished.add(run.message_id)
            continue
        try:
            said[run.message_id] += _text(frames, run.state, run.last_seq).replace("\0", "\ufffd")
        except (ValueError, msgspec.MsgspecError):
            wrong["runs have events that are not whole"].append(run.id)
            unfinished.add(run.message_id)
    for reply in replies.values():
        if reply.id not in unfinished and reply.text.replace("\0", "\ufffd") != said[reply.id]:
            wrong["replies have another text than their events"].append(reply.id)
    return [row.number for row in found]


def _text(frames: bytes, state: str, last_seq: int) -> str:
    """The text of a run that has ended.

    :raises ValueError: its events are not those of a whole run that ended so.
    """
    found = sse.Decoder(max_line=1 << 30).feed(frames)
    names = [frame.event for frame in found]
    if [frame.id for frame in found] != [str(seq) for seq in range(1, last_seq + 1)] or not frames.endswith(b"\n\n"):
        raise ValueError("the numbers are not those of the run")
    if names[-1:] != [state] or names[0] != "start" or TERMINAL_EVENTS.intersection(names[:-1]):
        raise ValueError("they do not end as the run did")
    return Replay([frames]).text

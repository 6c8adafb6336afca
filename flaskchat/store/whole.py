"""The tables as a whole, read in batches by key: what is taken along when conversations move to another database.

Not the leases and not the journal, which are about processes and end with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .engine import Database
from .schema import conversations, forgotten, messages, requests, run_events, runs, usage

TABLES = (conversations, messages, runs, run_events, requests, usage, forgotten)
"""Each after those that it refers to."""
ROWS = 200
"""Of one batch."""
LARGE_ROWS = 50
"""Of one batch where a row holds all events of a run."""

Key = list[Any]
Row = dict[str, Any]


class Running(NamedTuple):
    """The replies that are being written, by the ids of what their end will change."""

    runs: set[str]
    messages: set[str]
    conversations: set[str]

    def touches(self, table: sa.Table, row: Row) -> bool:
        if table is conversations:
            return row["id"] in self.conversations
        if table is messages:
            return row["id"] in self.messages
        if table is runs:
            return row["id"] in self.runs
        return "run_id" in row and table is not requests and row["run_id"] in self.runs


def running(database: Database) -> Running:
    select = sa.select(runs.c.id, runs.c.message_id, runs.c.conversation_id).where(runs.c.state == "running")
    found = database.read(lambda c: c.execute(select).all())
    return Running({row[0] for row in found}, {row[1] for row in found}, {row[2] for row in found})


def what(table: sa.Table) -> str:
    """A table's rows in words."""
    name = table.name.removeprefix("flaskchat_").replace("forgotten", "deleted questions' digests")
    return name.replace("run_events", "runs' events").replace("_", " ")


def key_of(table: sa.Table, row: Row) -> Key:
    return [row[column.name] for column in table.primary_key]


def batch(c: Connection, table: sa.Table, after: Key | None) -> list[Row]:
    """The next rows behind a key, in the order of this database's own keys; none: that was the last."""
    keys = list(table.primary_key)
    select = sa.select(table).order_by(*keys).limit(LARGE_ROWS if table is run_events else ROWS)
    if after is not None:
        last = [sa.bindparam(None, value, type_=column.type) for value, column in zip(after, keys, strict=True)]
        select = select.where(sa.tuple_(*keys) > sa.tuple_(*last) if len(keys) > 1 else keys[0] > last[0])
    return [dict(row) for row in c.execute(select).mappings()]


def batches(database: Database, table: sa.Table) -> Iterator[list[Row]]:
    """All rows, each batch in a transaction of its own."""
    after: Key | None = None
    while True:
        rows = database.read(partial(batch, table=table, after=after))
        if not rows:
            return
        yield rows
        after = key_of(table, rows[-1])


def portable(table: sa.Table, row: Row) -> Row:
    """A row as every database can hold it: PostgreSQL takes no NUL in a text. Ours has had none for long."""
    for name, value in row.items():
        if isinstance(value, str) and "\0" in value:
            row[name] = value.replace("\0", "\ufffd")
        elif isinstance(value, int) and isinstance(table.c[name].type, sa.Float):
            row[name] = float(value)
    return row


def digest(row: Row) -> int:
    """64 bits of all that is in a row, the same from every database."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(list(row.values())), digest_size=8).digest(), "big")

"""How the log lies in Redis: the keys, the ids, what an entry holds.

A stream for each live run, whose entries are what one tick brought: `XADD key <seq of its last frame>-0 v 1 d <entry>`.
Because the id is the last seq, `XREAD` from a reader's cursor finds every entry that has something new in it, also one
that was written anew in another grouping. A stream for control, whose ids are Redis's own time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from .base import Append, Control, Entry, clock
from .link import Command
from .rows import VERSION, decode_row, encode_row

MAX_SEQ = (1 << 64) - 1
SEALED = b"%d-0" % MAX_SEQ
"""The id of an entry above all that an owner could append: Redis refuses whatever comes after it."""
LAST = b"%d-1" % MAX_SEQ
"""The id under which the terminal event follows a seal."""
LIVE_SECONDS = 86400
"""A stream expires by itself when nobody has renewed it for so long."""
ENDED_SECONDS = 300
CONTROLS = b"1000"
CONTROL_KEPT = 30_000
"""Milliseconds of control that a worker looks back at when it begins to follow."""
PAGE = 500
"""Entries that are read at once, so that no answer holds the hub for long."""

Id = tuple[int, int]
Row = tuple[bytes, list[bytes] | None]


class Keys(NamedTuple):
    """:param prefix: of all keys, and their hash tag: in a cluster they are on one node."""

    prefix: str

    def run(self, run_id: str) -> bytes:
        return f"{{{self.prefix}}}:run:{run_id}".encode()

    @property
    def control(self) -> bytes:
        return f"{{{self.prefix}}}:control".encode()

    @property
    def probe(self) -> bytes:
        return f"{{{self.prefix}}}:probe".encode()


def parse_id(data: bytes) -> Id:
    first, _, second = data.partition(b"-")
    return int(first), int(second)


def append(key: bytes, entry: Append) -> Command:
    """Only the first entry makes the stream: where it is gone, the others are answered with nil."""
    last = entry.seq + len(entry.frames) - 1
    make: tuple[bytes, ...] = () if entry.seq == 1 else (b"NOMKSTREAM",)
    return b"XADD", key, *make, b"%d-0" % last, *_fields([entry])


def append_last(key: bytes, entry: Append) -> Command:
    """Behind a seal; not where the stream was deleted meanwhile, with its conversation."""
    return b"XADD", key, b"NOMKSTREAM", LAST, *_fields([entry])


def seal(key: bytes) -> Command:
    return b"XADD", key, SEALED, *_fields([])


def tell(key: bytes, entry: Control) -> Command:
    return b"XADD", key, b"MAXLEN", b"~", CONTROLS, b"*", *_fields([entry])


def probe(key: bytes) -> Command:
    """Writes as an append does, in a stream of one entry that nobody reads."""
    return b"XADD", key, b"MAXLEN", b"1", b"*", *_fields([])


def expire(key: bytes, seconds: int) -> Command:
    return b"EXPIRE", key, b"%d" % seconds


def delete(key: bytes) -> Command:
    return b"DEL", key


def newest(key: bytes) -> Command:
    return b"XREVRANGE", key, b"+", b"-", b"COUNT", b"1"


def _fields(entries: list[Entry] | list[Append] | list[Control]) -> tuple[bytes, ...]:
    return b"v", b"%d" % VERSION, b"d", encode_row(entries)


def decode(row: Row) -> list[Entry]:
    """What a stream's entry holds; nothing where its version is unknown or it is damaged."""
    fields = row[1]
    if fields is None:  # deleted while it was read
        return []
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    version = found.get(b"v", b"")
    return decode_row(int(version) if version.isdigit() else -1, found.get(b"d", b""))


def appends(rows: Sequence[Any]) -> list[Append]:
    return [entry for row in rows for entry in decode(row) if type(entry) is Append]


def controls(rows: Sequence[Any], now_ms: int | None = None) -> list[Entry]:
    """What is for everybody, with its time in this host's clock: another's says nothing here.

    :param now_ms: Redis's time; absent: they have only just been written.
    """
    found: list[Entry] = []
    for row in rows:
        age = 0.0 if now_ms is None else max(0.0, (now_ms - parse_id(row[0])[0]) / 1000)
        for entry in decode(row):
            if not isinstance(entry, Append) and entry.clock not in ("", clock()):
                entry = msgspec.structs.replace(entry, asked_at=time.monotonic() - age, clock=clock())
            found.append(entry)
    return found


def joined(entries: Sequence[Append]) -> list[bytes]:
    """One run's frames from the first one on, without a gap."""
    frames: list[bytes] = []
    for entry in entries:
        skip = len(frames) + 1 - entry.seq
        if skip >= 0:  # else a damaged entry lies between: what comes after it has no place any more
            frames.extend(entry.frames[skip:])
    return frames

"""The test application as a later version of flaskchat may be, for a rolling update: `tests.server.newer:app`.

Its replies have a kind of event that the others do not know. With TEST_ROWS it writes the log's rows in that version's
format, and reads both.
"""

import os
import zlib
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from flaskchat import sse
from flaskchat.feed import Feed
from flaskchat.log import base, journal, postgres, rows, streams
from flaskchat.models import Delta, Event
from tests.server.faulty import app

__all__ = ["app"]

OURS, WRITES = rows.VERSION, int(os.environ.get("TEST_ROWS", rows.VERSION))


class Citation(msgspec.Struct):
    event: ClassVar[str] = "citation"
    url: str


accept, decode_row, encode_row = Feed._accept, rows.decode_row, rows.encode_row


def and_cite(feed: Feed, event: Event) -> None:
    accept(feed, event)
    if type(event) is Delta and feed.seq % 5 == 0 and feed.terminal is None:
        feed._number(Citation("https://example.org/"))  # type: ignore[arg-type]


def encode(entries: Sequence[base.Entry]) -> bytes:
    return encode_row(entries) if WRITES == OURS else zlib.compress(encode_row(entries))


def decode(version: int, data: bytes) -> list[base.Entry]:
    if version == OURS:
        return decode_row(rows.VERSION, data)
    return decode_row(rows.VERSION, zlib.decompress(data)) if version == WRITES else []


sse._NAMES[Citation] = b"citation"  # type: ignore[index]
Feed._accept = and_cite  # type: ignore[method-assign]
for module in (journal, postgres, rows, streams):
    module.VERSION = WRITES  # type: ignore[attr-defined]
    module.decode_row, module.encode_row = decode, encode  # type: ignore[attr-defined]

"""Searching an owner's conversations: titles and texts, by parts of words, with the hit to be shown.

SQLite's trigram index names the texts that have all parts of three characters of a word, in any language, and these are
looked at; shorter words are looked for in the owner's own texts directly. PostgreSQL does so for a LIKE, with its own
indexes where it has them. What is found is always joined with the owner: the index knows nothing of owners.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from .schema import SEARCH, conversations, messages

MOST = 2000
"""Messages that one search finds, the newest first."""
WORDS = 8
INDEXED = 3
"""Characters of a part that is in the index."""
PARTS = 50
"""Of one word that the index is asked for; the text is asked for all of it."""
FOLDING = "flaskchat_folding"
"""PostgreSQL's collation for searching, made with its indexes."""
BEFORE, AFTER = 40, 100
"""Characters shown around a hit."""

# The only name put into these statements is a constant of ours; what is looked for is bound.
_IN_TEXTS = sa.text(
    f"SELECT m.conversation_id, m.id, m.text FROM {SEARCH} s JOIN flaskchat_messages m ON m.number = s.rowid "  # noqa: S608
    "JOIN flaskchat_conversations c ON c.id = m.conversation_id AND c.owner = :owner "
    f"WHERE s.{SEARCH} MATCH :query ORDER BY s.rowid DESC"
)
_IN_TITLES = sa.text(
    f"SELECT c.id, c.title FROM {SEARCH} s "  # noqa: S608
    "JOIN flaskchat_conversations c ON c.number = -s.rowid AND c.owner = :owner "
    f"WHERE s.{SEARCH} MATCH :query"
)
_ALL_TEXTS = sa.text(  # sorted by their numbers alone, before a text is read
    "SELECT m.conversation_id, m.id, m.text FROM (SELECT m.number FROM flaskchat_conversations c "
    "JOIN flaskchat_messages m ON m.conversation_id = c.id WHERE c.owner = :owner ORDER BY m.number DESC LIMIT -1) one "
    "CROSS JOIN flaskchat_messages m ON m.number = one.number"
)
_ALL_TITLES = sa.text("SELECT c.id, c.title FROM flaskchat_conversations c WHERE c.owner = :owner")


def words_of(query: str) -> list[str]:
    return query.replace("\0", " ").split()[:WORDS]


def find(c: Connection, owner: str, words: list[str]) -> dict[str, str | None]:
    """Conversations that hold all words in one message or in their title.

    :returns: by conversation id, the id of the newest message that has them; None where it is the title.
    """
    if c.dialect.name == "sqlite":
        titles, texts = _looked_through(c, owner, words)
    else:
        mine = conversations.c.owner == owner
        in_title = [_contains(conversations.c.title, word) for word in words]
        in_text = [_contains(messages.c.text, word) for word in words]
        titles = [row.id for row in c.execute(sa.select(conversations.c.id).where(mine, *in_title).limit(MOST))]
        select = (
            sa.select(messages.c.conversation_id, messages.c.id)
            .join(conversations, conversations.c.id == messages.c.conversation_id)
            .where(mine, *in_text)
            .order_by(messages.c.number.desc())
            .limit(MOST)
        )
        texts = [(row.conversation_id, row.id) for row in c.execute(select)]
    found: dict[str, str | None] = dict.fromkeys(titles)
    for conversation_id, message_id in texts:
        if found.get(conversation_id) is None:
            found[conversation_id] = message_id
    return found


def _looked_through(c: Connection, owner: str, words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """In SQLite, which folds the case of ASCII's letters only: the texts that the index names, or all of the owner's
    where no word is long enough for it.
    """
    parts = [
        word[at : at + INDEXED].replace('"', '""')
        for word in words
        for at in range(min(PARTS, len(word) - INDEXED + 1))
    ]
    # In quotes a part is a string to the index, whatever signs it holds; a quote is doubled.
    values = {"owner": owner, "query": " AND ".join(f'"{part}"' for part in dict.fromkeys(parts))}
    titles = c.execute(_IN_TITLES if parts else _ALL_TITLES, values)
    found = [row.id for row in _that_hold(titles, words)]
    texts = c.execute(_IN_TEXTS if parts else _ALL_TEXTS, values)
    return found, [(row.conversation_id, row.id) for row in _that_hold(texts, words)]


def _that_hold(rows: sa.CursorResult[Any], words: list[str]) -> Iterator[Row[Any]]:
    """Of the rows those whose last column has the words, whatever their case (Unicode, section 3.13, toCasefold): what
    the index takes for equal is so then.
    """
    folded = [word.casefold() for word in words]
    found = 0
    with contextlib.closing(rows):
        for row in rows:
            text = row[-1].casefold()
            if all(word in text for word in folded):
                yield row
                found += 1
                if found == MOST:
                    return


def _contains(column: sa.Column[str], word: str) -> sa.ColumnElement[bool]:
    pattern = re.sub(r"([\\%_])", r"\\\1", word)
    return column.collate(FOLDING).ilike(f"%{pattern}%")


def hits(c: Connection, found: dict[str, str | None], shown: list[str], words: list[str]) -> dict[str, dict[str, str]]:
    """The text around the first word, for the conversations that are shown."""
    wanted = {message_id: one for one in shown if (message_id := found.get(one)) is not None}
    select = sa.select(messages.c.id, messages.c.text).where(messages.c.id.in_(wanted))
    return {wanted[row.id]: {"message_id": row.id, **snippet(row.text, words)} for row in c.execute(select)}


_BLOCK = re.compile(r"(?:(?<=\n)|\A) {0,3}(?:(?:#{1,6}|>)[ \t]+)+")
"""The marks of a heading or a quotation: once all is on one line nobody can tell them from a comment or `5 > 3`."""


def snippet(text: str, words: list[str]) -> dict[str, str]:
    """`before`, `match` and `after` of the first word in a text, on one line."""
    first = min(
        (hit for word in words if (hit := re.search(re.escape(word), text, re.IGNORECASE))),
        default=None,
        key=lambda hit: hit.start(),
    )
    at, end = first.span() if first is not None else (0, 0)
    before = text[max(0, at - BEFORE) : at]
    if at > BEFORE:
        before = "…" + before.partition(" ")[2]
    before = _BLOCK.sub("", before)
    after = text[end : end + AFTER]
    if end + AFTER < len(text):
        after = after.rpartition(" ")[0] + "…"
    after = _BLOCK.sub("", f"…{after}")[1:]  # which goes on where the match ends, also if that is with a mark
    flat = str.maketrans("\n\r\t", "   ")
    return {"before": before.translate(flat), "match": text[at:end].translate(flat), "after": after.translate(flat)}

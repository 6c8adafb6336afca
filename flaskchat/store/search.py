"""Searching an owner's conversations: titles and texts, by parts of words, with the hit to be shown.

SQLite's trigram index finds any part of three characters and more, in any language; shorter words are looked for in the
owner's own texts directly. PostgreSQL takes its own indexes, if it has them, where a LIKE is asked for. What is found
is always joined with the owner: the index knows nothing of owners.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .schema import SEARCH, conversations, messages

MOST = 2000
"""Messages that one search looks at, the newest first."""
WORDS = 8
INDEXED = 3
"""Characters from which a word is in the index."""
FOLDING = "flaskchat_folding"
"""PostgreSQL's collation for searching, made with its indexes."""
BEFORE, AFTER = 40, 100
"""Characters shown around a hit."""

_IN_TEXTS = sa.text(
    f"SELECT m.conversation_id, m.id FROM {SEARCH} s JOIN flaskchat_messages m ON m.number = s.rowid "  # noqa: S608
    "JOIN flaskchat_conversations c ON c.id = m.conversation_id AND c.owner = :owner "
    "WHERE s.text MATCH :query ORDER BY m.number DESC LIMIT :most"
)
_IN_TITLES = sa.text(
    f"SELECT c.id FROM {SEARCH} s JOIN flaskchat_conversations c ON c.number = -s.rowid AND c.owner = :owner "  # noqa: S608
    "WHERE s.text MATCH :query LIMIT :most"
)


def words_of(query: str) -> list[str]:
    return query.replace("\0", " ").split()[:WORDS]


def find(c: Connection, owner: str, words: list[str]) -> dict[str, str | None]:
    """Conversations that hold all words in one message or in their title.

    :returns: by conversation id, the id of the newest message that has them; None where it is the title.
    """
    if c.dialect.name == "sqlite" and all(len(word) >= INDEXED for word in words):
        # In quotes a word is a string to the index, whatever signs it holds; a quote is doubled.
        quoted = ['"{}"'.format(word.replace('"', '""')) for word in words]
        values: dict[str, Any] = {"owner": owner, "query": " AND ".join(quoted), "most": MOST}
        titles = [row.id for row in c.execute(_IN_TITLES, values)]
        texts = [(row.conversation_id, row.id) for row in c.execute(_IN_TEXTS, values)]
    else:
        mine = conversations.c.owner == owner
        in_title = [_contains(c, conversations.c.title, word) for word in words]
        in_text = [_contains(c, messages.c.text, word) for word in words]
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


def _contains(c: Connection, column: sa.Column[str], word: str) -> sa.ColumnElement[bool]:
    if c.dialect.name == "sqlite":
        return column.icontains(word, autoescape=True)
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

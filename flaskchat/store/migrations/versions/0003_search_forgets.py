"""A search index that forgets: what is deleted leaves its pages at once, and not with a merge some day. On PostgreSQL,
trigram indexes, where its `pg_trgm` may be had.

A table with `contentless_delete` only marks rows as deleted, since it does not know their words; the triggers do, and
say them. With `secure-delete` the words are then taken out of the index's pages.

Revision ID: 0003
"""

import logging

import sqlalchemy as sa
from alembic import op

logger = logging.getLogger("flaskchat")

revision = "0003"
down_revision = "0002"

TRIGGERS = ("message_insert", "message_update", "message_delete", "title_insert", "title_update", "title_delete")
INDEX = (
    "CREATE VIRTUAL TABLE flaskchat_search USING fts5(text, content='', tokenize='trigram')",
    "INSERT INTO flaskchat_search (flaskchat_search, rank) VALUES ('secure-delete', 1)",
    "INSERT INTO flaskchat_search (rowid, text) SELECT number, text FROM flaskchat_messages WHERE text <> ''",
    "INSERT INTO flaskchat_search (rowid, text) SELECT -number, title FROM flaskchat_conversations",
    """
    CREATE TRIGGER flaskchat_search_message_insert AFTER INSERT ON flaskchat_messages WHEN new.text <> '' BEGIN
        INSERT INTO flaskchat_search (rowid, text) VALUES (new.number, new.text);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_message_update AFTER UPDATE OF text ON flaskchat_messages
    WHEN new.text <> old.text BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text)
            SELECT 'delete', old.number, old.text WHERE old.text <> '';
        INSERT INTO flaskchat_search (rowid, text) SELECT new.number, new.text WHERE new.text <> '';
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_message_delete AFTER DELETE ON flaskchat_messages WHEN old.text <> '' BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text) VALUES ('delete', old.number, old.text);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_title_insert AFTER INSERT ON flaskchat_conversations BEGIN
        INSERT INTO flaskchat_search (rowid, text) VALUES (-new.number, new.title);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_title_update AFTER UPDATE OF title ON flaskchat_conversations
    WHEN new.title <> old.title BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text) VALUES ('delete', -old.number, old.title);
        INSERT INTO flaskchat_search (rowid, text) VALUES (-new.number, new.title);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_title_delete AFTER DELETE ON flaskchat_conversations BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text) VALUES ('delete', -old.number, old.title);
    END
    """,
)


COLLATION = "flaskchat_folding"
"""Under which text is searched: it folds the case of all letters, also where the database's own knows only ASCII's."""
ICU = f"CREATE COLLATION {COLLATION} (provider = icu, locale = 'und')"
PLAIN = f'CREATE COLLATION {COLLATION} FROM "C"'
TRIGRAM = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
SEARCHED = (("flaskchat_messages", "text"), ("flaskchat_conversations", "title"))


def allowed(*statements: str) -> bool:
    """Whether all of them could be executed; nothing of them is left otherwise."""
    try:
        with op.get_bind().begin_nested():
            for statement in statements:
                op.execute(statement)
    except sa.exc.DBAPIError as error:
        logger.warning("this PostgreSQL refuses %r: %s", statements[0], error.orig)
        return False
    return True


def upgrade_postgresql() -> None:
    if not allowed(ICU):
        op.execute(PLAIN)
        logger.warning("searching tells upper from lower case in letters beyond ASCII")
    indexes = [
        f"CREATE INDEX {table}_by_part ON {table} USING gin ({column} COLLATE {COLLATION} gin_trgm_ops)"
        for table, column in SEARCHED
    ]
    if not allowed(TRIGRAM, *indexes):
        logger.warning("searching goes without an index, through all texts of an owner's")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        upgrade_postgresql()
        return
    for trigger in TRIGGERS:
        op.execute(f"DROP TRIGGER flaskchat_search_{trigger}")
    op.execute("DROP TABLE flaskchat_search")
    for statement in INDEX:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("go back to a copy of the file from before the upgrade")

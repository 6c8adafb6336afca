"""A search index that keeps which parts a text has, and not where: small, however long the texts are.

On SQLite. FTS5 kept each place of each part of three characters, two and a half times the text, and merged that as it
went: in the commit of whatever reply happened to end, for tens of megabytes of write-ahead log. A part that comes
often (dots, say, or spaces) cannot be merged in steps, so no setting bounds it. With `detail=none` the index names the
texts that may hold a word, and the search looks at them (https://sqlite.org/fts5.html#the_detail_option).

A text that changes is taken out of the index on disk, `flush`, before it is put in again. FTS5 gathers in memory what a
statement does, and with `secure-delete` one text that is both taken out and put in spoils that: parts of the texts
behind it went, and where places were kept, old ones stayed after the text was deleted.

Of the versions before a search fails on this index (503), and all else goes on.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"

INDEX = (
    "DROP TRIGGER flaskchat_search_message_update",
    "DROP TRIGGER flaskchat_search_title_update",
    "DROP TABLE flaskchat_search",
    """
    CREATE VIRTUAL TABLE flaskchat_search
    USING fts5(text, content='', tokenize='trigram', detail=none, columnsize=0)
    """,
    "INSERT INTO flaskchat_search (flaskchat_search, rank) VALUES ('secure-delete', 1)",
    "INSERT INTO flaskchat_search (rowid, text) SELECT number, text FROM flaskchat_messages WHERE text <> ''",
    "INSERT INTO flaskchat_search (rowid, text) SELECT -number, title FROM flaskchat_conversations",
    """
    CREATE TRIGGER flaskchat_search_message_update AFTER UPDATE OF text ON flaskchat_messages
    WHEN new.text <> old.text BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text)
            SELECT 'delete', old.number, old.text WHERE old.text <> '';
        INSERT INTO flaskchat_search (flaskchat_search) SELECT 'flush' WHERE old.text <> '';
        INSERT INTO flaskchat_search (rowid, text) SELECT new.number, new.text WHERE new.text <> '';
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_title_update AFTER UPDATE OF title ON flaskchat_conversations
    WHEN new.title <> old.title BEGIN
        INSERT INTO flaskchat_search (flaskchat_search, rowid, text) VALUES ('delete', -old.number, old.title);
        INSERT INTO flaskchat_search (flaskchat_search) VALUES ('flush');
        INSERT INTO flaskchat_search (rowid, text) VALUES (-new.number, new.title);
    END
    """,
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for statement in INDEX:
            op.execute(statement)
    op.execute("UPDATE flaskchat_compatible SET oldest = '0004'")


def downgrade() -> None:
    raise NotImplementedError("go back to a copy of the file from before the upgrade")

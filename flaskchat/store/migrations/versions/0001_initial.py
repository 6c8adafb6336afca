"""The first tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
RUNNING = sa.text("state = 'running'")

# Rows of the index are messages by their number, and titles by the conversation's number with a minus. Trigrams find
# parts of words in any language; the texts themselves are not kept a second time.
SEARCH = (
    "CREATE VIRTUAL TABLE flaskchat_search USING fts5(text, content='', contentless_delete=1, tokenize='trigram')",
    """
    CREATE TRIGGER flaskchat_search_message_insert AFTER INSERT ON flaskchat_messages WHEN new.text <> '' BEGIN
        INSERT INTO flaskchat_search (rowid, text) VALUES (new.number, new.text);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_message_update AFTER UPDATE OF text ON flaskchat_messages
    WHEN new.text <> old.text BEGIN
        DELETE FROM flaskchat_search WHERE rowid = old.number;
        INSERT INTO flaskchat_search (rowid, text) VALUES (new.number, new.text);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_message_delete AFTER DELETE ON flaskchat_messages BEGIN
        DELETE FROM flaskchat_search WHERE rowid = old.number;
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
        DELETE FROM flaskchat_search WHERE rowid = -old.number;
        INSERT INTO flaskchat_search (rowid, text) VALUES (-new.number, new.title);
    END
    """,
    """
    CREATE TRIGGER flaskchat_search_title_delete AFTER DELETE ON flaskchat_conversations BEGIN
        DELETE FROM flaskchat_search WHERE rowid = -old.number;
    END
    """,
)


def upgrade() -> None:
    op.create_table(
        "flaskchat_conversations",
        sa.Column("number", LONG, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=True),
        sa.Column("system_prompt", sa.Text(), nullable=True),
        sa.Column("current_leaf_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )
    op.create_index(
        "flaskchat_conversations_by_owner", "flaskchat_conversations", ["owner", "updated_at", "id"], unique=False
    )
    op.create_table(
        "flaskchat_journal",
        sa.Column("id", LONG, nullable=False),
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "flaskchat_workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("beats", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "flaskchat_messages",
        sa.Column("number", LONG, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("conversation_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("finish_reason", sa.String(length=64), nullable=True),
        sa.Column("usage", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["conversation_id"], ["flaskchat_conversations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )
    op.create_index(
        "flaskchat_messages_by_conversation", "flaskchat_messages", ["conversation_id", "position"], unique=True
    )
    op.create_table(
        "flaskchat_runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("conversation_id", sa.String(length=64), nullable=False),
        sa.Column("message_id", sa.String(length=64), nullable=False),
        sa.Column("user_message_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("first_row", LONG, nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("upstream_closed_ms", sa.Float(), nullable=True),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["conversation_id"], ["flaskchat_conversations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("flaskchat_runs_by_conversation", "flaskchat_runs", ["conversation_id"], unique=False)
    op.create_index(
        "flaskchat_runs_running",
        "flaskchat_runs",
        ["worker_id"],
        unique=False,
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    )
    op.create_table(
        "flaskchat_requests",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("client_id", sa.String(length=128), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["flaskchat_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "client_id"),
    )
    op.create_index("flaskchat_requests_by_run", "flaskchat_requests", ["run_id"], unique=False)
    op.create_table(
        "flaskchat_run_events",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("frames", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["flaskchat_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for statement in SEARCH:
            op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE flaskchat_search")
    op.drop_table("flaskchat_run_events")
    op.drop_index("flaskchat_requests_by_run", table_name="flaskchat_requests")
    op.drop_table("flaskchat_requests")
    op.drop_index("flaskchat_runs_running", table_name="flaskchat_runs", sqlite_where=RUNNING)
    op.drop_index("flaskchat_runs_by_conversation", table_name="flaskchat_runs")
    op.drop_table("flaskchat_runs")
    op.drop_index("flaskchat_messages_by_conversation", table_name="flaskchat_messages")
    op.drop_table("flaskchat_messages")
    op.drop_table("flaskchat_workers")
    op.drop_table("flaskchat_journal")
    op.drop_index("flaskchat_conversations_by_owner", table_name="flaskchat_conversations")
    op.drop_table("flaskchat_conversations")

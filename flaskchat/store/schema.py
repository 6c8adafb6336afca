"""The tables. All begin with `flaskchat_`, so that a host may keep them in its own database.

Times are seconds since 1970 and are only shown, never compared: order comes from `position` and from journal ids,
leases come from counting (see store/lease.py). The exceptions are what an owner has used (usage.py), and for how long
nothing has happened in a conversation (forget.py): those go by the database's clock, which is one for all nodes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

VERSION_TABLE = "flaskchat_version"
HEAD = "0007"
"""The newest migration. Compared with the database at start, so that Alembic is imported only when there is work."""

SEARCH = "flaskchat_search"
"""SQLite's full-text index over titles and texts, kept by triggers; see store/search.py. Not part of the metadata."""

metadata = MetaData()

# SQLite numbers rows by a column that is called INTEGER, and each holds 64 bits; PostgreSQL's would be full in weeks.
_Long = BigInteger().with_variant(Integer, "sqlite")
_RUNNING = text("state = 'running'")

conversations = Table(
    "flaskchat_conversations",
    metadata,
    Column("number", _Long, primary_key=True),  # under which the search index knows it, with a minus
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(255), nullable=False),
    Column("title", Text, nullable=False),
    Column("model", String(255)),
    Column("system_prompt", Text),
    Column("current_leaf_id", String(64)),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("flaskchat_conversations_by_owner", "owner", "updated_at", "id"),
)

messages = Table(
    "flaskchat_messages",
    metadata,
    Column("number", _Long, primary_key=True),  # under which the search index knows it
    Column("id", String(64), nullable=False, unique=True),
    Column("conversation_id", ForeignKey("flaskchat_conversations.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("parent_id", String(64)),
    Column("role", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("parts", Text, nullable=False),  # JSON: what is not text, such as reasoning
    Column("model", String(255)),
    Column("status", String(16), nullable=False),
    Column("run_id", String(64)),
    Column("finish_reason", String(64)),
    Column("usage", Text),  # JSON
    Column("error", Text),  # JSON of the error event
    Column("created_at", Float, nullable=False),
    Index("flaskchat_messages_by_conversation", "conversation_id", "position", unique=True),
)

runs = Table(
    "flaskchat_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("conversation_id", ForeignKey("flaskchat_conversations.id", ondelete="CASCADE"), nullable=False),
    Column("message_id", String(64), nullable=False),
    Column("user_message_id", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("worker_id", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("first_row", _Long, nullable=False),  # of the journal, when it began: no older row is about it
    Column("last_seq", Integer, nullable=False),
    Column("upstream_closed_ms", Float),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Index("flaskchat_runs_by_conversation", "conversation_id"),
    Index("flaskchat_runs_running", "worker_id", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
    Index("flaskchat_runs_running_by_owner", "owner", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
)

# The events of a finished run: its frames, one after the other, exactly as they were sent.
run_events = Table(
    "flaskchat_run_events",
    metadata,
    Column("run_id", ForeignKey("flaskchat_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("frames", LargeBinary, nullable=False),
)

# One row per client id: the same id never starts a second generation.
requests = Table(
    "flaskchat_requests",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("client_id", String(128), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("run_id", ForeignKey("flaskchat_runs.id", ondelete="CASCADE"), nullable=False),
    Index("flaskchat_requests_by_run", "run_id"),
)

# What each message of the last day has used. It outlives its conversation; see store/usage.py.
usage = Table(
    "flaskchat_usage",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("at", Float, nullable=False),
    Column("tokens", Integer, nullable=False),
    Index("flaskchat_usage_by_owner", "owner", "at", "tokens"),
)

# One row per worker that holds a lease. `beats` counts; whoever sees it stand still for long enough takes over.
workers = Table(
    "flaskchat_workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
)

# One row per tick and worker: what every run of that worker got, and control (Stop). Ids only grow, also after deletes.
journal = Table(
    "flaskchat_journal",
    metadata,
    Column("id", _Long, primary_key=True),
    Column("worker_id", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

# A row for each process that holds streams, and for each key of which it holds some; see nodes.py. PostgreSQL's alone.
holders = Table(
    "flaskchat_holders",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("beats", Integer, nullable=False),
)
places = Table(
    "flaskchat_places",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("holder", ForeignKey("flaskchat_holders.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, nullable=False),
    Index("flaskchat_places_by_holder", "holder"),
)

# One row per question that was deleted, for a day: the digest of its owner and client id; see store/forgotten.py.
forgotten = Table(
    "flaskchat_forgotten",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("at", Float, nullable=False),
    Index("flaskchat_forgotten_by_time", "at"),
)

# One row: the oldest migration whose code can work on these tables. Written by migrations alone.
compatible = Table("flaskchat_compatible", metadata, Column("oldest", String(32), nullable=False))

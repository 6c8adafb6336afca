"""What owners have used, and their running replies.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    op.create_table(
        "flaskchat_usage",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("flaskchat_usage_by_owner", "flaskchat_usage", ["owner", "at", "tokens"], unique=False)
    op.create_index(
        "flaskchat_runs_running_by_owner",
        "flaskchat_runs",
        ["owner"],
        unique=False,
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    )


def downgrade() -> None:
    op.drop_index(
        "flaskchat_runs_running_by_owner", table_name="flaskchat_runs", sqlite_where=RUNNING
    )
    op.drop_index("flaskchat_usage_by_owner", table_name="flaskchat_usage")
    op.drop_table("flaskchat_usage")

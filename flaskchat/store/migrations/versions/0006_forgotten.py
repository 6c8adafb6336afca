"""Digests of the ids of deleted questions, for a day: see flaskchat/store/forgotten.py.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "flaskchat_forgotten",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("flaskchat_forgotten_by_time", "flaskchat_forgotten", ["at"])
    op.execute("UPDATE flaskchat_compatible SET oldest = '0004'")  # the versions before do not look at it


def downgrade() -> None:
    op.drop_table("flaskchat_forgotten")

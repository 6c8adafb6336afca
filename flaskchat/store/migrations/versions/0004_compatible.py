"""The oldest version whose code can work on these tables, so that a rolling update needs no pause.

Every migration after this one sets it: to the revision before its own where it only adds what older code does not miss,
to its own where older code would do harm.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table("flaskchat_compatible", sa.Column("oldest", sa.String(length=32), nullable=False))
    op.execute("INSERT INTO flaskchat_compatible (oldest) VALUES ('0003')")


def downgrade() -> None:
    op.drop_table("flaskchat_compatible")

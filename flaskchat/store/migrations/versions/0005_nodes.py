"""What the nodes on one PostgreSQL count together: open streams, by process. See flaskchat/nodes.py.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # On SQLite nobody uses them: one host counts by file locks.
    prefixes = ["UNLOGGED"] if op.get_bind().dialect.name == "postgresql" else []
    op.create_table(
        "flaskchat_holders",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("beats", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        prefixes=prefixes,
    )
    op.create_table(
        "flaskchat_places",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["holder"], ["flaskchat_holders.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "holder"),
        prefixes=prefixes,
    )
    op.create_index("flaskchat_places_by_holder", "flaskchat_places", ["holder"])
    op.execute("UPDATE flaskchat_compatible SET oldest = '0004'")


def downgrade() -> None:
    op.drop_table("flaskchat_places")
    op.drop_table("flaskchat_holders")
    op.execute("UPDATE flaskchat_compatible SET oldest = '0003'")

"""Record when an action was delivered, and whether its message was acknowledged.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch: SQLite can add a column with a default and drop one in place, and keeps what refers to the table.
    # Of what is there, or what the previous release adds, nobody says so any more: an acknowledgement is long overdue.
    long_ago = sa.Column(
        "delivered_at", sa.DateTime(timezone=True), nullable=False, server_default="1970-01-01 00:00:00"
    )
    op.add_column("action", long_ago)
    op.add_column("action", sa.Column("acknowledged", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("action", "acknowledged")
    op.drop_column("action", "delivered_at")

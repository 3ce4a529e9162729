"""Record the holder of leased work, and the share that it belongs to.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = ("push_step", "action", "notice", "job_report", "group_check")
DUE, HELD = sa.text("due_at IS NOT NULL"), sa.text("holder IS NOT NULL")


def upgrade() -> None:
    for table in TABLES:
        # Not in a batch, as in 0006. What is there is nobody's: it takes its turn as one share.
        op.add_column(table, sa.Column("share", sa.Text(), nullable=False, server_default="-"))
        op.add_column(table, sa.Column("holder", sa.Text(), nullable=True))
        columns = ["lane", "share", "due_at", "id"]
        op.create_index(f"ix_{table}_turn", table, columns, sqlite_where=DUE, postgresql_where=DUE)
        op.create_index(f"ix_{table}_holder", table, ["holder"], sqlite_where=HELD, postgresql_where=HELD)


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_holder", table)
        op.drop_index(f"ix_{table}_turn", table)
        op.drop_column(table, "holder")
        op.drop_column(table, "share")

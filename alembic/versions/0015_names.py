"""Rename columns to say what they hold.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

RENAMED = (
    *((table, "lease", "fencing_token") for table in ("push_step", "action", "notice", "job_report", "group_check")),
    ("job_report", "heard_at", "last_event_at"),
    ("pulse_queue", "deaf_from", "messages_lost_since"),
)


def upgrade() -> None:
    for table, before, after in RENAMED:
        op.alter_column(table, before, new_column_name=after)


def downgrade() -> None:
    for table, before, after in RENAMED:
        op.alter_column(table, after, new_column_name=before)

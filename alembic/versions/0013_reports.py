"""Index the list of job reports.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, columns, where in (
        ("ix_job_report_failed", ["state", "id"], sa.text("state IN ('failed', 'skipped')")),
        ("ix_job_report_no_push", ["state", "id"], sa.text("no_push_since IS NOT NULL")),
        ("ix_job_report_waiting", ["state", "id"], sa.text("due_at IS NOT NULL")),
    ):
        op.create_index(name, "job_report", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index("ix_job_report_waiting", "job_report")
    op.drop_index("ix_job_report_no_push", "job_report")
    op.drop_index("ix_job_report_failed", "job_report")

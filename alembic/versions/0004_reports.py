"""Create the tables of job reports.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_DUE = sa.text("due_at IS NOT NULL")
_OPEN = sa.text("stage < 3")


def _work() -> list[sa.Column[object]]:
    return [
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
    ]


def upgrade() -> None:
    op.create_table(
        "group_check",
        *_work(),
        sa.Column("task_group_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_group_check_due", "group_check", ["lane", "due_at"], sqlite_where=_DUE, postgresql_where=_DUE)
    op.create_table(
        "job_report",
        *_work(),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("environment", sa.String(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("revision_hash", sa.String(), nullable=True),
        sa.Column("task_group_id", sa.String(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("run", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=True),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("no_push_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id", "run_id", "environment"),
    )
    op.create_index("ix_job_report_due", "job_report", ["lane", "due_at"], sqlite_where=_DUE, postgresql_where=_DUE)
    op.create_index("ix_job_report_open", "job_report", ["heard_at"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.add_column(sa.Column("report_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key("fk_dead_letter_report", "job_report", ["report_id"], ["id"])


def downgrade() -> None:
    # what the release before does not know
    op.execute("DELETE FROM dead_letter WHERE kind IN ('task-event', 'job-report', 'group-check')")
    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.drop_constraint("fk_dead_letter_report", type_="foreignkey")
        batch_op.drop_column("report_id")
    op.drop_table("job_report")
    op.drop_table("group_check")

"""Record the trust domain of a repository, the refusal of an error task, and notices of a push.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("repository", sa.Column("trust_domain", sa.String(), nullable=True))
    op.add_column("push_step", sa.Column("error_task_refused", sa.Text(), nullable=True))
    with op.batch_alter_table("notice") as batch_op:
        batch_op.alter_column("action_id", existing_type=sa.Integer(), nullable=True)
        batch_op.add_column(sa.Column("step_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key("notice_step_id_fkey", "push_step", ["step_id"], ["id"])
        batch_op.create_check_constraint("ck_notice_owner", "(step_id IS NULL) <> (action_id IS NULL)")
    op.create_index("ix_notice_step_id", "notice", ["step_id"])


def downgrade() -> None:
    # of a push nobody could be told before
    op.execute("DELETE FROM dead_letter WHERE notice_id IN (SELECT id FROM notice WHERE action_id IS NULL)")
    op.execute("DELETE FROM notice WHERE action_id IS NULL")
    op.drop_index("ix_notice_step_id", "notice")
    with op.batch_alter_table("notice") as batch_op:
        batch_op.drop_constraint("ck_notice_owner", type_="check")
        batch_op.drop_constraint("notice_step_id_fkey", type_="foreignkey")
        batch_op.drop_column("step_id")
        batch_op.alter_column("action_id", existing_type=sa.Integer(), nullable=False)
    op.drop_column("push_step", "error_task_refused")
    op.drop_column("repository", "trust_domain")

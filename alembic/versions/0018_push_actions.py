"""Record actions on pushes.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("action") as table:
        table.add_column(sa.Column("push_id", sa.Integer(), nullable=True))
        table.add_column(sa.Column("generation", sa.Integer(), nullable=True))
        table.alter_column("task_id", existing_type=sa.String(), nullable=True)
        table.create_check_constraint("ck_action_subject", "(task_id IS NULL) <> (push_id IS NULL)")
    pushes = sa.text("push_id IS NOT NULL")
    op.create_index("ix_action_push_id", "action", ["push_id", "id"], sqlite_where=pushes, postgresql_where=pushes)


_ACTION = sa.table("action", sa.column("id", sa.Integer), sa.column("push_id", sa.Integer))
_NOTICE = sa.table("notice", sa.column("id", sa.Integer), sa.column("action_id", sa.Integer))
_DEAD_LETTER = sa.table("dead_letter", sa.column("notice_id", sa.Integer), sa.column("action_id", sa.Integer))


def downgrade() -> None:
    """Remove actions on pushes, of which the schema before knows nothing."""
    actions = sa.select(_ACTION.c.id).where(_ACTION.c.push_id.is_not(None))
    notices = sa.select(_NOTICE.c.id).where(_NOTICE.c.action_id.in_(actions))
    letters = _DEAD_LETTER.c.notice_id.in_(notices) | _DEAD_LETTER.c.action_id.in_(actions)
    op.execute(sa.delete(_DEAD_LETTER).where(letters))
    for name in ("notice", "planned_task", "delivery"):
        owned = sa.table(name, sa.column("action_id", sa.Integer))
        op.execute(sa.delete(owned).where(owned.c.action_id.in_(actions)))
    op.execute(sa.delete(_ACTION).where(_ACTION.c.push_id.is_not(None)))
    op.drop_index("ix_action_push_id", "action")
    with op.batch_alter_table("action") as table:
        table.drop_constraint("ck_action_subject", type_="check")
        table.alter_column("task_id", existing_type=sa.String(), nullable=False)
        table.drop_column("generation")
        table.drop_column("push_id")

"""Record what becomes of in-tree actions.

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_TEXTS = ("decision_task", "hook", "action_task", "action_task_state")
_TIMES = ("triggered_at", "action_task_seen_at")


def upgrade() -> None:
    op.add_column("action", sa.Column("in_tree", sa.Boolean(), server_default=sa.false(), nullable=False))
    for name in _TEXTS:
        op.add_column("action", sa.Column(name, sa.String(), nullable=True))
    for name in _TIMES:
        op.add_column("action", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    with_task = sa.text("action_task IS NOT NULL")
    followed = sa.text("action_task_seen_at IS NOT NULL")
    op.create_index(
        "ix_action_action_task", "action", ["action_task"], sqlite_where=with_task, postgresql_where=with_task
    )
    op.create_index(
        "ix_action_followed", "action", ["action_task_seen_at"], sqlite_where=followed, postgresql_where=followed
    )


_ACTION = sa.table(
    "action",
    *(sa.column(name) for name in ("state", "error", "in_tree")),
    sa.column("due_at", sa.DateTime(timezone=True)),
    sa.column("done_at", sa.DateTime(timezone=True)),
)


def downgrade() -> None:
    """Remove what was recorded, and end what is not done yet: the release before would make copies instead."""
    unfinished = sa.update(_ACTION).where(_ACTION.c.in_tree, _ACTION.c.due_at.is_not(None))
    reason = "it may have been triggered: it was not done when the database was taken back to an earlier release"
    op.execute(unfinished.values(state="failed", error=reason, done_at=_ACTION.c.due_at, due_at=None))
    op.drop_index("ix_action_followed", "action")
    op.drop_index("ix_action_action_task", "action")
    for name in (*_TIMES, *_TEXTS, "in_tree"):
        op.drop_column("action", name)

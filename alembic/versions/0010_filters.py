"""Index the filters of pushes and actions.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_push_user", "push", ["user", "id"])
    op.create_index("ix_action_requester", "action", ["requester", "id"])


def downgrade() -> None:
    op.drop_index("ix_action_requester", "action")
    op.drop_index("ix_push_user", "push")

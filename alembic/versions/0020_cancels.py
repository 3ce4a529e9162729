"""Record the tasks that an action on a push cancels.

Revision ID: 0020
Revises: 0018
"""

import sqlalchemy as sa

from alembic import op

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("action", sa.Column("cancels", sa.JSON(none_as_null=True), server_default="[]", nullable=False))


def downgrade() -> None:
    op.drop_column("action", "cancels")

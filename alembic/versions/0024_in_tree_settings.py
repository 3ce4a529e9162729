"""Let a repository say which actions its tree carries out, and which a button may name.

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_PRESSED = '["retrigger", "cancel"]'


def upgrade() -> None:
    op.add_column("repository", sa.Column("actions", sa.Text(), server_default="copies", nullable=False))
    op.add_column(
        "repository",
        sa.Column("pulse_actions", sa.JSON(none_as_null=True), server_default=_PRESSED, nullable=False),
    )


def downgrade() -> None:
    op.drop_column("repository", "pulse_actions")
    op.drop_column("repository", "actions")

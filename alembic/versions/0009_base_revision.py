"""Record the revision that a push is based on.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch, as in 0006.
    op.add_column("push", sa.Column("base_revision", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("push", "base_revision")

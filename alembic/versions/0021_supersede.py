"""Record which repositories have newer pushes supersede earlier ones, and which pushes were superseded.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_SUPERSEDED = sa.text("superseded_by IS NOT NULL")


def upgrade() -> None:
    op.add_column("repository", sa.Column("supersede", sa.Text(), server_default="off", nullable=False))
    op.add_column("push_step", sa.Column("superseded_by", sa.Integer(), nullable=True))
    op.create_index(
        "ix_push_step_superseded_by",
        "push_step",
        ["superseded_by"],
        sqlite_where=_SUPERSEDED,
        postgresql_where=_SUPERSEDED,
    )
    op.create_index("ix_push_of_user", "push", ["repository_id", "user", "push_id"])


def downgrade() -> None:
    op.drop_index("ix_push_of_user", "push")
    op.drop_index("ix_push_step_superseded_by", "push_step")
    op.drop_column("push_step", "superseded_by")
    op.drop_column("repository", "supersede")

"""Record the shifts of repositories.

Revision ID: 0014
Revises: 0013

Whoever holds a lease of the old kind when this runs has lost it: the repository is due at once.
"""

import sqlalchemy as sa

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_repository_leased", "repository")
    op.drop_column("repository", "leased_until")
    op.alter_column("repository", "lease", new_column_name="shift")
    op.add_column("repository", sa.Column("holder", sa.Text(), nullable=True))
    op.add_column("repository", sa.Column("etag_cursor", sa.Integer(), nullable=True))
    op.execute("UPDATE repository SET shift = shift + 1, etag = NULL")  # an ETag's cursor is not known
    held = sa.text("holder IS NOT NULL")
    op.create_index("ix_repository_holder", "repository", ["holder", "id"], sqlite_where=held, postgresql_where=held)
    op.create_table(
        "rate_grant",
        sa.Column("listener", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("answer", sa.Integer(), nullable=False),
        sa.Column("rate", sa.Float(), nullable=False),
        sa.Column("counted", sa.Float(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("listener", "host"),
    )


def downgrade() -> None:
    op.drop_table("rate_grant")
    op.drop_index("ix_repository_holder", "repository")
    op.drop_column("repository", "etag_cursor")
    op.drop_column("repository", "holder")
    op.alter_column("repository", "shift", new_column_name="lease")
    op.add_column("repository", sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
    leased = sa.text("leased_until IS NOT NULL")
    op.create_index(
        "ix_repository_leased", "repository", ["host", "leased_until"], sqlite_where=leased, postgresql_where=leased
    )

"""Give each action a key, and record adopted tasks and the project that routes name.

Revision ID: 0006
Revises: 0005
"""

import uuid

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch: SQLite can add a column with a default and drop one in place, and keeps what refers to the table.
    op.add_column("repository", sa.Column("route_project", sa.String(), nullable=True))
    # Nobody knows any more which tasks of earlier plans were found and which were made: none of them is cancelled.
    op.add_column("planned_task", sa.Column("adopted", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("action", sa.Column("key", sa.String(), nullable=False, server_default=""))
    action = sa.table("action", sa.column("id", sa.Integer()), sa.column("key", sa.String()))
    connection = op.get_bind()
    for (number,) in connection.execute(sa.select(action.c.id)).all():
        connection.execute(action.update().where(action.c.id == number).values(key=str(uuid.uuid4())))


def downgrade() -> None:
    op.drop_column("action", "key")
    op.drop_column("planned_task", "adopted")
    op.drop_column("repository", "route_project")

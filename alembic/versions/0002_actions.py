"""Create the tables of actions.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "action",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("requester", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("delivery", sa.String(), nullable=True),
        sa.Column("channel", sa.String(), nullable=True),
        sa.Column("redeliveries", sa.Integer(), nullable=False),
        sa.Column("ahead", sa.Boolean(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("plan_attempt", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.Column("left_out", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("notes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("failure_jobs", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("delivery"),
    )
    with op.batch_alter_table("action", schema=None) as batch_op:
        batch_op.create_index(
            "ix_action_due",
            ["lane", "due_at"],
            unique=False,
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        )
        batch_op.create_index(batch_op.f("ix_action_project"), ["project"], unique=False)
        batch_op.create_index(batch_op.f("ix_action_task_id"), ["task_id"], unique=False)

    op.create_table(
        "delivery",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "notice",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("action_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["action_id"],
            ["action.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("notice", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_notice_action_id"), ["action_id"], unique=False)
        batch_op.create_index(
            "ix_notice_due",
            ["lane", "due_at"],
            unique=False,
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        )

    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.add_column(sa.Column("action_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("notice_id", sa.Integer(), nullable=True))
        batch_op.create_foreign_key("fk_dead_letter_action", "action", ["action_id"], ["id"])
        batch_op.create_foreign_key("fk_dead_letter_notice", "notice", ["notice_id"], ["id"])

    with op.batch_alter_table("planned_task", schema=None) as batch_op:
        batch_op.add_column(sa.Column("action_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("copy_of", sa.String(), nullable=True))
        batch_op.alter_column("step_id", existing_type=sa.INTEGER(), nullable=True)
        batch_op.create_foreign_key("fk_planned_task_action", "action", ["action_id"], ["id"])
        batch_op.create_check_constraint("ck_planned_task_owner", "(step_id IS NULL) <> (action_id IS NULL)")
    with op.batch_alter_table("planned_task", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_planned_task_action_id"), ["action_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_planned_task_copy_of"), ["copy_of"], unique=False)


def downgrade() -> None:
    # what the release before does not know
    op.execute("DELETE FROM dead_letter WHERE action_id IS NOT NULL OR notice_id IS NOT NULL OR kind = 'announcement'")
    op.execute("DELETE FROM planned_task WHERE step_id IS NULL")
    op.execute("DELETE FROM push_step WHERE kind = 'announcement'")

    with op.batch_alter_table("planned_task", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_planned_task_copy_of"))
        batch_op.drop_index(batch_op.f("ix_planned_task_action_id"))
    with op.batch_alter_table("planned_task", schema=None) as batch_op:
        batch_op.drop_constraint("ck_planned_task_owner", type_="check")
        batch_op.drop_constraint("fk_planned_task_action", type_="foreignkey")
        batch_op.alter_column("step_id", existing_type=sa.INTEGER(), nullable=False)
        batch_op.drop_column("copy_of")
        batch_op.drop_column("action_id")

    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.drop_constraint("fk_dead_letter_notice", type_="foreignkey")
        batch_op.drop_constraint("fk_dead_letter_action", type_="foreignkey")
        batch_op.drop_column("notice_id")
        batch_op.drop_column("action_id")

    with op.batch_alter_table("notice", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_notice_due", sqlite_where=sa.text("due_at IS NOT NULL"), postgresql_where=sa.text("due_at IS NOT NULL")
        )
        batch_op.drop_index(batch_op.f("ix_notice_action_id"))

    op.drop_table("notice")
    op.drop_table("delivery")
    with op.batch_alter_table("action", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_action_task_id"))
        batch_op.drop_index(batch_op.f("ix_action_project"))
        batch_op.drop_index(
            "ix_action_due", sqlite_where=sa.text("due_at IS NOT NULL"), postgresql_where=sa.text("due_at IS NOT NULL")
        )

    op.drop_table("action")

"""Create indexes for a million rows.

Revision ID: 0012
Revises: 0011

Some replace a shorter one of the same name. Each table is locked for writes while its indexes are made: some seconds
for a million rows.
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

Indexes = list[tuple[str, str, list[str], str | None]]  # name, table, columns, of which rows

_WORK = ("push_step", "action", "notice", "job_report", "group_check")
_MONITORED = "(enabled AND deleted_at IS NULL)"
_UNCREATED, _WITH_BODY = "NOT created AND label <> 'error'", "definition IS NOT NULL"
_OF_STEP, _OF_ACTION = " AND step_id IS NOT NULL", " AND action_id IS NOT NULL"

OLD: Indexes = [
    ("ix_repository_turn", "repository", ["host", "turn"], None),
    ("ix_push_revision", "push", ["revision"], None),
    ("ix_push_revision_hash", "push", ["revision_hash"], None),
    ("ix_action_project", "action", ["project"], None),
    ("ix_action_task_id", "action", ["task_id"], None),
    ("ix_delivery_action_id", "delivery", ["action_id"], None),
    ("ix_planned_task_step_id", "planned_task", ["step_id"], None),
    ("ix_planned_task_action_id", "planned_task", ["action_id"], None),
    ("ix_planned_task_copy_of", "planned_task", ["copy_of"], None),
    ("ix_job_report_open", "job_report", ["heard_at"], "stage < 3"),
]

NEW: Indexes = [
    *((f"ix_{table}_oldest", table, ["lane", "since"], "due_at IS NOT NULL") for table in _WORK),
    *((f"ix_{table}_ended", table, ["done_at"], "due_at IS NULL") for table in _WORK),
    ("ix_repository_alias", "repository", ["alias", "id"], None),
    ("ix_repository_turn", "repository", ["host", "turn", "id"], _MONITORED),
    ("ix_repository_leased", "repository", ["host", "leased_until"], "leased_until IS NOT NULL"),
    ("ix_repository_good_poll", "repository", ["last_good_poll_at", "created_at"], _MONITORED),
    ("ix_repository_poll_failures", "repository", ["poll_failures"], _MONITORED),
    ("ix_push_number", "push", ["repository_id", "push_id", "generation"], None),
    ("ix_push_repository_id", "push", ["repository_id", "id"], None),
    ("ix_push_revision", "push", ["revision", "id"], None),
    ("ix_push_revision_hash", "push", ["revision_hash", "id"], None),
    ("ix_push_noticed_at", "push", ["noticed_at"], None),
    ("ix_push_step_state", "push_step", ["state", "push_id"], None),
    ("ix_push_step_since", "push_step", ["since"], None),
    ("ix_action_project", "action", ["project", "id"], None),
    ("ix_action_task_id", "action", ["task_id", "id"], None),
    ("ix_action_state", "action", ["state", "id"], None),
    ("ix_action_received", "action", ["id"], "(state = 'pending' AND planned_at IS NULL)"),
    ("ix_action_planned", "action", ["id"], "(state = 'pending' AND planned_at IS NOT NULL)"),
    ("ix_action_since", "action", ["since"], None),
    ("ix_delivery_action_id", "delivery", ["action_id", "at"], None),
    ("ix_delivery_of_none", "delivery", ["at"], "action_id IS NULL"),
    ("ix_planned_task_step_id", "planned_task", ["step_id", "plan_attempt", "position"], "step_id IS NOT NULL"),
    ("ix_planned_task_action_id", "planned_task", ["action_id", "plan_attempt", "position"], "action_id IS NOT NULL"),
    ("ix_planned_task_copy_of", "planned_task", ["copy_of", "action_id"], "copy_of IS NOT NULL"),
    ("ix_planned_task_step_uncreated", "planned_task", ["step_id", "plan_attempt"], _UNCREATED + _OF_STEP),
    ("ix_planned_task_action_uncreated", "planned_task", ["action_id", "plan_attempt"], _UNCREATED + _OF_ACTION),
    ("ix_planned_task_step_body", "planned_task", ["step_id"], _WITH_BODY + _OF_STEP),
    ("ix_planned_task_action_body", "planned_task", ["action_id"], _WITH_BODY + _OF_ACTION),
    ("ix_job_report_open", "job_report", ["heard_at"], "(stage < 3 AND state IN ('pending', 'done'))"),
    ("ix_group_check_waiting", "group_check", ["task_group_id"], "due_at IS NOT NULL"),
    *(
        (f"ix_dead_letter_{column}", "dead_letter", [column], f"{column} IS NOT NULL")
        for column in ("step_id", "action_id", "notice_id", "report_id")
    ),
    ("ix_dead_letter_kind", "dead_letter", ["kind", "id"], None),
    ("ix_dead_letter_since", "dead_letter", ["since"], None),
]


def _replace(indexes: Indexes, by: Indexes) -> None:
    for name, table, _, _ in indexes:
        op.drop_index(name, table)
    for name, table, columns, where in by:
        rows = None if where is None else sa.text(where)
        op.create_index(name, table, columns, sqlite_where=rows, postgresql_where=rows)


def upgrade() -> None:
    _replace(OLD, NEW)


def downgrade() -> None:
    _replace(NEW, OLD)

"""Create the table of deliveries.

Revision ID: 0008
Revises: 0007
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_UNSETTLED = sa.text("(redelivered OR NOT acknowledged OR NOT made_action)")
_TIME = sa.DateTime(timezone=True)

_DELIVERY = sa.table(
    "delivery",
    sa.column("key", sa.String),
    sa.column("digest", sa.String),
    sa.column("at", _TIME),
    sa.column("action_id", sa.Integer),
    sa.column("made_action", sa.Boolean),
    sa.column("channel", sa.String),
    sa.column("redelivered", sa.Boolean),
    sa.column("stamp", sa.Float),
    sa.column("acknowledged", sa.Boolean),
)
_ACTION = sa.table(
    "action",
    sa.column("id", sa.Integer),
    *(sa.column(name, sa.String) for name in ("kind", "project", "task_id", "requester", "source", "delivery")),
    sa.column("run_id", sa.Integer),
    sa.column("channel", sa.String),
    sa.column("delivered_at", _TIME),
    sa.column("acknowledged", sa.Boolean),
    sa.column("ahead", sa.Boolean),
    sa.column("redeliveries", sa.Integer),
)


def upgrade() -> None:
    with op.batch_alter_table("delivery") as batch_op:
        batch_op.add_column(sa.Column("action_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("made_action", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch_op.add_column(sa.Column("channel", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("redelivered", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("stamp", sa.Float(), nullable=False, server_default="0"))
        # of what cannot be matched any more, nobody waits for it
        batch_op.add_column(sa.Column("acknowledged", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch_op.create_foreign_key("fk_delivery_action", "action", ["action_id"], ["id"])
    _list_on_actions()
    op.create_index("ix_delivery_action_id", "delivery", ["action_id"])
    op.create_index(
        "ix_delivery_unsettled",
        "delivery",
        ["digest", "at"],
        sqlite_where=_UNSETTLED,
        postgresql_where=_UNSETTLED,
    )
    with op.batch_alter_table("action", naming_convention={"uq": "action_%(column_0_name)s_key"}) as batch_op:
        batch_op.drop_constraint("action_delivery_key", type_="unique")
        for name in ("delivery", "channel", "delivered_at", "acknowledged", "redeliveries", "ahead"):
            batch_op.drop_column(name)
    with op.batch_alter_table("dead_letter") as batch_op:
        batch_op.add_column(sa.Column("digest", sa.String(), nullable=True))
        batch_op.create_unique_constraint("dead_letter_digest_key", ["digest"])


def _list_on_actions() -> None:
    """List each key on the action that it brought; of the last days, also what the broker may bring again."""
    connection = op.get_bind()
    connection.execute(
        _DELIVERY.update().values(
            action_id=sa.select(_ACTION.c.id).where(_ACTION.c.delivery == _DELIVERY.c.key).scalar_subquery()
        )
    )
    recent = _ACTION.join(_DELIVERY, _DELIVERY.c.action_id == _ACTION.c.id)
    since = datetime.now(UTC) - timedelta(days=2)
    presses = sa.select(_ACTION).select_from(recent).where(_ACTION.c.source == "pulse", _DELIVERY.c.at > since)
    for press in connection.execute(presses).all():
        values = [press.task_id, press.run_id, press.kind, press.project, press.requester]
        at = press.delivered_at
        connection.execute(
            _DELIVERY.update()
            .where(_DELIVERY.c.key == press.delivery)
            .values(
                digest=hashlib.sha256(json.dumps(values).encode()).hexdigest(),
                channel=press.channel or "",
                redelivered=press.ahead,
                # SQLite's times are UTC without saying so
                stamp=(at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(),
                acknowledged=press.acknowledged,
            )
        )


def downgrade() -> None:
    with op.batch_alter_table("dead_letter", naming_convention={"uq": "dead_letter_%(column_0_name)s_key"}) as batch_op:
        batch_op.drop_constraint("dead_letter_digest_key", type_="unique")
        batch_op.drop_column("digest")
    long_ago = "1970-01-01 00:00:00"
    with op.batch_alter_table("action") as batch_op:
        batch_op.add_column(sa.Column("delivery", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("channel", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("delivered_at", _TIME, nullable=False, server_default=long_ago))
        batch_op.add_column(sa.Column("acknowledged", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("redeliveries", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("ahead", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_unique_constraint("action_delivery_key", ["delivery"])
    _give_back()
    op.drop_index("ix_delivery_unsettled", "delivery")
    op.drop_index("ix_delivery_action_id", "delivery")
    with op.batch_alter_table("delivery") as batch_op:
        batch_op.drop_constraint("fk_delivery_action", type_="foreignkey")
        for name in ("action_id", "made_action", "channel", "redelivered", "stamp", "acknowledged"):
            batch_op.drop_column(name)


def _give_back() -> None:
    """Say of each action which delivery made it."""
    connection = op.get_bind()
    made = sa.and_(_DELIVERY.c.action_id == _ACTION.c.id, _DELIVERY.c.made_action)
    columns = {
        _ACTION.c.delivery: _DELIVERY.c.key,
        _ACTION.c.channel: sa.func.nullif(_DELIVERY.c.channel, ""),
        _ACTION.c.delivered_at: _DELIVERY.c.at,
        _ACTION.c.acknowledged: _DELIVERY.c.acknowledged,
        _ACTION.c.ahead: _DELIVERY.c.redelivered,
    }
    connection.execute(
        _ACTION.update()
        .where(sa.exists().where(made))
        .values({column: sa.select(value).where(made).scalar_subquery() for column, value in columns.items()})
    )
    # an Idempotency-Key has a digest there; a press has none
    pulse = sa.select(_ACTION.c.id).where(_ACTION.c.source == "pulse")
    connection.execute(_DELIVERY.update().where(_DELIVERY.c.action_id.in_(pulse)).values(digest=None))

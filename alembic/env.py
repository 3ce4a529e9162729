"""Run the migrations on the database that `service.store.database` names, one process at a time."""

from typing import Literal

from alembic.autogenerate.api import AutogenContext
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel
from sqlmodel.sql.sqltypes import AutoString

import service.store.models  # noqa: F401 - the tables register themselves
from alembic import context
from service.store.database import Utc

_LOCK = 0x7C74_7268  # any number that is ours alone


def plain(kind: str, item: object, _: AutogenContext) -> str | Literal[False]:
    """Render SQLAlchemy's own types, so that migrations stay valid after changes of the models' types."""
    if kind == "type" and isinstance(item, Utc):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        return "sa.String()"
    return False


url = context.config.attributes["url"]
waits = {"timeout": 60} if url.startswith("sqlite") else {}
engine = create_engine(url, poolclass=NullPool, connect_args=waits)
with engine.begin() as connection:
    if engine.dialect.name == "sqlite":
        # the driver begins nothing before DDL: a migration that broke would leave a part behind, and two that start
        # together would both make the tables
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if engine.dialect.name == "postgresql":
        # two pods that start together: the second waits, then finds nothing to do
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,  # SQLite cannot alter a table in place
        compare_type=True,
        render_item=plain,
    )
    context.run_migrations()
engine.dispose()

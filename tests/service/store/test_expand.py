"""Each migration works with the code of the release before it: expand first, contract a release later.

While a rolling update goes on, and after a roll-back, old code runs on the new schema. It names the columns that it
knows, so its statements must go on working when there are more.
"""

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Boolean, Column, DateTime, Float, Integer, LargeBinary, MetaData, Table, create_engine
from sqlalchemy import select as select_columns
from sqlalchemy.pool import NullPool

from service.store.database import revisions, sync_url, upgrade

BASE = "0008"
"""The schema that the first release has: what comes before it ran nowhere, and may contract."""

REVISIONS = revisions()[revisions().index(BASE) :]
VERSIONS = Path(__file__).resolve().parents[3] / "alembic" / "versions"

UNRELEASED = {"0014", "0015"}
"""Contracting ones that the first release has, too: listeners and services before them could not work together."""

CONTRACTING = {"new_column_name", "drop_table", "drop_column", "drop_constraint", "rename_table", "execute"}
"""Operations that take something away from old code, or may: a release in between, and a line here that says so."""


def _value(column: Column[Any]) -> Any:
    kinds: list[tuple[type, Any]] = [
        (Boolean, True),
        (Integer, 1),
        (Float, 1.0),
        (DateTime, datetime(2026, 1, 1, tzinfo=UTC)),
        (JSON, []),
        (LargeBinary, b"x"),
    ]
    return next((value for kind, value in kinds if isinstance(column.type, kind)), "x")


@pytest.mark.parametrize(
    "position",
    [n for n, revision in enumerate(REVISIONS) if n and revision not in UNRELEASED],
    ids=REVISIONS.__getitem__,
)
def test_what_the_release_before_writes_and_reads_still_works(empty_database_url: str, position: int) -> None:
    upgrade(empty_database_url, REVISIONS[position - 1])
    engine = create_engine(sync_url(empty_database_url), poolclass=NullPool)
    before = MetaData()
    before.reflect(engine)
    upgrade(empty_database_url, REVISIONS[position])
    tables: list[Table] = [table for table in before.sorted_tables if table.name != "alembic_version"]
    assert tables
    with engine.begin() as connection:
        for table in tables:
            row = {column.name: None if column.nullable else _value(column) for column in table.columns}
            if {"step_id", "action_id"} <= set(table.columns.keys()):
                row["step_id"] = 1  # a plan has an owner, and so has a notice
            if {"task_id", "push_id"} <= set(table.columns.keys()):
                row["task_id"] = "x"  # an action is about a task or a push
            connection.execute(table.insert().values(row))
        for table in tables:
            assert len(connection.execute(select_columns(*table.columns)).all()) == 1
    engine.dispose()


def test_no_migration_takes_anything_away() -> None:
    for path in sorted(path for path in VERSIONS.glob("*.py") if path.name > f"{BASE}_~"):
        (upgrading,) = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
        ]
        called = {
            node.func.attr
            for node in ast.walk(upgrading)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        } | {node.arg for node in ast.walk(upgrading) if isinstance(node, ast.keyword)}
        if path.name.partition("_")[0] in UNRELEASED:
            assert called & CONTRACTING, f"{path.name} takes nothing away: it needs no exception"
            continue
        assert not called & CONTRACTING, f"{path.name} contracts: do it a release later than the code stops using it"

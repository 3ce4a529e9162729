"""Rows that are made without their constructor."""

import re
from typing import Any

import pytest
from sqlmodel import SQLModel, select

from service.clock import now
from service.store.database import Database
from service.store.models import PlannedTask, Push, PushStep, Repository, StepKind
from service.store.rows import new_row

VALUES: list[tuple[type[SQLModel], dict[str, Any]]] = [
    (PushStep, {"push_id": 1, "kind": StepKind.GRAPH, "lane": "graph x", "due_at": now(), "since": now()}),
    (
        Push,
        {
            "repository_id": 1,
            "generation": 2,
            "base_revision": None,
            "push_id": 2,
            "user": "u",
            "date": now(),
            "revision": "a",
            "revision_hash": "b",
            "changesets": [],
            "nodes": ["a"],
            "noticed_at": now(),
        },
    ),
    (PlannedTask, {"task_id": "t", "step_id": 1, "position": 3, "label": "task", "name": "n", "definition": {"a": 1}}),
]


@pytest.mark.parametrize(("model", "values"), VALUES)
def test_a_row_is_what_the_constructor_makes(model: type[SQLModel], values: dict[str, Any]) -> None:
    row, constructed = new_row(model, **values), model(**values)
    assert row.model_dump() == constructed.model_dump()
    assert type(row) is model


def test_defaults_that_are_made_are_made_for_each_row() -> None:
    first, second = (new_row(Repository, alias="a", url="u", host="h", level="3", last_push_id=0) for _ in range(2))
    assert first.scopes == []
    assert first.scopes is not second.scopes
    assert first.created_at is not second.created_at


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"push_id": 1, "kind": StepKind.GRAPH}, "no columns [], and no values of ['lane']"),
        ({"push_id": 1, "kind": StepKind.GRAPH, "lanes": "x"}, "no columns ['lanes'], and no values of ['lane']"),
        ({**VALUES[0][1], "lanes": "x"}, "no columns ['lanes'], and no values of []"),
    ],
)
def test_values_must_be_those_of_the_columns(values: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=re.escape(told)):
        new_row(PushStep, **values)


async def test_a_session_stores_it_and_its_changes(sqlite: Database) -> None:
    repository = new_row(Repository, alias="a", url="u", host="h", level="3", last_push_id=0)
    async with sqlite.writing() as session:
        session.add(repository)
        await session.flush()
        repository.last_push_id = 7
    async with sqlite.reading() as session:
        assert (await session.exec(select(Repository.last_push_id))).all() == [7]

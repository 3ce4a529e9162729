"""Distinct values of a column, on both databases."""

from typing import Any

import pytest
from sqlmodel import col, select

from service.store.database import Database
from service.store.distinct import distinct_of
from service.store.models import GroupCheck


async def lanes_of(database: Database, *conditions: object) -> list[str | None]:
    values = distinct_of(col(GroupCheck.lane), "lanes", *conditions)
    async with database.reading() as session:
        return list((await session.exec(select(values.c.lane))).all())


async def store(database: Database, *lanes: str, finished: bool = False) -> None:
    times: dict[str, Any] = {"due_at": None} if finished else {}
    async with database.writing() as session:
        session.add_all([GroupCheck(task_group_id="G", lane=lane, **times) for lane in lanes])


async def test_each_value_comes_once_in_order_and_a_null_ends_the_list(database: Database) -> None:
    await store(database, "b", "a", "c", "b", "a", "b")
    assert await lanes_of(database) == ["a", "b", "c", None]


async def test_only_rows_that_meet_the_conditions_count(database: Database) -> None:
    await store(database, "a", "b")
    await store(database, "b", "c", finished=True)
    assert await lanes_of(database, col(GroupCheck.due_at).is_not(None)) == ["a", "b", None]


@pytest.mark.parametrize("condition", [True, False])
async def test_an_empty_table_has_no_values(database: Database, condition: bool) -> None:
    conditions = [col(GroupCheck.due_at).is_not(None)] if condition else []
    assert await lanes_of(database, *conditions) == [None]

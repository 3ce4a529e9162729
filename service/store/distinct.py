"""Query the distinct values of an indexed column, with one index look-up per value and not per row."""

from typing import Any

from sqlalchemy import func
from sqlmodel import select


def distinct_of(column: Any, name: str, *conditions: Any) -> Any:
    """Return a CTE of the distinct values of `column`, in a column of the same name, and a row with NULL.

    An index of the rows that meet the `conditions` must begin with this column.
    """
    values: Any = select(func.min(column).label(column.key)).where(*conditions).cte(name, recursive=True)
    value = values.c[column.key]
    following = select(func.min(column)).where(*conditions, column > value).scalar_subquery()
    return values.union_all(select(following).where(value.is_not(None)))

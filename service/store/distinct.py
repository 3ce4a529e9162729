"""The distinct values of an indexed column, found from one to the next, however many rows have each."""

from typing import Any

from sqlalchemy import func
from sqlmodel import select


def distinct_of(column: Any, name: str, *conditions: Any) -> Any:
    """Return a CTE of the values of `column`, in a column of that name; it has a row of NULL too.

    There must be an index of what meets the `conditions` that begins with this column.
    """
    values: Any = select(func.min(column).label(column.key)).where(*conditions).cte(name, recursive=True)
    value = values.c[column.key]
    following = select(func.min(column)).where(*conditions, column > value).scalar_subquery()
    return values.union_all(select(following).where(value.is_not(None)))

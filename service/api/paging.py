"""Pages of a list that cost the same however many rows a table has.

One filter is looked up in an index that has the list's order (`candidates`); the others are applied to what it finds,
up to `MOST_EXAMINED` rows. So no combination of filters makes the database read a table: where matches are rare, a
page is short, and `next` goes on behind what was looked at.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ARRAY, Integer, any_, literal

from service.errors import Problem
from service.store.database import Session

FIRST = 2**31 - 1
"""An id above all others: the first page is read as every other one."""

CHUNK = 1_000
"""The most rows that one query examines."""

MOST_EXAMINED = 2_000
"""The most rows that are examined for one page."""


async def page(
    session: Session,
    candidates: Sequence[Any],
    key: Any,
    rows: Callable[[Callable[[Any], Any]], Any],
    limit: int,
    after: str | None,
) -> tuple[list[Any], str | None]:
    """Return a page's rows, and what `after` must be for the next page; None: there are no more.

    `candidates` select ids, the column `key`, by one filter; `rows(among)` selects (id, ...) of those that match all,
    where `among(column)` is the condition that it has one of the ids that were found.
    """
    before = _id_of(after, FIRST)
    matches: list[Any] = []
    examined, size = 0, limit + 1
    while True:
        ids: list[int] = []
        for query in candidates:
            ids += await session.exec(query.where(key < before).order_by(key.desc()).limit(size))
        ids = sorted(ids, reverse=True)[:size]
        if ids:
            matching = await session.exec(rows(_among(session, ids)))
            matches += sorted(matching, key=lambda row: row[0], reverse=True)
        if len(matches) > limit:
            return matches[:limit], _opaque(matches[limit - 1][0])
        if len(ids) < size:
            return matches, None
        # where most match, few are lacking, and rows have bodies; where few do, the queries are soon large
        examined, before, size = examined + size, ids[-1], min(4 * size, CHUNK)
        if examined >= MOST_EXAMINED:
            return matches, _opaque(before)


async def page_of_all(
    session: Session, query: Any, key: Any, limit: int, after: str | None, *, newest_first: bool
) -> tuple[list[Any], str | None]:
    """Return a page of a list without filters, in the order of the column `key`, and the next page's `after`.

    Each row of `query` is a model with an `id`, or begins with one.
    """
    if newest_first:
        query = query.where(key < _id_of(after, FIRST)).order_by(key.desc())
    else:
        query = query.where(key > _id_of(after, 0)).order_by(key)
    rows = list((await session.exec(query.limit(limit + 1))).all())
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], _opaque((last if hasattr(last, "id") else last[0]).id)


def _id_of(after: str | None, first: int) -> int:
    """Return the id behind the `after` of a request, `first` if it has none. Raises a 422."""
    if after is None:
        return first
    try:
        digits = base64.b64decode(after.encode(), altchars=b"-_", validate=True)
        if not digits.isdigit() or not 0 <= (number := int(digits)) < 2**31:
            raise ValueError(after)
    except ValueError:
        raise Problem(422, "Invalid request", f"after: {after!r} is no `next` of an earlier page") from None
    return number


def _opaque(last_id: int) -> str:
    return base64.urlsafe_b64encode(str(last_id).encode()).decode()


def _among(session: Session, ids: list[int]) -> Callable[[Any], Any]:
    if session.get_bind().dialect.name == "postgresql":  # one parameter: a thousand take many milliseconds to bind
        return lambda column: column == any_(literal(ids, ARRAY(Integer)))
    return lambda column: column.in_(ids)

"""Pages of a list, newest first, that cost the same however many rows a table has.

One filter is looked up in an index that has the list's order (`candidates`); the others are applied to what it finds,
up to `MOST_EXAMINED` rows. So no combination of filters makes the database read a table: where matches are rare, a
page is short, and `next` goes on behind what was looked at.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ARRAY, Integer, any_, literal

from service.store.database import Session

FIRST = 2**31 - 1
"""Above all ids: each page is read in the same way."""

CHUNK = 1_000
"""Rows that are looked at in one query at most."""

MOST_EXAMINED = 2_000
"""Rows that are looked at for one page."""


async def page(
    session: Session,
    candidates: Sequence[Any],
    key: Any,
    rows: Callable[[Callable[[Any], Any]], Any],
    limit: int,
    before: int | None,
) -> tuple[list[Any], int | None]:
    """Return a page's rows, and the id below which the next page begins; None: there are no more.

    `candidates` select ids, the column `key`, by one filter; `rows(among)` selects (id, ...) of those that match all,
    where `among(column)` is the condition that it has one of the ids that were found.
    """
    before = FIRST if before is None else before
    found: list[Any] = []
    examined, size = 0, limit + 1
    while True:
        ids: list[int] = []
        for query in candidates:
            ids += await session.exec(query.where(key < before).order_by(key.desc()).limit(size))
        ids = sorted(ids, reverse=True)[:size]
        if ids:
            matching = await session.exec(rows(_among(session, ids)))
            found += sorted(matching, key=lambda row: row[0], reverse=True)
        if len(found) > limit:
            return found[:limit], found[limit - 1][0]
        if len(ids) < size:
            return found, None
        # where most match, few are lacking, and rows have bodies; where few do, the queries are soon large
        examined, before, size = examined + size, ids[-1], min(4 * size, CHUNK)
        if examined >= MOST_EXAMINED:
            return found, before


def _among(session: Session, ids: list[int]) -> Callable[[Any], Any]:
    if session.get_bind().dialect.name == "postgresql":  # one parameter: a thousand take many milliseconds to bind
        return lambda column: column == any_(literal(ids, ARRAY(Integer)))
    return lambda column: column.in_(ids)

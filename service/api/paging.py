"""Pages of a list, newest first, that cost the same however many rows a table has.

One filter is looked up in an index that has the list's order (`candidates`); the others are applied to what it finds,
some hundred rows at a time, and up to `MOST_EXAMINED`. So no combination of filters makes the database read a table:
where matches are rare, a page is short, and `next` goes on behind what was looked at.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlmodel import col

from service.database import Session

FIRST = 2**31 - 1
"""Above all ids: each page is read in the same way."""

CHUNK = 500
"""Rows that are looked at in one query, beyond the first."""

MOST_EXAMINED = 10_000
"""Rows that are looked at for one page."""


async def page(
    session: Session,
    candidates: Sequence[Any],
    key: Any,
    rows: Callable[[Sequence[int]], Any],
    limit: int,
    before: int | None,
) -> tuple[list[Any], int | None]:
    """Return a page's rows, and the id below which the next page begins; None: there are no more.

    `candidates` select ids, the column `key`, by one filter; `rows(ids)` selects (id, ...) of those that match all.
    """
    before = FIRST if before is None else before
    found: list[Any] = []
    examined, size = 0, limit + 1
    while True:
        ids: list[int] = []
        for query in candidates:
            ids += await session.exec(query.where(key < before).order_by(col(key).desc()).limit(size))
        ids = sorted(ids, reverse=True)[:size]
        found += sorted(await session.exec(rows(ids)), key=lambda row: row[0], reverse=True) if ids else []
        if len(found) > limit:
            return found[:limit], found[limit - 1][0]
        if len(ids) < size:
            return found, None
        examined, before, size = examined + size, ids[-1], CHUNK
        if examined >= MOST_EXAMINED:
            return found, before

"""Page through lists by continuation tokens, as the queue does."""

import re
from bisect import bisect_right

from sandbox.taskcluster import checks
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.tasks import Json

_TOKEN = "v1-"
_TOKEN_FORM = re.compile(r"v1-((?:[0-9a-f]{2})+)")


def paged(ids: list[str], token: str | None, limit: str | None) -> tuple[list[str], Json]:
    """Return the page of sorted ids after the token, and `{continuationToken}` if there may be more."""
    size = checks.page_size(limit)
    start = 0 if token is None else bisect_right(ids, _untoken(token))
    page = ids[start : start + size]
    more = start + size < len(ids)
    return page, {"continuationToken": _tokenize(page[-1])} if more else {}


def paged_from(items: list[Json], token: str | None, limit: str | None) -> tuple[list[Json], Json]:
    """Return the page of items from the place that the token names, and `{continuationToken}` if there are more."""
    size = checks.page_size(limit)
    place = "0" if token is None else _untoken(token)
    if not place.isdecimal():
        raise ApiError("InputError", "Invalid continuation token")
    start = int(place)
    more = start + size < len(items)
    return items[start : start + size], {"continuationToken": _tokenize(str(start + size))} if more else {}


def _tokenize(place: str) -> str:
    return _TOKEN + place.encode().hex()


def _untoken(token: str) -> str:
    match = _TOKEN_FORM.fullmatch(token)
    if match is None:
        raise ApiError(
            "InvalidRequestArguments",
            f'Query-string parameter: "continuationToken" given as "{token}" must match regular expression: '
            f'"/{_TOKEN_FORM.pattern}/"',
        )
    return bytes.fromhex(match[1]).decode("utf-8", "replace")

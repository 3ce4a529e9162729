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
    return page, {"continuationToken": _TOKEN + page[-1].encode().hex()} if more else {}


def _untoken(token: str) -> str:
    match = _TOKEN_FORM.fullmatch(token)
    if match is None:
        raise ApiError(
            "InvalidRequestArguments",
            f'Query-string parameter: "continuationToken" given as "{token}" must match regular expression: '
            f'"/{_TOKEN_FORM.pattern}/"',
        )
    return bytes.fromhex(match[1]).decode("utf-8", "replace")

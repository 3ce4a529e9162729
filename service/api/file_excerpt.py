"""Quote the lines of `.taskcluster.yml` around an error, for people who look at a push that failed."""

import asyncio
import re
from dataclasses import dataclass

from service.clients.hg import Hg
from service.engine.sized_cache import SizedCache
from service.errors import UpstreamError

AROUND = 3
"""Lines before and after the one with the error."""

MAX_LINE = 200
"""Characters of a line that are quoted."""

WAIT = 1.0
"""Seconds that a page waits for hg."""

_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
"""What YAML takes for the end of a line."""


@dataclass(frozen=True)
class QuotedLine:
    """A line of a file."""

    number: int
    text: str
    wrong: bool  # the error is here


class FileExcerpts:
    """Quotes of files at revisions, which never change. One file is fetched at a time."""

    def __init__(self) -> None:
        self._excerpts = SizedCache(4 * 1024 * 1024)
        self._slot = asyncio.Lock()

    async def quote(self, hg: Hg, url: str, revision: str, path: str, line: int) -> list[QuotedLine]:
        """Return the lines around this one; none if the file cannot be had now."""
        key = (url, revision, path, line)
        known: list[QuotedLine] | None = self._excerpts.get(key)
        if known is None:
            try:
                async with asyncio.timeout(WAIT), self._slot:
                    content = await hg.raw_file(url, revision, path)
            except (UpstreamError, TimeoutError):
                return []
            known = excerpt(content or b"", line)
            self._excerpts.put(key, known, 200 + sum(200 + 4 * len(each.text) for each in known))
        return known


def excerpt(content: bytes, line: int) -> list[QuotedLine]:
    """Return the lines around this one, which counts from 1."""
    lines = _BREAK.split(content.decode(errors="replace"))
    begin, end = max(0, line - 1 - AROUND), line + AROUND
    return [
        QuotedLine(number, text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…", number == line)
        for number, text in enumerate(lines[begin:end], begin + 1)
    ]

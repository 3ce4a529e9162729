"""Quote the lines around an error, for once for all who look."""

from typing import Any

import pytest

from service.api import file_excerpt
from service.api.file_excerpt import MAX_LINE, FileExcerpts, excerpt
from service.errors import Unavailable


def test_the_lines_around_the_error_are_quoted_as_yaml_counts_them() -> None:
    content = b"1\n2\r\n3\r4\xc2\x855\n6\n7\n8"
    lines = excerpt(content, 5)
    assert [(line.number, line.text) for line in lines] == [(n, str(n)) for n in range(2, 9)]
    assert [line.number for line in lines if line.wrong] == [5]
    assert [line.number for line in excerpt(content, 1)] == [1, 2, 3, 4]
    assert excerpt(b"", 7) == []


def test_no_line_is_long_and_no_bytes_are_refused() -> None:
    (line,) = excerpt(b"\xff" + b"x" * 1_000_000, 1)
    assert len(line.text) == MAX_LINE + 1
    assert line.text.startswith("\N{REPLACEMENT CHARACTER}x")


class Files:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def raw_file(self, *_: str) -> bytes | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        content: bytes | None = answer
        return content


async def test_a_file_is_fetched_once_and_asked_for_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    files: Any = Files(Unavailable("hg", "500"), b"a\nb", None)
    excerpts = FileExcerpts()
    assert await excerpts.quote(files, "u", "r", "f", 1) == []
    for _ in range(2):
        assert [line.text for line in await excerpts.quote(files, "u", "r", "f", 1)] == ["a", "b"]
    assert [line.text for line in await excerpts.quote(files, "u", "other", "f", 1)] == [""]
    assert files.answers == []
    monkeypatch.setattr(file_excerpt, "WAIT", 0.01)
    async with excerpts._slot:
        assert await excerpts.quote(files, "u", "third", "f", 1) == []

"""What several tests of pages need: strangers' texts, and the statements that a page sends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from tests.service.asgi import Api

XSS = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;{{7*7}}</title></textarea>"
"""What a stranger may write wherever a text is taken."""


def is_escaped(page: str) -> bool:
    """Return True if nothing of `XSS` became a part of the page."""
    return not any(
        part in page for part in ("<script>", "<img", "onerror=alert(2)>", "<b>", "49</title>", "</textarea>")
    )


@contextmanager
def statements(api: Api) -> Iterator[list[str]]:
    """Note every statement that is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    for engine in api.database.engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        for engine in api.database.engines:
            event.remove(engine, "before_cursor_execute", note)

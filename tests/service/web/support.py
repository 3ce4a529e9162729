"""What several tests of pages need: strangers' texts, and the statements that a page sends."""

import re
from contextlib import AbstractContextManager

from tests.service.asgi import Api
from tests.service.harness import sent_statements

XSS = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;{{7*7}}</title></textarea>"
"""What a stranger may write wherever a text is taken."""


def is_escaped(page: str) -> bool:
    """Return True if nothing of `XSS` became a part of the page."""
    parts = ("<script>", "<img", "onerror=alert(2)>", "<b>", "49</title>")
    return page.count("</textarea>") == page.count("<textarea") and not any(part in page for part in parts)


def without_picture(page: str) -> str:
    """Return a page without its timeline, whose size is not counted."""
    return re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)


def statements(api: Api) -> AbstractContextManager[list[str]]:
    """Note every statement that is sent to the database meanwhile."""
    return sent_statements(api.database)

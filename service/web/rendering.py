"""Render templates. Everything is escaped, unless a template of ours says otherwise."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from service.sanitize import escape_unstorable
from service.web.views import Items
from service.web.words import tone_of

HERE = Path(__file__).parent

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer, with which browsers send the forms' Origin as null
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of each page."""


@cache
def static_file(name: str) -> tuple[bytes, str]:
    """Return the content of a static file, and the digest in its address."""
    content = (HERE / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


def path_of(*parts: object, **query: object) -> str:
    """Return a path of the page, with these parts and this query quoted. What is empty in the query is left out."""
    path = "".join(f"/{quote(escape_unstorable(str(part)), safe='')}" for part in parts) or "/"
    given = {name: escape_unstorable(str(value)) for name, value in query.items() if value not in {None, ""}}
    return f"{path}?{urlencode(given)}" if given else path


def format_time(time: datetime | None) -> str:
    """Return a time for people, in UTC."""
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def format_duration(begin: datetime | None, end: datetime | None) -> str:
    """Return the time between two times for people, to the second."""
    if begin is None or end is None:
        return "-"
    seconds = max(0, round((end - begin).total_seconds()))
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    parts = [(days, "d"), (hours, "h"), (rest // 60, "min"), (rest % 60, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"


def format_json(value: Any) -> str:
    """Return JSON for people, in lines."""
    return json.dumps(value, indent=2, ensure_ascii=False)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["time"] = format_time
    environment.filters["pretty"] = format_json
    environment.globals["duration"] = format_duration
    environment.globals["tone_of"] = tone_of
    environment.globals["path_of"] = path_of
    return environment


def render_text(template: str, **values: Any) -> str:
    """Return what a template that is no page says."""
    return escape_unstorable(_environment().get_template(template).render(**values))


def render(template: str, base: str, status: int = 200, *, items: Items | None = None, **values: Any) -> Response:
    """Return a page, and note its items. `base` is the path below which a proxy serves us."""

    def url(*parts: object, **query: object) -> str:
        return base + path_of(*parts, **query)

    def static(name: str) -> str:
        return url("static", static_file(name)[1], name)

    item = Items() if items is None else items
    text = _environment().get_template(template).render(url=url, static=static, item=item, **values)
    headers: Mapping[str, str] = HEADERS
    return Response(escape_unstorable(text).encode(), status, headers, "text/html; charset=utf-8")

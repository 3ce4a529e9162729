"""`/problems`: the page that the `type` of each problem links to, made from `docs/problems.md`."""

import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from service.errors import problem_anchor

router = APIRouter(include_in_schema=False)

_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def source_path() -> Path:
    """Return the path of the page's text, which is within the package in a wheel, in `docs/` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_docs"
    return (installed if installed.is_dir() else package.parent / "docs") / "problems.md"


@cache
def rendered_page() -> str:
    """Return the page as HTML, in which each heading has an anchor."""
    from markdown_it import MarkdownIt  # noqa: PLC0415 - 3 MB, which few need

    body = MarkdownIt().render(source_path().read_text())
    body = re.sub(r"<h2>(.*?)</h2>", lambda heading: f'<h2 id="{problem_anchor(heading[1])}">{heading[1]}</h2>', body)
    head = '<meta charset="utf-8"><title>Problems</title>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>'


@router.get("/problems")
async def get_problems() -> HTMLResponse:
    """Return the explanations of all problems."""
    return HTMLResponse(rendered_page(), headers={"Content-Security-Policy": _POLICY, "Cache-Control": "max-age=3600"})

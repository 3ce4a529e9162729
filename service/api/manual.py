"""`/problems` and `/alerts`: pages of `docs/`, to which problems lead by `type` and alerts by `runbook_url`."""

import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from service.errors import problem_anchor

router = APIRouter(include_in_schema=False)

_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def source_path(name: str) -> Path:
    """Return the path of a page's text, which is within the package in a wheel, in `docs/` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_docs"
    return (installed if installed.is_dir() else package.parent / "docs") / f"{name}.md"


@cache
def rendered_page(name: str) -> str:
    """Return the page as HTML, in which each heading has an anchor."""
    from markdown_it import MarkdownIt  # noqa: PLC0415 - 3 MB, which few need

    body = MarkdownIt().enable("table").render(source_path(name).read_text())
    body = re.sub(r"<h2>(.*?)</h2>", lambda heading: f'<h2 id="{problem_anchor(heading[1])}">{heading[1]}</h2>', body)
    head = f'<meta charset="utf-8"><title>{name.capitalize()}</title>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _answer(name: str) -> HTMLResponse:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "max-age=3600"}
    return HTMLResponse(rendered_page(name), headers=headers)


@router.get("/problems")
async def get_problems() -> HTMLResponse:
    """Return the explanations of all problems."""
    return _answer("problems")


@router.get("/alerts")
async def get_alerts() -> HTMLResponse:
    """Return the explanations of all alerts of the chart."""
    return _answer("alerts")

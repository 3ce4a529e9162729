"""Renderers for tests of templates."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from service.engine.render import Renderer, TemplateError
from service.flow.tasks.ids import slugid
from service.settings import RenderLimits
from tests.service.test_sanitize import check_storable


def ids(label: str) -> str:
    return slugid(KEY, label)


@asynccontextmanager
async def renderer_of(processes: int = 2, **limits: Any) -> AsyncIterator[Renderer]:
    new_renderer = Renderer(RenderLimits(**limits), processes)
    try:
        yield new_renderer
    finally:
        await new_renderer.close()
    assert children() == []


def children() -> list[psutil.Process]:
    """Return the child processes that render."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "service.engine.render_child" in child.cmdline()
    ]


async def tasks(renderer: Renderer, text: str) -> list[Any]:
    return (await renderer.taskcluster_yml("version: 1\n" + text, CONTEXT)).parse(ids).result


async def error(renderer: Renderer, text: str) -> str:
    with pytest.raises(TemplateError) as refused:
        await renderer.taskcluster_yml(text, CONTEXT)
    check_storable(str(refused.value))
    return str(refused.value)


KEY = b"k" * 32


CONTEXT: dict[str, Any] = {
    "push": {"owner": "dev@example.com", "comment": "Bug 1 - \u00e4 ${x}"},
    "now": "2030-01-30T12:00:00.000Z",
}


def _list(value: str, times: int) -> str:
    return "[" + ", ".join([value] * times) + "]"


NESTED = (
    f"version: 1\ntasks: {{$let: {{a: {_list('{}', 100)}}}, in: {{$let: {{b: {_list('{$eval: a}', 100)}}}, "
    f"in: {{$let: {{c: {_list('{$eval: b}', 100)}}}, in: {_list('{$eval: c}', 4)}}}}}}}"
)
"""Small, and renders to four million values."""

"""The pages that explain problems and alerts: each has a section, and each section is for one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api.manual import rendered_page, source_path
from service.errors import problem_anchor, problem_type
from tests.service.asgi import EXPLAINED, Api

ROOT = Path(__file__).resolve().parents[3]


def titles() -> Iterator[str]:
    """Yield the titles of all problems that the code answers with."""
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            title = node.args[1]
            if name in {"Problem", "problem"} and isinstance(title, ast.Constant) and isinstance(title.value, str):
                yield title.value


def test_each_problem_is_explained_and_nothing_else() -> None:
    others = {"Not Found", "Method Not Allowed", "Bad Request", "Request Timeout"}  # the server's own
    assert {*titles(), *others} == EXPLAINED


@pytest.mark.parametrize("title", sorted(EXPLAINED))
def test_the_type_leads_to_the_section(title: str) -> None:
    assert f'<h2 id="{problem_anchor(title)}">{title}</h2>' in rendered_page("problems")
    assert re.fullmatch(r"/problems#[a-z-]+", problem_type(title))


@pytest.mark.parametrize("name", ["problems", "alerts"])
async def test_a_page_is_open_and_runs_nothing(name: str, sqlite_api: Api) -> None:
    answer = await sqlite_api.call("GET", f"/{name}", token=None)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert source_path(name).is_file()
    assert answer.text.count("<h2 id=") == source_path(name).read_text().count("\n## ")


def test_an_anchor_is_the_one_that_a_repositorys_page_has() -> None:
    assert '<h2 id="tctreeherderdown">TcTreeherderDown</h2>' in rendered_page("alerts")

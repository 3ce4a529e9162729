"""/docs: with assets of our own."""

import base64
import hashlib
import re

from tests.service.asgi import Api, is_problem


async def test_docs_load_nothing_from_elsewhere(sqlite_api: Api) -> None:
    page = await sqlite_api.call("GET", "/docs", token=None)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        assert not address.startswith("//")
        asset = await sqlite_api.call("GET", f"/{address}", token=None)
        assert asset.status_code == 200, address
        assert asset.content
    assert (await sqlite_api.call("GET", "/openapi.json", token=None)).status_code == 200
    assert "url: 'openapi.json'" in page.text


async def test_the_policy_lets_its_own_scripts_run_and_nothing_else(sqlite_api: Api) -> None:
    page = await sqlite_api.call("GET", "/docs", token=None)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"].split() == ["'self'", f"'sha256-{digest}'"]


async def test_there_is_no_other_file_below_docs_and_no_redoc(sqlite_api: Api) -> None:
    for path in ("/docs/main.py", "/docs/__init__.py", "/docs/%2e%2e%2fmain.py", "/redoc", "/docs/oauth2-redirect"):
        is_problem(await sqlite_api.call("GET", path, token=None), 404)

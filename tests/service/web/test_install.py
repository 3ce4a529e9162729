"""The page within the app: switched on and off, and errors as pages for people."""

import pytest

from tests.service.asgi import ADMIN, is_problem, settings_for
from tests.service.web.browser import Browser, opened, text_of

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_it_can_be_switched_off(sqlite_url: str) -> None:
    async with opened(settings_for(sqlite_url, web=False)) as browser:
        for path in ("/", "/sign-in", "/static/x/style.css"):
            is_problem(await browser.get(path, headers=HTML), 404)


async def test_no_page_is_in_the_description_of_the_api(admin: Browser) -> None:
    paths = admin.api.app.openapi()["paths"]
    assert not [path for path in paths if not path.startswith(("/api/v1/", "/__", "/metrics"))]


async def test_an_error_is_a_page_for_people_and_a_problem_for_programs(admin: Browser) -> None:
    page = await admin.get("/nowhere/<b>", headers=HTML)
    assert page.status_code == 404
    assert "there is no page /nowhere/<b>" in text_of(page.text)
    assert "<b>" not in page.text
    is_problem(await admin.get("/nowhere"), 404)
    is_problem(await admin.get("/api/v1/nowhere", headers=HTML), 404)
    is_problem(await admin.api.get("/pushes/nowhere/1", headers=HTML), 404)
    is_problem(await admin.api.get("/pushes", token=ADMIN + "x", headers=HTML), 401)


async def test_a_wrong_method_and_a_wrong_parameter_are_pages(admin: Browser) -> None:
    wrong = await admin.get("/?colour=red")
    assert wrong.status_code == 422
    assert "colour: there is no such query parameter" in text_of(wrong.text)
    put = await admin.http.put("/sign-in", headers=HTML)
    assert put.status_code == 405
    assert "text/html" in put.headers["content-type"]


async def test_a_bug_is_a_page_without_its_cause(admin: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("service.web.home.show_view", broken)
    answer = await admin.get("/")
    assert answer.status_code == 500
    assert "this is a bug" in text_of(answer.text)
    assert "hunter2" not in answer.text


async def test_without_credentials_the_page_is_open_on_loopback_only(sqlite_url: str) -> None:
    settings = settings_for(sqlite_url, tokens=[])
    async with opened(settings, origin="http://localhost:8080") as browser:
        assert "Sign in" not in await browser.page("/")
        assert (await browser.get("/", headers={"Host": "evil.example.com"})).status_code == 403
        moved = await browser.get("/sign-in")
        assert (moved.status_code, moved.headers["location"]) == (303, "/")


def test_a_form_without_protection_is_not_built() -> None:
    from service.web import home

    async def unprotected() -> None: ...

    before = list(home.router.routes)
    try:
        with pytest.raises(TypeError, match="without `FormDep`"):
            home.router.post("/x")(unprotected)
    finally:
        home.router.routes[:] = before

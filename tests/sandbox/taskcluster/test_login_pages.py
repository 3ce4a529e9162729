"""The pages of signing in: who one is, what one grants, and where that leads."""

import re
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from sandbox.taskcluster import RegisteredClient, Taskcluster, create_app
from tests.sandbox.taskcluster.test_login import FORM, PAGE, QUERY, REDIRECT

PATH = "/login/oauth/authorize"


@pytest.fixture
async def person() -> AsyncIterator[httpx.AsyncClient]:
    tc = Taskcluster(people={"idp/ann": ("ours:*",), "idp/<b>": ()}, registered=[PAGE])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(tc)), base_url="http://tc") as client:
        client.tc = tc  # type: ignore[attr-defined]  # for the test that registers another client
        yield client


async def sign_in(person: httpx.AsyncClient) -> None:
    page = (await person.get(PATH, params=QUERY)).text
    assert "idp/&lt;b&gt;" in page
    answer = await person.post(
        PATH, data={"identity": "idp/ann", "query": urlsplit(str(httpx.URL(PATH, params=QUERY))).query}
    )
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(PATH + "?client_id=page")


async def transaction(person: httpx.AsyncClient) -> str:
    page = (await person.get(PATH, params=QUERY)).text
    match = re.search(r'name="transaction" value="([^"]+)"', page)
    assert match is not None
    return match[1]


async def test_who_grants_comes_back_with_a_code_that_becomes_credentials(person: httpx.AsyncClient) -> None:
    await sign_in(person)
    form = {"transaction": await transaction(person), "decision": "grant", "scope": "ours:x"}
    answer = await person.post(PATH, data=form)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(REDIRECT + "?")
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert query["state"] == ["s"]
    token = (await person.post("/login/oauth/token", data={**FORM, "code": query["code"][0]})).json()
    assert token["token_type"] == "Bearer"
    bearer = {"Authorization": f"Bearer {token['access_token']}"}
    answer = await person.get("/login/oauth/credentials", headers=bearer)
    assert set(answer.json()) == {"expires", "credentials"}
    refused = await person.get("/login/oauth/credentials", headers=bearer)
    assert (refused.status_code, refused.json()["code"]) == (400, "InputError")
    # a decision is good once
    assert (await person.post(PATH, data=form)).status_code == 400


async def test_who_declines_or_grants_too_much_comes_back_with_the_error(person: httpx.AsyncClient) -> None:
    await sign_in(person)
    for form, error in (
        ({"decision": "decline"}, "access_denied"),
        ({"decision": "grant", "scope": "*"}, "invalid_scope"),
    ):
        answer = await person.post(PATH, data={**form, "transaction": await transaction(person)})
        query = parse_qs(urlsplit(answer.headers["location"]).query)
        assert (query["error"], query["state"]) == ([error], ["s"])
        assert "code" not in query


async def test_a_client_that_is_whitelisted_asks_nobody(person: httpx.AsyncClient) -> None:
    tc: Taskcluster = person.tc  # type: ignore[attr-defined]  # see above
    tc.login.clients["page"] = RegisteredClient("page", (REDIRECT,), PAGE.scopes, whitelisted=True)
    await sign_in(person)
    answer = await person.get(PATH, params=QUERY)
    assert answer.status_code == 302
    assert "code" in parse_qs(urlsplit(answer.headers["location"]).query)


async def test_a_request_that_does_not_fit_leads_nowhere(person: httpx.AsyncClient) -> None:
    await sign_in(person)
    answer = await person.get(PATH, params={**QUERY, "redirect_uri": "https://evil.example.com/"})
    assert (answer.status_code, answer.json()["error"]) == (403, "unauthorized_client")
    assert "location" not in answer.headers
    answer = await person.post("/login/oauth/token", data={**FORM, "code": "x"})
    assert (answer.status_code, answer.json()["error"]) == (403, "invalid_grant")

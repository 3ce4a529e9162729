"""Taskcluster credentials over the API: signed by mohawk and the official client, checked by the stand-in."""

import datetime as dt
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import mohawk
import mohawk.bewit
import pytest
import taskcluster
from taskcluster.utils import encodeStringForB64Header, makeB64UrlSafe

from sandbox.taskcluster import Client, Taskcluster, create_app
from tests.service.asgi import ADMIN, NEVER_SHOWN, Api, is_problem, running, settings_for
from tests.service.harness import serving

PUBLIC = "https://tc-treeherder.example.com"
CLIENTS = {
    "writer": ("tc-treeherder:repositories:write",),
    "all": ("*",),
    "ours": ("tc-treeherder:*",),
    "reader": ("tc-treeherder:read",),
    "canceller": ("tc-treeherder:action:cancel:mc",),
    "roles": ("assume:sheriff",),
    "stranger": ("queue:create-task:*", "tc-treeherderish:*"),
}


@dataclass
class Signing:
    """The API as Taskcluster's clients see it."""

    api: Api
    tc: Taskcluster
    public: str

    async def call(
        self,
        client: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        ext: dict[str, Any] | None = None,
        sign: str | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Sign for the public address, or for the URL `sign`; `content` is sent instead of the signed `body`."""
        raw = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else "application/json"
        coded = makeB64UrlSafe(encodeStringForB64Header(json.dumps(ext)).strip()) if ext else ""
        sender = mohawk.Sender(
            {"id": client, "key": key or f"{client}-secret", "algorithm": "sha256"},
            sign or self.public + path,
            method,
            content=raw,
            content_type=kind,
            ext=coded,
        )
        sent = {"Authorization": sender.request_header, **({"Content-Type": kind} if kind else {}), **(headers or {})}
        url = path.removeprefix("/prefix")
        return await self.api.client.request(method, url, content=content or raw, headers=sent)


@asynccontextmanager
async def signing(database_url: str, public: str = PUBLIC, **more: Any) -> AsyncIterator[Signing]:
    clients = [Client(name, f"{name}-secret", scopes) for name, scopes in CLIENTS.items()]
    tc = Taskcluster(clients, {"sheriff": ("tc-treeherder:action:*",)})
    async with serving(create_app(tc)) as url:
        values = {"taskcluster_logins": True, "public_url": public, "taskcluster": {"root_url": url, "timeout": 2}}
        async with running(settings_for(database_url, **{**values, **more})) as api:
            yield Signing(api, tc, public)


@pytest.fixture
async def us(sqlite_url: str) -> AsyncIterator[Signing]:
    async with signing(sqlite_url) as made:
        yield made


ADD = {"alias": "mc", "url": "https://hg.mozilla.org/mc", "level": "1"}
REPOSITORIES = "/api/v1/repositories"


@pytest.mark.parametrize("client", ["writer", "all", "ours"])
async def test_scopes_are_matched_by_taskclusters_rule(
    us: Signing, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await us.call(client, "POST", REPOSITORIES, ADD)
    assert answer.status_code == 201, answer.text
    answer = await us.call(client, "GET", f"{REPOSITORIES}?limit=5")
    assert [each["alias"] for each in answer.json()["items"]] == ["mc"]
    assert (await us.call(client, "DELETE", f"{REPOSITORIES}/mc?force=true")).status_code == 204


@pytest.mark.parametrize("client", ["reader", "stranger", "canceller"])
async def test_a_403_names_the_scope_and_who_lacks_it(us: Signing, client: str) -> None:
    problem = is_problem(await us.call(client, "POST", REPOSITORIES, ADD), 403, client)
    assert problem["missing_scope"] == "tc-treeherder:repositories:write"


async def test_roles_are_resolved_by_taskcluster(us: Signing) -> None:
    await us.api.add()
    action = {"action": "cancel", "project": "mc", "task_id": taskcluster.slugId()}
    answer = await us.call("roles", "POST", "/api/v1/actions", action)
    assert answer.status_code == 202, answer.text
    assert answer.json()["requester"] == "roles"
    problem = is_problem(await us.call("reader", "POST", "/api/v1/actions", action), 403)
    assert problem["missing_scope"] == "tc-treeherder:action:cancel:mc"


async def test_reads_need_a_scope_of_ours_unless_public(us: Signing, sqlite_url: str) -> None:
    for client in ("reader", "canceller", "roles", "writer", "all"):
        assert (await us.call(client, "GET", REPOSITORIES)).status_code == 200, client
    problem = is_problem(await us.call("stranger", "GET", REPOSITORIES), 403, "stranger", "tc-treeherder:read")
    assert problem["missing_scope"] == "tc-treeherder:read"
    problem = is_problem(await us.api.get("/repositories", token=None), 401, "Hawk", "public_reads")
    assert problem["missing_scope"] == "tc-treeherder:read"
    async with signing(sqlite_url, public_reads=True) as open_to_all:
        assert (await open_to_all.call("stranger", "GET", REPOSITORIES)).status_code == 200
        is_problem(await open_to_all.call("stranger", "GET", REPOSITORIES, key="wrong"), 401, "Bad mac")


async def test_tokens_go_on_working_beside(us: Signing) -> None:
    assert (await us.api.get("/repositories")).status_code == 200
    is_problem(await us.api.get("/repositories", token="unknown-0123456789"), 401, "Hawk")


async def test_without_tokens_nobody_is_local(sqlite_url: str) -> None:
    async with signing(sqlite_url, tokens=[]) as us:
        problem = is_problem(await us.api.post("/repositories", ADD, token=None), 401, "repositories:write", "Hawk")
        assert problem["missing_scope"] == "tc-treeherder:repositories:write"
        is_problem(await us.api.get("/repositories", token=None), 401)
        is_problem(await us.api.get("/repositories", token=ADMIN), 401)
        assert (await us.call("reader", "GET", REPOSITORIES)).status_code == 200


async def test_a_401_says_why_and_how(us: Signing) -> None:
    wrong = await us.call("writer", "GET", REPOSITORIES, key="wrong")
    is_problem(wrong, 401, "Bad mac", "Authorization: Bearer", "Hawk")
    assert wrong.headers["www-authenticate"] == "Bearer, Hawk"
    is_problem(await us.call("nobody", "GET", REPOSITORIES), 401, "no such client: nobody")
    nonsense = {"Authorization": "Hawk nonsense"}
    is_problem(await us.api.call("GET", REPOSITORIES, token=None, headers=nonsense), 401, "Bad header format")


async def test_a_long_header_is_not_sent_on(us: Signing) -> None:
    us.tc.journal.clear()
    header = {"Authorization": "hawk " + "x" * 5_000}
    is_problem(await us.api.call("GET", REPOSITORIES, token=None, headers=header), 401, "5,005", "4,096")
    assert not us.tc.journal.calls


async def test_a_signature_is_for_the_public_address_alone(us: Signing) -> None:
    """One that was made for another deployment of ours must not work here, whatever Host says."""
    for other in ("https://stage.example.com", f"{PUBLIC}:8443", "http://tc-treeherder.example.com", "http://service"):
        for headers in (
            {"Host": other.split("//")[1]},
            {"X-Forwarded-Host": other.split("//")[1], "X-Forwarded-Proto": other.split(":")[0]},
        ):
            answer = await us.call("all", "GET", REPOSITORIES, sign=other + REPOSITORIES, headers=headers)
            is_problem(answer, 401, "Bad mac")
    assert (await us.call("all", "GET", REPOSITORIES, headers={"Host": "inside.cluster:8080"})).status_code == 200


async def test_path_query_and_method_are_signed_as_they_were_sent(us: Signing) -> None:
    odd = f"{REPOSITORIES}/m%2Dc?b=2&a=%41+%20"
    is_problem(await us.call("all", "GET", odd), 422, "no such query parameter")  # after the signature
    is_problem(await us.call("all", "GET", odd, sign=f"{PUBLIC}{REPOSITORIES}/m-c?b=2&a=%41+%20"), 401)
    is_problem(await us.call("all", "GET", odd, sign=f"{PUBLIC}{REPOSITORIES}/m%2Dc?a=%41+%20&b=2"), 401)


async def test_a_public_url_with_a_path_is_behind_a_proxy_that_takes_it_off(sqlite_url: str) -> None:
    async with signing(sqlite_url, public="https://example.com:8443/prefix/") as us:
        us.public = "https://example.com:8443"
        assert (await us.call("all", "GET", f"/prefix{REPOSITORIES}")).status_code == 200
        is_problem(await us.call("all", "GET", REPOSITORIES), 401)


async def test_the_body_is_the_signed_one(us: Signing) -> None:
    other = json.dumps({**ADD, "alias": "other"}).encode()
    is_problem(await us.call("all", "POST", REPOSITORIES, ADD, content=other), 401, "body")
    kind = {"Content-Type": "application/merge-patch+json"}
    is_problem(await us.call("all", "POST", REPOSITORIES, ADD, headers=kind), 401, "Content-Type")
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await us.call("all", "POST", REPOSITORIES, ADD, headers=charset)).status_code == 201


async def test_temporary_credentials(us: Signing) -> None:
    now = dt.datetime.now(dt.UTC)

    def temporary(expiry: dt.datetime, scopes: list[str]) -> tuple[str, dict[str, Any]]:
        made = taskcluster.createTemporaryCredentials(
            "ours", "ours-secret", now - dt.timedelta(hours=2), expiry, scopes
        )
        return made["accessToken"].decode(), {"certificate": json.loads(made["certificate"])}

    key, ext = temporary(now + dt.timedelta(hours=1), ["tc-treeherder:repositories:write"])
    assert (await us.call("ours", "POST", REPOSITORIES, ADD, key=key, ext=ext)).status_code == 201
    action = {"action": "cancel", "project": "mc", "task_id": taskcluster.slugId()}
    is_problem(await us.call("ours", "POST", "/api/v1/actions", action, key=key, ext=ext), 403)
    key, ext = temporary(now - dt.timedelta(hours=1), ["tc-treeherder:repositories:write"])
    is_problem(await us.call("ours", "GET", REPOSITORIES, key=key, ext=ext), 401, "expiry")


async def test_authorized_scopes_cut_the_callers_down(us: Signing) -> None:
    ext = {"authorizedScopes": ["tc-treeherder:read"]}
    assert (await us.call("all", "GET", REPOSITORIES, ext=ext)).status_code == 200
    is_problem(await us.call("all", "POST", REPOSITORIES, ADD, ext=ext), 403, "repositories:write")


def bewit(client: str, path: str, seconds: int = 60, **more: Any) -> str:
    credentials = {"id": client, "key": f"{client}-secret", "algorithm": "sha256"}
    expires = int(dt.datetime.now(dt.UTC).timestamp()) + seconds
    resource = mohawk.base.Resource(
        credentials=credentials, method="GET", url=PUBLIC + path, timestamp=expires, nonce="", **more
    )
    made: str = mohawk.bewit.get_bewit(resource)
    return made


async def test_a_bewit_reads_and_does_nothing_else(us: Signing) -> None:
    def path(of: str, **more: Any) -> str:
        return f"{of}{'&' if '?' in of else '?'}bewit={bewit('all', of, **more)}"

    get = us.api.client.get
    assert (await get(path(REPOSITORIES))).status_code == 200
    assert (await get(path(f"{REPOSITORIES}?limit=3"))).status_code == 200
    is_problem(await get(path(REPOSITORIES, seconds=-5)), 401, "Access expired")
    is_problem(await get(path(REPOSITORIES) + "&limit=3"), 401, "Bad mac")
    is_problem(await get(f"{REPOSITORIES}?bewit=nonsense"), 401)
    problem = is_problem(await us.api.client.post(path(REPOSITORIES), json=ADD), 401)
    assert problem["missing_scope"] == "tc-treeherder:repositories:write"


async def test_the_official_clients_signed_urls_are_bewits(us: Signing) -> None:
    signer = taskcluster.Queue(
        {"rootUrl": PUBLIC, "credentials": {"clientId": "all", "accessToken": "all-secret"}, "maxRetries": 0}
    )
    url = signer.buildSignedUrl("task", "fN1SbArXTPSVFNUvaOlinQ")
    is_problem(await us.api.client.get(url.replace("/api/queue/", "/api/"), follow_redirects=False), 404)


@pytest.mark.parametrize("header", [True, False])
async def test_taskcluster_away_is_a_503_and_never_a_login(us: Signing, header: bool) -> None:
    us.api.services.logins._settings.root_url = "http://127.0.0.1:9"  # type: ignore[union-attr]  # the real one
    if header:
        answer = await us.call("all", "GET", REPOSITORIES)
    else:
        answer = await us.api.client.get(f"{REPOSITORIES}?bewit={bewit('all', REPOSITORIES)}")
    is_problem(answer, 503, "cannot be checked", "Try again", "token")
    assert answer.headers["retry-after"] == "5"
    assert (await us.api.get("/repositories")).status_code == 200, "tokens need no Taskcluster"


async def test_where_logins_are_off_a_hawk_header_is_nothing(sqlite_api: Api) -> None:
    us = Signing(sqlite_api, Taskcluster([]), "http://service")
    answer = await us.call("all", "GET", REPOSITORIES)
    is_problem(answer, 401, "Bearer")
    assert "Hawk" not in answer.json()["detail"]
    is_problem(await sqlite_api.client.get(f"{REPOSITORIES}?bewit=x"), 401)


async def test_a_token_and_a_client_of_one_name_share_no_idempotency_keys(us: Signing) -> None:
    await us.api.add()
    action = {"action": "cancel", "project": "mc", "task_id": taskcluster.slugId()}
    key = {"Idempotency-Key": "mine"}
    tokens = [each.model_copy(update={"name": "roles"}) for each in us.api.settings.tokens[:1]]
    us.api.settings.tokens[:] = tokens
    first = await us.call("roles", "POST", "/api/v1/actions", action, headers=key)
    again = await us.call("roles", "POST", "/api/v1/actions", action, headers=key)
    other = await us.api.post("/actions", action, headers=key)
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]


async def test_the_log_has_the_client_id_and_no_signature(
    us: Signing, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        await us.call("writer", "POST", REPOSITORIES, ADD)
        await us.call("writer", "GET", REPOSITORIES, key="wrong-secret")
    said = capsys.readouterr().out + caplog.text
    assert "by=writer" in said
    for secret in [*NEVER_SHOWN, "writer-secret", "wrong-secret", 'mac="', "bewit="]:
        assert secret not in said

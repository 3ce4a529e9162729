"""Credentials: Hawk headers, certificates, authorizedScopes and bewits, signed by mohawk and by the official client."""

import datetime as dt
import json
from typing import Any

import mohawk
import pytest
import taskcluster
from hypothesis import given
from hypothesis import strategies as st

from sandbox.taskcluster import Client, Taskcluster
from sandbox.taskcluster.auth import MAX_HEADER, Request, mac, payload_hash
from sandbox.taskcluster.clock import DAY, HOUR, MINUTE
from tests.sandbox.taskcluster.support import ROOT, Api, Refused, now_seconds, refused, sign, validate

LIMITED = Client("limited", "limited-secret", ("auth:current-scopes", "queue:status:*", "assume:role-x"))
URL = "http://taskcluster.example/api/auth/v1/scopes/current"


@pytest.fixture
def tc(tc: Taskcluster) -> Taskcluster:
    tc.auth.add_client(LIMITED.client_id, LIMITED.access_token, LIMITED.scopes)
    tc.auth.set_roles({"role-x": ["from-role"], "anonymous": ["queue:get-task:*"]})
    return tc


async def scopes_of(api: Api, client: Client, ext: dict[str, Any] | None = None) -> list[str]:
    """Return the answer of `currentScopes`, without the scopes of everybody."""
    answer = await api.http.get(URL, headers=sign(client, "GET", URL, ext=ext))
    if answer.status_code != 200:
        raise Refused(answer.status_code, answer.json())
    everybody = {"assume:anonymous", "queue:get-task:*"}
    return [scope for scope in answer.json()["scopes"] if scope not in everybody]


def temporary(client: Client, scopes: list[str], name: str | None = None, **times: dt.datetime) -> Client:
    """Return temporary credentials of the official client; `scopes` holds the certificate."""
    now = dt.datetime.now(dt.UTC)
    credentials = taskcluster.createTemporaryCredentials(
        client.client_id,
        client.access_token,
        times.get("start", now - dt.timedelta(minutes=1)),
        times.get("expiry", now + dt.timedelta(hours=1)),
        scopes,
        name=name,
    )
    return Client(credentials["clientId"], credentials["accessToken"].decode(), (credentials["certificate"],))


def certificate(client: Client) -> dict[str, Any]:
    return dict(json.loads(client.scopes[0]))


async def test_a_client_has_its_scopes_and_those_of_its_roles(api: Api) -> None:
    assert await scopes_of(api, LIMITED) == ["assume:role-x", "auth:current-scopes", "from-role", "queue:status:*"]


@pytest.mark.parametrize(
    ("client", "message"),
    [(Client("limited", "wrong"), "Bad mac"), (Client("nobody", "x"), "no such client: nobody")],
)
async def test_wrong_credentials_are_401(api: Api, client: Client, message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        await scopes_of(api, client)
    assert (refused.value.status, refused.value.code) == (401, "AuthenticationFailed")


async def test_without_credentials_there_is_only_what_anonymous_may(api: Api) -> None:
    with pytest.raises(Refused, match="ResourceNotFound"):
        await api("task", taskcluster.slugId(), client=None)
    with pytest.raises(Refused, match=r"Anonymous client .* missing the following scopes:\n\n```\nqueue:status:") as no:
        await api("status", taskcluster.slugId(), client=None)
    assert no.value.status == 403


async def test_a_403_names_client_missing_scopes_and_the_whole_expression(api: Api) -> None:
    definition = api.define(routes=["r.x"], scopes=["s:x"], projectId="proj")
    api.tc.auth.add_client("poor", "p", ["queue:route:*", "queue:create-task:high:prov/w"])
    api.client = Client("poor", "p")
    with pytest.raises(Refused) as refused:
        await api("createTask", taskcluster.slugId(), body=definition)
    assert (refused.value.status, refused.value.code) == (403, "InsufficientScopes")
    head, missing, middle, required, _ = refused.value.message.split("```")
    assert head == "Client ID poor does not have sufficient scopes and is missing the following scopes:\n\n"
    assert json.loads(missing) == {"AllOf": ["s:x", "queue:create-task:project:proj", "queue:scheduler-id:sched"]}
    assert "This request requires Client ID poor to satisfy the following scope expression:" in middle
    assert json.loads(required)["AllOf"][:2] == ["s:x", "queue:route:r.x"]


async def test_the_body_must_be_the_signed_one(api: Api) -> None:
    url = "http://taskcluster.example/api/queue/v1/tasks/status"
    headers = sign(ROOT, "POST", url, '{"taskIds": []}')
    answer = await api.http.post(url, content='{"taskIds": ["x"]}', headers=headers)
    assert answer.status_code == 401
    assert "Invalid payload hash" in answer.json()["message"]
    assert answer.headers["www-authenticate"] == "hawk"


async def test_a_request_without_a_payload_hash_is_taken(api: Api) -> None:
    url = "http://taskcluster.example/api/queue/v1/tasks/status"
    sender = mohawk.Sender(
        {"id": "root", "key": "root-secret", "algorithm": "sha256"}, url, "POST", always_hash_content=False
    )
    headers = {"Authorization": sender.request_header, "Content-Type": "application/json"}
    assert (await api.http.post(url, content="{}", headers=headers)).json() == {"statuses": []}


@pytest.mark.parametrize("off", [-61, 61])
async def test_a_timestamp_more_than_a_minute_off_is_401_whatever_the_stand_ins_clock(api: Api, off: int) -> None:
    api.tc.clock.advance(3600)
    headers = sign(LIMITED, "GET", URL, _timestamp=now_seconds())
    assert (await api.http.get(URL, headers=headers)).status_code == 200
    headers = sign(LIMITED, "GET", URL, _timestamp=now_seconds() + off + (1 if off > 0 else 0))
    answer = await api.http.get(URL, headers=headers)
    assert answer.status_code == 401
    assert "Stale timestamp" in answer.json()["message"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Basic abc", "not a Hawk header"),
        ("Hawk", "Missing attributes"),
        ('Hawk id="limited", ts="1", nonce="x"', "Missing attributes"),
        ('Hawk id="limited", ts="1", nonce="x", mac="y", color="red"', "Bad header format"),
        ('Hawk id="limited", ts="now", nonce="x", mac="y"', "Invalid timestamp"),
        ('Hawk id="limited", ts="1", nonce="x", mac="é"', "Bad mac"),
        (f'Hawk id="{"x" * MAX_HEADER}"', "Header length too long"),
        ('Hawk id="limited", ts="1", nonce="x", mac="y", ext="!!!"', "Failed to parse ext"),
        ('Hawk id="limited", ts="1", nonce="x", mac="y", ext="W10="', "ext must be a JSON object"),
    ],
)
async def test_a_header_that_cannot_be_read_is_401(api: Api, header: str, message: str) -> None:
    answer = await api.http.get(URL, headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert message in answer.json()["message"]


# --- authorizedScopes ---


async def test_authorized_scopes_cut_down_what_the_caller_may(api: Api) -> None:
    scopes = ["auth:current-scopes", "from-role"]
    assert await scopes_of(api, LIMITED, {"authorizedScopes": scopes}) == scopes
    with pytest.raises(Refused) as refused:
        await scopes_of(api, LIMITED, {"authorizedScopes": ["from-role"]})
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "scopes", [["queue:*"], ["auth:current-scopes", "ä"], "auth:current-scopes", [1], ["assume:role-y"]]
)
async def test_authorized_scopes_that_the_client_has_not_or_that_are_none_are_401(api: Api, scopes: Any) -> None:
    for _ in range(2):  # the second answer must not come from a memory of the first
        with pytest.raises(Refused) as refused:
            await scopes_of(api, LIMITED, {"authorizedScopes": scopes})
        assert refused.value.status == 401
        assert "authorizedScopes" in refused.value.message


async def test_a_change_of_roles_or_clients_counts_at_once(api: Api) -> None:
    ext = {"authorizedScopes": ["auth:current-scopes", "from-role"]}
    assert "from-role" in await scopes_of(api, LIMITED, ext)
    api.tc.auth.set_roles({})
    with pytest.raises(Refused, match="authorizedScopes"):
        await scopes_of(api, LIMITED, ext)
    api.tc.auth.add_client("limited", "new-secret", ["auth:current-scopes"])
    with pytest.raises(Refused, match="Bad mac"):
        await scopes_of(api, LIMITED)


# --- temporary credentials ---


async def test_temporary_credentials_have_the_certificates_scopes(api: Api) -> None:
    client = temporary(LIMITED, ["auth:current-scopes"])
    assert await scopes_of(api, client, {"certificate": certificate(client)}) == ["auth:current-scopes"]


async def test_named_temporary_credentials_need_the_right_to_make_their_client(api: Api) -> None:
    client = temporary(ROOT, ["auth:current-scopes", "x"], name="root/sub")
    assert await scopes_of(api, client, {"certificate": certificate(client)}) == ["auth:current-scopes", "x"]
    client = temporary(LIMITED, ["auth:current-scopes"], name="limited/sub")
    with pytest.raises(Refused, match="auth:create-client:limited/sub"):
        await scopes_of(api, client, {"certificate": certificate(client)})


async def test_temporary_credentials_can_be_cut_down_further(api: Api) -> None:
    client = temporary(ROOT, ["auth:*"])
    ext = {"certificate": certificate(client), "authorizedScopes": ["auth:current-scopes"]}
    assert await scopes_of(api, client, ext) == ["auth:current-scopes"]
    with pytest.raises(Refused, match="authorizedScopes"):
        await scopes_of(api, client, {**ext, "authorizedScopes": ["queue:*"]})


async def test_a_certificate_with_more_than_its_issuer_has_is_401(api: Api) -> None:
    client = temporary(LIMITED, ["auth:*"])
    with pytest.raises(Refused, match="doesn't satisfy the certificate's scopes"):
        await scopes_of(api, client, {"certificate": certificate(client)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version must be 1"),
        ({"seed": "short"}, "seed must be 44"),
        ({"seed": "x" * 44}, "signature is not valid"),
        ({"scopes": ["queue:status:*"]}, "signature is not valid"),
        ({"scopes": ["ä"]}, "array of valid scopes"),
        ({"expiry": "tomorrow"}, "expiry must be a number"),
        ({"signature": None}, "signature must be a string"),
        ({"signature": "ä"}, "signature is not valid"),
        ({"issuer": 1}, "issuer must be a string"),
        ({"issuer": "limited"}, "must differ"),
        ({"issuer": "nobody"}, "no such client: nobody"),
    ],
)
async def test_a_certificate_that_was_changed_is_401(api: Api, change: dict[str, Any], message: str) -> None:
    client = temporary(LIMITED, ["auth:current-scopes"])
    with pytest.raises(Refused, match=message) as refused:
        await scopes_of(api, client, {"certificate": certificate(client) | change})
    assert refused.value.status == 401


@pytest.mark.parametrize("not_one", [[], "{", 5])
async def test_what_is_no_certificate_is_401(api: Api, not_one: Any) -> None:
    with pytest.raises(Refused, match=r"ext\.certificate") as refused:
        await scopes_of(api, LIMITED, {"certificate": not_one})
    assert refused.value.status == 401


async def test_a_certificate_holds_for_its_time_with_five_minutes_of_grace(api: Api) -> None:
    client = temporary(LIMITED, ["auth:current-scopes"])
    ext = {"certificate": certificate(client)}
    assert await scopes_of(api, client, ext) == ["auth:current-scopes"]
    api.tc.clock.advance(HOUR / 1000 + 4 * 60)
    assert await scopes_of(api, client, ext) == ["auth:current-scopes"]
    api.tc.clock.advance(2 * 60)
    with pytest.raises(Refused, match="expiry < now"):
        await scopes_of(api, client, ext)
    api.tc.clock.advance(-2 * HOUR / 1000)
    with pytest.raises(Refused, match="start > now"):
        await scopes_of(api, client, ext)


async def test_a_certificate_may_last_31_days(api: Api) -> None:
    now = dt.datetime.now(dt.UTC)
    client = temporary(LIMITED, ["auth:current-scopes"], start=now, expiry=now + dt.timedelta(days=31))
    assert await scopes_of(api, client, {"certificate": certificate(client)})
    longer = {**certificate(client), "expiry": certificate(client)["start"] + 31 * DAY + 1}
    with pytest.raises(Refused, match="31 days"):
        await scopes_of(api, client, {"certificate": longer})


def test_credentials_made_here_are_like_those_of_the_official_client(tc: Taskcluster) -> None:
    now = tc.clock.now()
    issued = tc.auth.temporary_credentials("root", "root/x", ["a"], now - MINUTE, now + HOUR)
    issued_here = Client(issued["clientId"], issued["accessToken"])
    issued_by_client = temporary(ROOT, ["a"], name="root/x")
    for client, ext in ((issued_here, issued["certificate"]), (issued_by_client, issued_by_client.scopes[0])):
        header = sign(client, "GET", URL, ext={"certificate": json.loads(ext)})["Authorization"]
        request = Request("GET", "/api/auth/v1/scopes/current", "taskcluster.example", 80, header)
        caller = tc.auth.authenticate(request)
        assert caller.client_id == "root/x"
        assert "a" in caller.scopes.scopes


# --- authenticateHawk and bewits ---


async def hawk(api: Api, resource: str, authorization: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"method": "get", "resource": resource, "host": "service.example", "port": 443, **more}
    if authorization is not None:
        body["authorization"] = authorization
    return dict(await api("authenticateHawk", body=body, service="auth", client=None))


async def test_authenticate_hawk_tells_who_signed_and_what_they_may(api: Api) -> None:
    url = "https://service.example/x?y=1"
    verdict = await hawk(api, "/x?y=1", sign(LIMITED, "GET", url)["Authorization"], sourceIp="127.0.0.1")
    assert (verdict["status"], verdict["scheme"], verdict["clientId"]) == ("auth-success", "hawk", "limited")
    assert "from-role" in verdict["scopes"]
    assert verdict["hash"] == payload_hash(b"", "")
    elsewhere = await hawk(api, "/x?y=2", sign(LIMITED, "GET", url)["Authorization"])
    assert elsewhere == {"status": "auth-failed", "message": "Bad mac"}


async def test_authenticate_hawk_without_credentials_is_no_auth(api: Api) -> None:
    verdict = await hawk(api, "/x")
    assert (verdict["status"], verdict["scheme"]) == ("no-auth", "none")
    assert "queue:get-task:*" in verdict["scopes"]


@pytest.mark.parametrize(
    "wrong", [{"method": "GET"}, {"port": 70000}, {"port": "443"}, {"sourceIp": "here"}, {"extra": 1}, {"host": 1}]
)
async def test_authenticate_hawk_checks_its_request(api: Api, wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="Schema Validation Failed"):
        await hawk(api, "/x", **wrong)


@pytest.mark.parametrize("query", ["", "limit=5"])
async def test_signed_urls_of_the_official_client_are_taken_until_they_expire(api: Api, query: str) -> None:
    queue = taskcluster.Queue(
        {"rootUrl": "http://taskcluster.example", "credentials": {"clientId": "root", "accessToken": "root-secret"}}
    )
    task_id = taskcluster.slugId()
    await api("createTask", task_id, body=api.define())
    call = {"params": {"taskGroupId": task_id}, "query": {"limit": 5} if query else {}}
    for ext in ({}, {"authorizedScopes": ["queue:*"]}):
        queue.options.update(ext)
        url = queue.buildSignedUrl("listTaskGroup", **call)
        assert query in url
        answer = await api.http.get(url)
        assert answer.status_code == 200, answer.text
        validate(answer.json(), "queue/v1/list-task-group-response.json")
        assert (await api.http.get(url.replace(f"{task_id}/list", f"{taskcluster.slugId()}/list"))).status_code == 401
        assert (await api.http.get(queue.buildSignedUrl("listTaskGroup", expiration=-5, **call))).status_code == 401
    queue.options["authorizedScopes"] = ["auth:*"]
    assert (await api.http.get(queue.buildSignedUrl("listTaskGroup", **call))).status_code == 403


@pytest.mark.parametrize("bewit", ["x", "YWJj", "YVxiXGNcZA"])
async def test_a_bewit_that_cannot_be_read_is_401(api: Api, bewit: str) -> None:
    answer = await api.http.get(f"{URL}?bewit={bewit}")
    assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")


# --- against mohawk ---


@given(
    path=st.text("abc/%2F-_.", max_size=20),
    query=st.text("abc=&%", max_size=10),
    body=st.binary(max_size=50),
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=50),
    port=st.sampled_from([80, 443, 8080]),
    ext=st.text("abcdefg0123=", max_size=30),
)
def test_macs_and_payload_hashes_are_mohawks(path: str, query: str, body: bytes, key: str, port: int, ext: str) -> None:
    resource = f"/{path.lstrip('/')}" + (f"?{query}" if query else "")
    sender = mohawk.Sender(
        {"id": "i", "key": key, "algorithm": "sha256"},
        f"http://Host.example:{port}{resource}",
        "PUT",
        content=body,
        content_type="Application/JSON; charset=utf-8",
        ext=ext,
        nonce="n",
        _timestamp=5,
    )
    attributes = mohawk.util.parse_authorization_header(sender.request_header)
    assert payload_hash(body, "Application/JSON; charset=utf-8") == attributes["hash"]
    assert mac("header", Request("PUT", resource, "host.example", port), attributes, key) == attributes["mac"]


async def test_an_ipv6_host_and_a_port_are_read_from_the_host_header(api: Api) -> None:
    for url in ("http://[::1]:8080", "https://taskcluster.example", "http://taskcluster.example:81"):
        full = f"{url}/api/auth/v1/scopes/current"
        answer = await api.http.get(full, headers=sign(ROOT, "GET", full))
        assert answer.status_code == 200, (url, answer.text)


async def test_a_client_is_described_to_those_who_may_read_it(api: Api, tc: Taskcluster) -> None:
    tc.auth.set_roles({"r": ("a:b",)})
    tc.auth.add_client("idp/ann/page-1", "x" * 40, ["assume:r"], expires=tc.clock.now() + 1_000)
    described = await api("client", "idp/ann/page-1", service="auth")
    assert (described["disabled"], described["scopes"]) == (False, ["assume:r"])
    assert described["expandedScopes"] == ["a:b", "assume:r"]
    tc.auth.disable("idp/ann/page-1")
    assert (await api("client", "idp/ann/page-1", service="auth"))["disabled"] is True
    tc.clock.advance(2)
    await refused(api("client", "idp/ann/page-1", service="auth"), 404, "ResourceNotFound")
    await refused(api("client", "root", service="auth", client=None), 403, "InsufficientScopes", "auth:get-client:root")


async def test_who_is_disabled_or_has_expired_is_refused(api: Api, tc: Taskcluster) -> None:
    ann = Client("ann", "ann-secret")
    tc.auth.add_client(ann.client_id, ann.access_token, ["*"], expires=tc.clock.now() + 1_000)
    await api("client", "root", service="auth", client=ann)
    tc.auth.disable("ann")
    await refused(api("client", "root", service="auth", client=ann), 401, "AuthenticationFailed", "is disabled")
    tc.auth.disable("ann", disabled=False)
    tc.clock.advance(2)
    tc.auth.disable("ann", disabled=False)
    await refused(api("client", "root", service="auth", client=ann), 401, "AuthenticationFailed", "has expired")

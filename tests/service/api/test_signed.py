"""Signed requests of listeners: the signature, the JSON, and the number of events."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from service.contract.events import MAX_EVENTS
from tests.service.asgi import (
    SECRETS,
    Api,
    is_problem,
    push_event,
    running,
    settings_for,
    signature,
)

PUSHES = "/api/v1/events/pushes"


async def test_a_body_that_is_no_batch_says_what_one_is(sqlite_api: Api) -> None:
    for body in (b"[]", b"{}", b"1", b"null", b'{"events": {}}', b'{"events": null}', b'"events"'):
        is_problem(await sqlite_api.signed("/events/pushes", body), 422, "events")
    for body in (b"", b"{", b"nonsense", b'{"events": [\x00]}', b"\xef\xbb\xbf[]"):
        is_problem(await sqlite_api.signed("/events/pushes", body), 400, "not JSON")
    assert await sqlite_api.push() == []


async def test_every_secret_is_accepted_so_that_they_can_be_rotated(sqlite_api: Api) -> None:
    for secret in SECRETS:
        assert (await sqlite_api.signed("/events/pushes", {"events": []}, secret)).status_code == 202
    is_problem(await sqlite_api.signed("/events/pushes", {"events": []}, "whsec_" + "b3RoZXI=" * 6), 401)


async def test_signatures_of_every_malformed_kind_are_401(sqlite_api: Api) -> None:
    raw = json.dumps({"events": []}).encode()
    good = signature(raw)
    value = good["webhook-signature"]
    now = datetime.now(UTC)
    bad: list[dict[str, str]] = [
        {},
        *({k: v for k, v in good.items() if k != missing} for missing in good if missing != "content-type"),
        *({**good, name: ""} for name in good if name != "content-type"),
        *(
            {**good, "webhook-signature": text}
            for text in (
                *("v1", "v1,", "v1,=", "v1,x", "v1,%%%%", "v1,a,b", ",", " ", "  v1,x", "v2," + value[3:], "v1a,x"),
                *(
                    value[:-4],
                    value[:-1] + "\u00e9",
                    "v1,\u00e9",
                    "\u00e9",
                    value.swapcase(),
                    value[3:],
                    "v1 " + value[3:],
                ),
                *("v1,AAAA " * 5_000, "x" * 60_000),
            )
        ),
        *(
            {**good, "webhook-timestamp": text}
            for text in (
                *("x", "nan", "inf", "-inf", "1e400", "1e17", "-1", "0", "9" * 400, "9" * 5_000, "\u0661", "1_0"),
                str((now - timedelta(minutes=6)).timestamp()),
                str((now + timedelta(minutes=6)).timestamp()),
                str(int(now.timestamp()) + 1),
            )
        ),
        {**good, "webhook-id": "msg_2"},
        {**good, "webhook-id": "\u00e9"},
        signature(raw + b" "),
        signature(raw, at=now - timedelta(minutes=6)),
    ]
    for headers in bad:
        encoded = {k.encode(): v.encode() for k, v in headers.items()}
        answer = await sqlite_api.client.post(PUSHES, content=raw, headers=encoded)
        is_problem(answer, 401, "signature")
    assert (await sqlite_api.client.post(PUSHES, content=raw, headers=good)).status_code == 202


async def test_a_signature_beside_others_is_found(sqlite_api: Api) -> None:
    raw = json.dumps({"events": []}).encode()
    good = signature(raw)
    several = f"v2,AAAA v1,AAAA {good['webhook-signature']}"
    answer = await sqlite_api.client.post(PUSHES, content=raw, headers={**good, "webhook-signature": several})
    assert answer.status_code == 202


async def test_the_raw_bytes_are_verified_before_they_are_looked_at(sqlite_api: Api) -> None:
    headers = signature(b'{"events": []}')
    for raw in (b'{"events":[]}', b"{", b"\xff", b"", b"[" * 100_000, b'{"events": [' + b"1," * 2_000 + b"1]}"):
        is_problem(await sqlite_api.client.post(PUSHES, content=raw, headers=headers), 401)


async def test_a_token_is_no_signature_and_a_signature_no_token(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.post("/events/pushes", {"events": []}), 401, "webhook_secrets")
    body = b'{"alias": "x", "url": "https://hg.mozilla.org/x"}'
    answer = await sqlite_api.client.post("/api/v1/repositories", content=body, headers=signature(body))
    is_problem(answer, 401)


async def test_without_secrets_nothing_is_believed(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, webhook_secrets=[])) as api:
        is_problem(await api.signed("/events/pushes", {"events": []}), 401, "webhook_secrets is empty")


async def test_a_thousand_events_are_taken_and_one_more_is_413(sqlite_api: Api) -> None:
    await sqlite_api.add()
    events = [push_event(101 + n, since=100) for n in range(MAX_EVENTS)]
    is_problem(await sqlite_api.signed("/events/pushes", {"events": [*events, events[0]]}), 413, "1001", "1000")
    assert await sqlite_api.pushes() == []
    verdicts = await sqlite_api.push(*events)
    assert {v["verdict"] for v in verdicts} == {"accepted"}
    assert verdicts[0]["cursor"] == 100 + MAX_EVENTS


async def test_a_connection_that_ends_early_is_no_bug_of_ours(sqlite_api: Api) -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in signature(b"{}").items()]
    scope = {"type": "http", "method": "POST", "path": PUSHES, "query_string": b"", "headers": headers}
    await sqlite_api.app(scope, receive, send)
    assert sent[0]["status"] == 400

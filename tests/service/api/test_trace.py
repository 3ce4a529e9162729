"""A request's id in every line of the log, and in the answer."""

from typing import Any

import pytest
import structlog

from tests.service.asgi import Api


async def test_the_callers_id_is_kept_and_logged(sqlite_api: Api) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = await sqlite_api.get("/pushes", headers={"X-Request-Id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    (summary,) = [line for line in lines if line["event"] == "request.summary"]
    assert summary["rid"] == "abc-123"


async def summary_of(api: Api, path: str, **options: Any) -> dict[str, Any]:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await api.call("GET", path, **options)
    (summary,) = [line for line in lines if line["event"] == "request.summary"]
    return dict(summary)


async def test_a_summary_has_the_fields_of_mozlog(sqlite_api: Api) -> None:
    headers = {"User-Agent": "curl/8.5.0", "Accept-Language": "de-AT,de;q=0.9", "X-Request-Id": "abc-123"}
    summary = await summary_of(sqlite_api, "/api/v1/pushes?limit=1", headers=headers)
    assert type(summary.pop("t")) is int
    assert summary == {
        "event": "request.summary",
        "log_level": "info",
        "agent": "curl/8.5.0",
        "errno": 0,
        "code": 200,
        "method": "GET",
        "path": "/api/v1/pushes",
        "rid": "abc-123",
        "uid": "admin",
        "lang": "de-AT",
    }


@pytest.mark.parametrize(("path", "code"), [("/api/v1/pushes/nowhere/1", 404), ("/api/v1/pushes?limit=x", 422)])
async def test_the_number_of_an_error_is_its_status(sqlite_api: Api, path: str, code: int) -> None:
    summary = await summary_of(sqlite_api, path)
    assert (summary["errno"], summary["code"]) == (code, code)


async def test_nobody_s_request_has_no_uid_and_nonsense_no_language(sqlite_api: Api) -> None:
    headers = {"User-Agent": "x" * 5_000, "Accept-Language": "\x1b[31m"}
    summary = await summary_of(sqlite_api, "/api/v1/pushes", token=None, headers=headers)
    assert summary["agent"] == "x" * 500
    assert not summary.keys() & {"uid", "lang"}


async def test_an_id_that_could_forge_a_line_is_replaced(sqlite_api: Api) -> None:
    answer = await sqlite_api.get("/pushes", headers={"X-Request-Id": 'x" injected="1'})
    assert len(answer.headers["x-request-id"]) == 32
    other = await sqlite_api.get("/pushes")
    assert answer.headers["x-request-id"] != other.headers["x-request-id"]


async def test_what_a_listener_sent_carries_the_id_of_its_batch(sqlite_api: Api) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await sqlite_api.post("/events/pushes", {}, headers={"webhook-id": "batch-1"})
    assert {line.get("batch") for line in lines if line["event"] == "request.summary"} == {"batch-1"}


async def test_health_checks_do_not_fill_the_log(sqlite_api: Api) -> None:
    with structlog.testing.capture_logs() as lines:
        await sqlite_api.client.get("/__lbheartbeat__")
    assert [line["log_level"] for line in lines if line["event"] == "request.summary"] == ["debug"]

"""A request's id in every line of the log, and in the answer."""

import structlog

from tests.service.asgi import Api


async def test_the_callers_id_is_kept_and_logged(sqlite_api: Api) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = await sqlite_api.get("/pushes", headers={"X-Request-Id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    (summary,) = [line for line in lines if line["event"] == "request.summary"]
    assert summary["request_id"] == "abc-123"
    assert (summary["method"], summary["path"], summary["status"]) == ("GET", "/api/v1/pushes", 200)


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

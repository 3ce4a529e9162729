"""Dockerflow's endpoints: open to all, and quick whatever is broken."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from service.api import health
from service.api.schemas.health import Check
from service.clock import now
from service.store.database import Database
from service.store.models import JobReport, PushStep, Stage, State
from tests.service.asgi import Api, push_event, running, settings_for


async def heartbeat(api: Api) -> tuple[int, str, dict[str, Any]]:
    answer = await api.call("GET", "/__heartbeat__", token=None)
    body = answer.json()
    return answer.status_code, body["status"], {check["name"]: check for check in body["checks"]}


async def test_all_is_well_on_an_empty_database(api: Api) -> None:
    status, overall, checks = await heartbeat(api)
    assert (status, overall) == (200, "ok")
    assert {"database", "work", "polls"} <= set(checks)
    assert {check["status"] for check in checks.values()} == {"ok"}


async def test_the_load_balancer_gets_an_answer_whatever_the_database_does(sqlite_api: Api) -> None:
    await sqlite_api.database.close()
    async with sqlite_api.database.writing():
        answer = await sqlite_api.call("GET", "/__lbheartbeat__", token=None)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_old_unfinished_work_is_a_warning(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    assert (await heartbeat(api))[1] == "ok"
    async with api.database.writing() as session:
        for step in await session.exec(select(PushStep)):
            step.since = now() - timedelta(minutes=11)
    status, overall, checks = await heartbeat(api)
    assert (status, overall, checks["work"]["status"]) == (200, "warning", "warning")
    assert "`tc-treeherder pushes list --state pending`" in checks["work"]["detail"]
    await api.end_steps(State.DONE)
    assert (await heartbeat(api))[1] == "ok"


async def test_reports_that_wait_for_an_unknown_push_are_named_with_their_list(api: Api) -> None:
    old = now() - timedelta(minutes=11)
    report = JobReport(
        task_id="A" * 22,
        run_id=0,
        environment="tc-treeherder",
        project="mc",
        task_group_id="A" * 22,
        stage=Stage.RUNNING,
        run={},
        lane="job",
        since=old,
        no_push_since=old,
    )
    async with api.database.writing() as session:
        session.add(report)
    detail = (await heartbeat(api))[2]["work"]["detail"]
    assert "`tc-treeherder reports list --state pending`" in detail
    assert "1 job reports wait for pushes that Treeherder does not know: `tc-treeherder reports list" in detail
    assert "/pushes" not in detail
    assert "/actions" not in detail


async def test_repositories_that_nobody_polls_are_a_warning(api: Api) -> None:
    for alias in ("mc", "off", "gone", "fine"):
        await api.add(alias)
    old = now() - timedelta(minutes=11)
    for alias in ("mc", "off", "gone"):
        await api.change_repository(alias, created_at=old)
    await api.change_repository("off", enabled=False)
    await api.delete("/repositories/gone")
    status, overall, checks = await heartbeat(api)
    assert (status, overall, checks["polls"]["status"]) == (200, "warning", "warning")
    assert "of 1 repositories: is a listener running?" in checks["polls"]["detail"]
    await api.change_repository(last_good_poll_at=now())
    assert (await heartbeat(api))[1] == "ok"


async def test_a_database_that_is_away_is_an_error(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise ConnectionError("postgresql://user:secret@host is away")

    monkeypatch.setattr(sqlite_api.database, "reading", away)
    status, overall, checks = await heartbeat(sqlite_api)
    assert (status, overall) == (503, "error")
    assert checks == {"database": {"name": "database", "status": "error", "detail": "ConnectionError"}}


async def test_readiness_is_the_database_alone(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise ConnectionError("Treeherder is away")

    for check in ("_work", "_polls", "_pulse"):
        monkeypatch.setattr(health, check, broken)
    assert (await heartbeat(api))[0] == 503
    answer = await api.call("GET", "/__readiness__", token=None)
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")

    monkeypatch.setattr(health, "_database", broken)
    answer = await api.call("GET", "/__readiness__", token=None)
    assert answer.status_code == 503
    assert answer.json() == {"name": "database", "status": "error", "detail": "ConnectionError"}


async def test_a_check_that_hangs_is_an_error_in_time(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(health, "TIME_LIMIT", 0.05)
    monkeypatch.setattr(health, "_work", hangs)
    status, overall, checks = await asyncio.wait_for(heartbeat(sqlite_api), 5)
    assert (status, overall) == (503, "error")
    assert checks["work"]["detail"] == "no answer within 0.05 s"
    assert checks["database"]["status"] == "ok"


async def test_a_worker_that_ended_is_an_error(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url), work=True) as api:
        assert (await heartbeat(api))[:2] == (200, "ok")
        assert (await api.call("GET", "/__lbheartbeat__", token=None)).status_code == 200
        api.app.state.worker.stop()
        await api.app.state.worker_task
        status, overall, checks = await heartbeat(api)
        assert (status, overall) == (503, "error")
        assert "restart" in checks["worker"]["detail"]
        answer = await api.call("GET", "/__lbheartbeat__", token=None)
        assert (answer.status_code, answer.json()) == (503, {"status": "error"})


async def test_nobody_learns_names_from_it_who_may_not_read(sqlite_api: Api) -> None:
    await sqlite_api.add("top-secret-project")
    await sqlite_api.change_repository("top-secret-project", created_at=now() - timedelta(minutes=11))
    answer = await sqlite_api.call("GET", "/__heartbeat__", token=None)
    assert answer.json()["status"] == "warning"
    assert "top-secret-project" not in answer.text


async def test_the_version_is_that_of_the_package_or_of_the_image(
    sqlite_api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = await sqlite_api.call("GET", "/__version__", token=None)
    assert answer.json()["version"] == version("tc-treeherder")
    image = {"source": "https://example.com", "version": "1.2.3", "commit": "abc", "build": "https://ci"}
    (tmp_path / "version.json").write_text(json.dumps(image))
    answer = await sqlite_api.call("GET", "/__version__", token=None)
    assert (answer.status_code, answer.json()) == (200, image)


async def test_dockerflows_error_endpoint_is_left_out(sqlite_api: Api) -> None:
    assert (await sqlite_api.call("GET", "/__error__")).status_code == 404


@contextmanager
def read_only(api: Api) -> Iterator[None]:
    """Meanwhile the database refuses every write, as SQLite does with a full disk and PostgreSQL as a standby."""
    statement = "PRAGMA query_only = {}" if api.database.sqlite else "SET default_transaction_read_only = {}"
    engine = api.database.engine.sync_engine

    def refuse(connection: Any, *_: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement.format("ON"))
        cursor.close()
        if not api.database.sqlite:
            connection.commit()

    def allow(connection: Any, *_: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement.format("OFF"))
        cursor.close()
        if not api.database.sqlite:
            connection.commit()

    event.listen(engine, "checkout", refuse)
    event.listen(engine, "checkin", allow)
    try:
        yield
    finally:
        event.remove(engine, "checkout", refuse)
        event.remove(engine, "checkin", allow)


async def test_a_database_that_takes_no_writes_is_an_error(api: Api) -> None:
    for _ in range(2):
        answer = await api.call("GET", "/__readiness__", token=None)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        with read_only(api):
            assert (await api.get("/repositories")).status_code == 200, "it still answers"
            answer = await api.call("GET", "/__readiness__", token=None)
            assert answer.status_code == 503
            assert "it takes no writes: " in answer.json()["detail"]
            assert "read" in answer.json()["detail"]
            assert "INSERT INTO" not in answer.json()["detail"]
            status, overall, checks = await heartbeat(api)
            assert (status, overall, checks["database"]["status"]) == (503, "error", "error")
            assert (await api.call("GET", "/__lbheartbeat__", token=None)).status_code == 200, "no restart mends it"
    assert (await heartbeat(api))[:2] == (200, "ok")


async def test_nobody_learns_from_it_where_the_database_is(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'connection to server at "10.1.2.3", port 5432 failed: FATAL: password authentication failed for user "svc"'

    async def probe(_: object) -> None:
        raise OperationalError("INSERT", {}, psycopg.OperationalError(said))

    monkeypatch.setattr(Database, "write_probe", probe)
    async with running(settings_for(sqlite_url)) as api:
        for path in ("/__readiness__", "/__heartbeat__"):
            answer = await api.call("GET", path, token=None)
            assert answer.status_code == 503
            assert "it takes no writes: OperationalError" in answer.text
            assert "10.1.2.3" not in answer.text
            assert "svc" not in answer.text


async def test_a_write_is_tried_now_and_then_and_one_at_a_time(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    async def probe(_: object) -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0.01)

    monkeypatch.setattr(Database, "write_probe", probe)
    async with running(settings_for(sqlite_url, write_check=600)) as api:
        paths = ["/__readiness__", "/__heartbeat__"] * 10
        answers = await asyncio.gather(*(api.call("GET", path, token=None) for path in paths))
        assert {answer.status_code for answer in answers} == {200}
        assert tried == 1


async def test_a_writer_that_takes_its_time_makes_nobody_unready(
    sqlite_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TIME_LIMIT", 0.5)
    async with sqlite_api.database.writing():
        answer = await sqlite_api.call("GET", "/__readiness__", token=None)
        assert (answer.status_code, answer.json()["status"]) == (200, "warning")
        assert (await heartbeat(sqlite_api))[:2] == (200, "warning")


async def test_the_checks_are_made_once_for_all_who_ask(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    async def check(_: object) -> Check:
        nonlocal made
        made += 1
        await asyncio.sleep(0.01)
        return Check(name="work", status="ok")

    monkeypatch.setattr(health, "_work", check)
    async with running(settings_for(sqlite_url, health_cache=600)) as api:
        await asyncio.gather(*(heartbeat(api) for _ in range(20)))
    assert made == 1


async def test_metrics_have_the_process_and_what_is_running(sqlite_api: Api) -> None:
    text = (await sqlite_api.call("GET", "/metrics", token=None)).text
    memory = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M)
    assert memory is not None
    assert 20e6 < float(memory[1]) < 2e9
    assert re.search(r"^process_cpu_seconds_total \S+$", text, re.M)
    version = (await sqlite_api.call("GET", "/__version__", token=None)).json()["version"]
    assert f'tc_treeherder_build_info{{commit="",version="{version}"}} 1.0' in text

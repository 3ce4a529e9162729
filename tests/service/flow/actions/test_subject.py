"""The task that an action names, its repository, and the run."""

from typing import Any

import pytest
from sqlmodel import select

from service.flow.actions.subject import ActionRejectedError, fetch_subject, find_repository, find_run
from service.store.models import Repository
from tests.service.flow.graph_factory import build, slug
from tests.service.harness import FlowHarness


@pytest.mark.parametrize("task_id", ["", "a", "x" * 22, "../../../etc/passwd"])
async def test_a_task_id_of_another_form_is_rejected_before_any_call(monitored: FlowHarness, task_id: str) -> None:
    with pytest.raises(ActionRejectedError, match="this is not the form of a taskId"):
        await fetch_subject(monitored.services, "mc", task_id)
    assert not monitored.tc.journal.calls


async def test_a_task_that_does_not_exist_is_rejected(monitored: FlowHarness) -> None:
    with pytest.raises(ActionRejectedError, match="it may have expired"):
        await fetch_subject(monitored.services, "mc", slug("missing"))


async def test_the_subject_has_the_task_its_repository_and_the_routes_that_name_the_project(
    monitored: FlowHarness,
) -> None:
    build(monitored.tc.queue, {"group": [], "a": []})
    subject = await fetch_subject(monitored.services, "mc", slug("a"))
    assert (subject.name, subject.repository.alias) == ("a", "mc")
    assert subject.status["taskId"] == slug("a")
    assert {route.project for _, route in subject.routes} == {"mc"}


async def test_a_disabled_repository_is_rejected_with_the_remedy(monitored: FlowHarness) -> None:
    async with monitored.database.writing() as session:
        (await session.exec(select(Repository))).one().enabled = False
    with pytest.raises(ActionRejectedError, match="mc is disabled: enable it first"):
        await find_repository(monitored.services, "mc")
    with pytest.raises(ActionRejectedError, match="'try' is monitored here: add it first"):
        await find_repository(monitored.services, "try")


@pytest.mark.parametrize(
    ("runs", "run_id", "expected"),
    [(2, None, 1), (2, 0, 0), (2, 1, 1), (0, None, None), (0, 0, None)],
)
def test_the_run_that_is_named_or_else_the_latest(runs: int, run_id: int | None, expected: int | None) -> None:
    status: dict[str, Any] = {"taskId": slug("a"), "runs": [{"runId": number} for number in range(runs)]}
    run = find_run(status, run_id)
    assert (run and run["runId"]) == expected


def test_a_run_that_does_not_exist_is_rejected() -> None:
    with pytest.raises(ActionRejectedError, match="has no run 2: it has 1"):
        find_run({"taskId": slug("a"), "runs": [{"runId": 0}]}, 2)

"""The task that an action names, its repository, and the run."""

from typing import Any

import pytest
from sqlmodel import select

from service.flow.tasks.subject import (
    ActionRejectedError,
    fetch_subject,
    find_push,
    find_repository,
    find_run,
    newest_generation,
)
from service.store.models import Action, Repository, Source
from tests.service.flow.graph_factory import build, slug
from tests.service.harness import FlowHarness, push_event


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
    with pytest.raises(ActionRejectedError, match="mc is disabled: `tc-treeherder repositories set mc --enabled`"):
        await find_repository(monitored.services, "mc")
    with pytest.raises(ActionRejectedError, match="'try' is monitored: `tc-treeherder repositories list`"):
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


def action_on_push(push_id: int, generation: int | None) -> Action:
    about: dict[str, Any] = {"kind": "look", "project": "mc", "requester": "me", "source": Source.API, "lane": "x"}
    return Action(**about, push_id=push_id, generation=generation)


async def test_a_push_is_that_of_the_generation_in_which_it_was_asked_for(monitored: FlowHarness) -> None:
    await monitored.store(push_event(7))
    async with monitored.database.writing() as session:
        assert await newest_generation(session, "mc", 7) == 0
        (await session.exec(select(Repository))).one().generation = 1
    await monitored.store(push_event(7, generation=1, user="other@example.com"))
    async with monitored.database.reading() as session:
        assert await newest_generation(session, "mc", 7) == 1
        assert await newest_generation(session, "mc", 8) is None
        assert await newest_generation(session, "elsewhere", 7) is None
    subject = await find_push(monitored.services, action_on_push(7, 0))
    assert (subject.push.user, subject.push.generation, subject.name) == ("dev@example.com", 0, "push 7 of mc")


async def test_a_push_that_is_not_known_is_rejected_with_the_remedy(monitored: FlowHarness) -> None:
    with pytest.raises(ActionRejectedError, match=r"no push 7 of mc is known here: .*pushes list --repository mc"):
        await find_push(monitored.services, action_on_push(7, None))
    async with monitored.database.writing() as session:
        (await session.exec(select(Repository))).one().enabled = False
    with pytest.raises(ActionRejectedError, match="mc is disabled"):
        await find_push(monitored.services, action_on_push(7, None))

"""What a decision task offers: read once for each run, within limits, and what a file that is no good comes to."""

import dataclasses
from typing import Any
from unittest.mock import AsyncMock

import pytest

from service.engine.render import SpentError
from service.errors import Unavailable
from service.flow.actions import offers
from service.flow.actions.offers import FILE, Offered, offered_for_push, offered_for_task
from service.flow.tasks.subject import ActionFailedError, PushSubject, fetch_subject, find_repository
from tests.service.flow.actions.in_tree_factory import (
    ACTION,
    CANCEL_ALL,
    DECISION,
    RETRIGGER,
    add_decision,
    add_push,
    add_task,
    allow,
    file_of,
)
from tests.service.flow.graph_factory import slug
from tests.service.harness import FlowHarness


async def offered(harness: FlowHarness, task_id: str) -> Offered:
    return await offered_for_task(harness.services, await fetch_subject(harness.services, "mc", task_id), "share")


async def names(harness: FlowHarness, task_id: str) -> list[str]:
    return [action["name"] for action in (await offered(harness, task_id)).actions]


@pytest.fixture
def offering(monitored: FlowHarness) -> FlowHarness:
    add_decision(monitored, file_of(ACTION, CANCEL_ALL, RETRIGGER))
    return monitored


async def test_a_task_and_a_push_are_offered_what_is_for_them(offering: FlowHarness) -> None:
    push = await add_push(offering, DECISION)
    assert await names(offering, add_task(offering)) == ["backfill", "retrigger"]
    assert await names(offering, add_task(offering, "build", tags={"kind": "build"})) == ["retrigger"]
    subject = PushSubject(await find_repository(offering.services, "mc"), push)
    of_push = await offered_for_push(offering.services, subject, "share")
    assert [action["name"] for action in of_push.actions] == ["cancel-all"]
    assert of_push.offer is not None
    assert of_push.offer.decision.task_id == slug(DECISION)


async def test_a_file_is_fetched_once_for_each_run(offering: FlowHarness) -> None:
    task_id = add_task(offering)
    for _ in range(3):
        assert await names(offering, task_id) == ["backfill", "retrigger"]
    assert offering.tc.journal.calls["getArtifact"] == 1
    queue, decision = offering.tc.queue, slug(DECISION)
    queue.rerun_task(decision)
    assert await names(offering, task_id) == []  # the new run has no file yet, and that is not remembered
    queue.claim_task(decision, 1, {"workerGroup": "g", "workerId": "w"})
    offering.tc.artifacts.store(decision, 1, FILE, file_of(RETRIGGER), "application/json")
    for _ in range(3):
        assert await names(offering, task_id) == ["retrigger"]
    assert offering.tc.journal.calls["getArtifact"] == 5  # while it runs, it may be replaced


async def test_without_a_file_there_are_no_actions(monitored: FlowHarness) -> None:
    add_decision(monitored, None)
    nothing = await offered(monitored, add_task(monitored))
    assert nothing.actions == []
    assert nothing.reason == (
        f"the decision task of task {slug('test')} (test) ({slug(DECISION)}) has no {FILE}, or that has expired"
    )


async def test_a_task_without_a_decision_task_has_no_actions(monitored: FlowHarness) -> None:
    nothing = await offered(monitored, add_task(monitored, group="gone"))
    assert nothing.reason == f"no decision task of task {slug('test')} (test) is known, or none has succeeded"


async def test_a_file_that_has_expired_is_none(offering: FlowHarness) -> None:
    offering.tc.faults.add("before", "getArtifact", status=404)
    assert (await offered(offering, add_task(offering))).actions == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>", "is no JSON"),
        (file_of(ACTION, version=2), "has the version 2: only version 1 is understood"),
        (b" " * 20_000_000, "has more than 10,485,760 bytes"),
    ],
)
async def test_a_file_that_cannot_be_used_says_why_and_is_read_once(
    monitored: FlowHarness, content: bytes, why: str
) -> None:
    add_decision(monitored, content)
    task_id = add_task(monitored)
    for _ in range(2):
        with pytest.raises(ActionFailedError, match=FILE) as refused:
            await offered(monitored, task_id)
        assert why in str(refused.value)
    assert monitored.tc.journal.calls["getArtifact"] == 1


async def test_a_file_that_took_too_long_is_read_again(offering: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = add_task(offering)
    slow = AsyncMock(side_effect=SpentError("takes longer than 10 s to render"))
    with monkeypatch.context() as patch:
        patch.setattr(offering.services.renderer, "actions", slow)
        with pytest.raises(ActionFailedError, match="takes longer than 10 s"):
            await offered(offering, task_id)
    assert await names(offering, task_id) == ["backfill", "retrigger"]


async def test_what_is_kept_of_a_file_has_no_definition_of_the_task(offering: FlowHarness) -> None:
    assert (await offered(offering, add_task(offering))).offer is not None
    kept = offering.services.offers.get((slug(DECISION), 0))
    assert [field.name for field in dataclasses.fields(kept)] == ["document", "actions"]


async def test_a_file_that_lies_elsewhere_is_not_fetched(monitored: FlowHarness) -> None:
    add_decision(monitored, None, state="running")
    reference = {
        "storageType": "reference",
        "url": "http://169.254.169.254/latest",
        "contentType": "application/json",
        "expires": monitored.tc.queue.task(slug(DECISION))["expires"],
    }
    monitored.tc.artifacts.create(slug(DECISION), 0, FILE, reference, base_url="http://unused")
    with pytest.raises(ActionFailedError, match="is stored as 'reference', which is not fetched"):
        await offered(monitored, add_task(monitored))


async def test_a_missing_scope_is_named(offering: FlowHarness) -> None:
    allow(offering)
    assert await names(offering, add_task(offering)) == ["backfill", "retrigger"]
    offering.services.offers.put((slug(DECISION), 0), None, 0)
    scopes = ["queue:get-task:*", "queue:status:*", "x:secret"]
    offering.tc.auth.add_client("tc-treeherder", "service-secret", scopes)
    with pytest.raises(ActionFailedError, match=r"lacks queue:get-artifact:public/actions\.json") as refused:
        await offered(offering, add_task(offering, "other"))
    assert "x:secret" not in str(refused.value)


async def test_while_taskcluster_is_away_nothing_is_remembered(offering: FlowHarness) -> None:
    task_id = add_task(offering)
    fault = offering.tc.faults.add("before", "getArtifact", status=500)
    with pytest.raises(Unavailable):
        await offered(offering, task_id)
    offering.tc.faults.remove(fault.fault_id)
    assert await names(offering, task_id) == ["backfill", "retrigger"]


async def test_tags_that_are_no_texts_are_left_out() -> None:
    definition: dict[str, Any] = {"tags": {"kind": "test", "n": 1}}
    assert offers.tags_of(definition) == {"kind": "test"}
    assert offers.tags_of({"tags": []}) == offers.tags_of({}) == {}

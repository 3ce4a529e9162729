"""Jobs on Pulse, held against our schema of them, which is compared with the published one."""

import re
from typing import Any, Literal

import pytest

from service.clients.treeherder import FoundPush
from service.flow.jobs.pulse import pulse_message
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.store.models import Stage
from tests.sandbox.taskcluster.support import spoiled
from tests.service.flow.jobs.report_factory import (
    PUSH,
    ROOT,
    SCHEMAS,
    TIP,
    check_pulse,
    facts_of,
    recorded,
    report,
    reports_of,
    validators,
)
from tests.task_event_examples import EVENTS


def test_pulse_messages_of_every_event_fit_the_schema() -> None:
    fit_the_schema(EVENTS)


@pytest.mark.published
def test_pulse_messages_of_every_recorded_event_fit_the_schema() -> None:
    fit_the_schema(recorded())


def fit_the_schema(recordings: list[dict[str, Any]]) -> None:
    for event in recordings:
        (run_report,) = reports_of(event["message"]["payload"])
        facts = TaskFacts(run_report.task_id, event["task"])
        for form in SCHEMAS:
            message = pulse_message(
                run_report, facts, ROOT, "live_backing_log", FoundPush(event["revision"], None), schema=form
            )
            check_pulse(message, form)
            assert message["timeScheduled"] == re.sub(r"\.\d+", ".000", event["task"]["created"])
        assert message["taskId"] == event["job"]["job_guid"]
        assert message["state"] == event["job"]["state"]
        assert message["display"]["jobSymbol"] == event["job"]["job_symbol"]


@pytest.mark.published
@pytest.mark.parametrize("form", SCHEMAS)
def test_ours_and_the_published_schema_take_the_same_messages(form: Literal["2015", "2026"]) -> None:
    ours, published = validators(form)
    message = pulse_message(report(), facts_of(labels=["opt"]), ROOT, "live_backing_log", PUSH, schema=form)
    outcomes = set()
    for changed in spoiled(message, 4):
        outcomes.add(ours.is_valid(changed))
        assert ours.is_valid(changed) == published.is_valid(changed), changed
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("stage", "run", "expected"),
    [
        (Stage.UNSCHEDULED, {}, ("pending", "unknown", False)),
        (Stage.RUNNING, {"state": "running"}, ("running", "unknown", False)),
        (Stage.RESOLVED, {}, ("completed", "success", False)),
        (Stage.RESOLVED, {"state": "failed"}, ("completed", "fail", False)),
        (Stage.RESOLVED, {"state": "exception", "reason": "canceled"}, ("completed", "canceled", False)),
        (Stage.RESOLVED, {"state": "exception", "reason": "claim-expired"}, ("completed", "exception", False)),
        (Stage.FOLLOWED, {"state": "failed"}, ("completed", "fail", True)),
        (Stage.FOLLOWED, {"state": "exception", "reason": "claim-expired"}, ("completed", "exception", True)),
    ],
)
def test_pulse_messages_of_every_state(stage: Stage, run: dict[str, Any], expected: tuple[str, str, bool]) -> None:
    message = pulse_message(report(stage, **run), facts_of(), ROOT, "live_backing_log", PUSH)
    check_pulse(message)
    assert (message["state"], message["result"], message["isRetried"]) == expected
    assert message["origin"]["kind"] == "hg.mozilla.org"
    message = pulse_message(report(stage, **run), facts_of(), ROOT, "live_backing_log", PUSH, schema="2026")
    check_pulse(message, "2026")
    assert message["origin"] == {"project": "mc", "revision": TIP}
    assert message["result"] == ("retry" if stage == Stage.FOLLOWED else expected[1])


def test_a_project_that_the_schema_has_no_room_for_is_named() -> None:
    run_report = report()
    run_report.project = "pdf.js"
    with pytest.raises(UnshowableTaskError, match="project"):
        pulse_message(run_report, facts_of(), ROOT, "live_backing_log", PUSH)

"""Jobs on Pulse, compared with the published schema."""

import re
from typing import Any

import pytest

from service.clients.treeherder import FoundPush
from service.flow.jobs.pulse import pulse_message
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError
from service.store.models import Stage
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
)


def test_pulse_messages_of_every_recorded_event_fit_the_schema() -> None:
    for event in recorded():
        (made,) = reports_of(event["message"]["payload"])
        told = TaskFacts(made.task_id, event["task"])
        for form in SCHEMAS:
            message = pulse_message(
                made, told, ROOT, "live_backing_log", FoundPush(event["revision"], None), schema=form
            )
            check_pulse(message, form)
            assert message["timeScheduled"] == re.sub(r"\.\d+", ".000", event["task"]["created"])
        assert message["taskId"] == event["job"]["job_guid"]
        assert message["state"] == event["job"]["state"]
        assert message["display"]["jobSymbol"] == event["job"]["job_symbol"]


@pytest.mark.parametrize(
    ("stage", "run", "told"),
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
def test_pulse_messages_of_every_state(stage: Stage, run: dict[str, Any], told: tuple[str, str, bool]) -> None:
    message = pulse_message(report(stage, **run), facts_of(), ROOT, "live_backing_log", PUSH)
    check_pulse(message)
    assert (message["state"], message["result"], message["isRetried"]) == told
    assert message["origin"]["kind"] == "hg.mozilla.org"
    message = pulse_message(report(stage, **run), facts_of(), ROOT, "live_backing_log", PUSH, schema="2026")
    check_pulse(message, "2026")
    assert message["origin"] == {"project": "mc", "revision": TIP}
    assert message["result"] == ("retry" if stage == Stage.FOLLOWED else told[1])


def test_a_project_that_the_schema_has_no_room_for_is_named() -> None:
    made = report()
    made.project = "pdf.js"
    with pytest.raises(UnshowableTaskError, match="project"):
        pulse_message(made, facts_of(), ROOT, "live_backing_log", PUSH)

"""Runs and definitions become jobs: against recordings of a real queue and Treeherder, and the published schemas."""

import json
import re
from typing import Any, Literal

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.treeherder.store import check_job_entry
from service.clients.treeherder import FoundPush
from service.clock import now
from service.flow.jobs.events import Target, TaskStatus, build_rows
from service.flow.jobs.pulse import pulse_message
from service.flow.jobs.rest import rest_entry
from service.flow.jobs.run import artifact_links, job_guid, log_of, state_of
from service.flow.tasks.facts import TaskFacts, UnshowableTaskError, cut
from service.store.models import JobReport, Stage
from tests.published_schemas import published_folder, read_published
from tests.service.flow.report_harness import definition

TASK = "A35mWTRuQmyj88yMnIF0fA"
ROOT = "https://taskcluster.net"
TIP = "a1" * 20
PUSH = FoundPush(TIP, None)

OURS = {"artifacts", "desc"}
"""Keys that we add to the recorded jobs: the link to the task, and the task's own description."""

THEIRS = {"perfherder_data_references"}
"""A key of today's Treeherder, which is not submitted to."""


def reports_of(payload: dict[str, Any], project: str = "mc", revision: str | None = TIP) -> list[JobReport]:
    status = TaskStatus.model_validate(payload["status"])
    rows = build_rows(status, [Target("tc-treeherder", project, revision)])
    return [JobReport(**row._asdict(), last_event_at=now()) for row in rows]


def report(stage: Stage = Stage.RESOLVED, **run: Any) -> JobReport:
    known = {"state": "completed", "started": 1_700_000_010, "resolved": 1_700_000_020, "worker": "w1", **run}
    target: dict[str, Any] = {
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": TIP,
        "lane": "job tc-treeherder mc",
    }
    return JobReport(task_id=TASK, run_id=0, task_group_id=TASK, stage=stage, run=known, **target)


def facts_of(**section: Any) -> TaskFacts:
    extra = {"treeherder": {"symbol": "B", **section}}
    return TaskFacts(TASK, {**definition(extra=extra), "workerType": "linux"})


# --- recordings ------------------------------------------------------------------------------------------------------


def recorded() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = read_published("pulse/task-events.json")
    return events


@pytest.mark.published
def test_the_24_real_events_come_out_as_the_jobs_that_stand_beside_them() -> None:
    assert len(recorded()) == 24
    for event in recorded():
        # the recording is older than two keys that the queue's status has by now; we need neither
        (made,) = reports_of(event["message"]["payload"])
        entry = rest_entry(
            made, TaskFacts(made.task_id, event["task"]), ROOT, "live_backing_log", FoundPush(event["revision"], None)
        )
        job = entry["job"]
        assert {key: value for key, value in job.items() if key not in OURS} == {
            key: value for key, value in event["job"].items() if key not in THEIRS
        }
        assert job["desc"] == event["task"]["metadata"]["description"]
        details = [json.loads(artifact["blob"])["job_details"] for artifact in job["artifacts"]]
        links = [link["url"] for links in details for link in links]
        assert links == ([f"{ROOT}/tasks/{made.task_id}/runs/0"] if job["state"] == "completed" else [])
        check_job_entry("entry", "mc", entry)


@pytest.mark.published
def test_the_real_messages_of_a_queue_pass() -> None:
    folder = published_folder() / "pulse" / "queue-messages"
    told = {}
    for path in sorted(folder.glob("task-*-?.json")):
        if path.name.startswith(("task-group", "task-priority")):
            continue
        for made in reports_of(json.loads(path.read_text())["payload"]):
            told[path.stem, made.run_id] = state_of(made, None)
            check_job_entry("entry", "mc", rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH))
    assert told["task-defined-0", 0] == told["task-pending-0", 0] == ("pending", "unknown")
    assert told["task-failed-0", 0] == ("completed", "testfailed")
    assert told["task-exception-0", 0] == ("completed", "exception")
    # the exception of run 1 lists run 2 already: both the rerun and the retry are told
    assert told["task-exception-1", 0] == told["task-exception-1", 1] == ("completed", "retry")
    assert told["task-exception-1", 2] == ("pending", "unknown")
    assert told["task-exception-2", 2] == ("completed", "retry")
    assert told["task-exception-3", 0] == ("completed", "usercancel")


# --- what becomes of a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        ("canceled", "usercancel"),
        ("superseded", "superseded"),
        *(
            (reason, "exception")
            for reason in (
                "deadline-exceeded",
                "worker-shutdown",
                "intermittent-task",
                "claim-expired",
                "malformed-payload",
                "resource-unavailable",
                "internal-error",
                "a-reason-of-tomorrow",
            )
        ),
    ],
)
def test_every_kind_of_exception(reason: str, result: str) -> None:
    ended = report(state="exception", reason=reason)
    assert state_of(ended, None) == ("completed", result)
    assert log_of(ended, ROOT) is None
    followed = report(Stage.FOLLOWED, state="exception", reason=reason)
    assert state_of(followed, None) == ("completed", "retry")
    assert log_of(followed, ROOT) is None


@pytest.mark.parametrize(
    ("section", "result"),
    [
        ({}, "testfailed"),
        ({"jobKind": "test"}, "testfailed"),
        ({"jobKind": "build"}, "busted"),
        ({"jobKind": "other"}, "busted"),
    ],
)
def test_a_failure_is_red_unless_the_task_says_that_it_is_no_test(section: dict[str, Any], result: str) -> None:
    failed, told = report(state="failed"), facts_of(**section)
    job = rest_entry(failed, told, ROOT, "builds-4h", PUSH)["job"]
    assert (job["state"], job["result"]) == ("completed", result)
    assert len(job["log_references"]) == 1
    message = pulse_message(failed, told, ROOT, "live_backing_log", PUSH)
    assert message["result"] == "fail"
    assert message["jobKind"] == section.get("jobKind", "test"), "which is what its reader makes red of"


def status_of(*runs: dict[str, Any]) -> dict[str, Any]:
    """A task's status; runs that ended started before."""
    times = {"scheduled": "2026-11-29T00:00:00.000Z", "started": "2026-11-29T00:01:00.000Z"}
    numbered = [{"runId": number, "reasonCreated": "scheduled", **times, **run} for number, run in enumerate(runs)]
    last = numbered[-1]["state"]
    return {
        "taskId": TASK,
        "taskGroupId": TASK,
        "deadline": "2026-11-30T00:00:00.000Z",
        "state": last,
        "runs": numbered,
    }


@pytest.mark.parametrize(
    "first",
    [
        {"state": "exception", "reasonResolved": "claim-expired"},
        {"state": "exception", "reasonResolved": "intermittent-task"},
        {"state": "failed", "reasonResolved": "failed"},
    ],
)
def test_only_a_run_that_ended_as_its_task_did_has_a_log(first: dict[str, Any]) -> None:
    statuses = [status_of(first, {"state": "pending", "reasonCreated": "retry"})]
    statuses.append(status_of({"state": "exception", "reasonResolved": "malformed-payload"}))
    for status in statuses:
        for made in reports_of({"status": status}):
            assert rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH)["job"]["log_references"] == []
            assert "logs" not in {k for k, v in pulse_message(made, facts_of(), ROOT, "l", PUSH).items() if v}
    for state in ("completed", "failed"):
        (made,) = reports_of({"status": status_of({"state": state, "reasonResolved": state})})
        assert len(rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH)["job"]["log_references"]) == 1


def test_a_run_that_never_started_has_an_end_but_no_start_and_no_log() -> None:
    made = report(state="exception", reason="canceled")
    del made.run["started"]
    del made.run["worker"]
    job = rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH)["job"]
    assert "start_timestamp" not in job
    assert job["end_timestamp"] == 1_700_000_020
    assert job["machine"] == "unknown"
    assert job["log_references"] == []


def test_a_task_whose_deadline_passed_before_it_ran_and_has_no_run_is_an_exception() -> None:
    status = {
        "taskId": TASK,
        "taskGroupId": TASK,
        "deadline": "2026-01-02T00:00:00.000Z",
        "state": "exception",
        "runs": [],
    }
    (made,) = reports_of({"status": status})
    assert state_of(made, None) == ("completed", "exception")
    check_job_entry("entry", "mc", rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH))


def test_the_log_has_the_name_it_is_given_and_an_address_that_fits() -> None:
    entry = rest_entry(report(), facts_of(), ROOT, "builds-4h", PUSH)
    (log,) = entry["job"]["log_references"]
    assert log["name"] == "builds-4h"
    assert log["url"] == f"{ROOT}/api/queue/v1/task/{TASK}/runs/0/artifacts/public/logs/live_backing.log"
    assert log_of(report(), "https://" + "x" * 200) is None
    assert log_of(report(Stage.RUNNING), ROOT) is None


def test_job_guid() -> None:
    assert job_guid(TASK, 3) == "037e6659-346e-426c-a3f3-cc8c9c81747c/3"


def test_a_v1_report_names_the_hash_too() -> None:
    made = report()
    made.revision, made.revision_hash = None, "b2" * 20
    entry = rest_entry(made, facts_of(), ROOT, "builds-4h", PUSH)
    assert (entry["revision"], entry["revision_hash"]) == (TIP, "b2" * 20)


def test_a_v2_report_names_the_hash_of_its_push_where_it_is_known() -> None:
    assert "revision_hash" not in rest_entry(report(), facts_of(), ROOT, "builds-4h", PUSH)
    entry = rest_entry(report(), facts_of(), ROOT, "builds-4h", FoundPush(TIP, "b2" * 20))
    assert (entry["revision"], entry["revision_hash"]) == (TIP, "b2" * 20)


# --- links -----------------------------------------------------------------------------------------------------------


def test_links_are_numbered_and_stay_recognisable() -> None:
    names = [
        "public/a/",
        "public/x/perfherder-data-talos.json",
        "public/y/perfherder-data-talos.json",
        "public/x/mochitest_errorsummary.log",
        "public/y/mochitest_errorsummary.log",
        "public/z/mochitest_errorsummary.log",
        "public/with space.txt",
        "private/README",
        "public/README",
        "public/.hidden",
        "public/a/.hidden",
    ]
    artifacts = [{"name": name, "storageType": "s3"} for name in names]
    artifacts.append({"name": "public/failed.txt", "storageType": "error"})
    links = artifact_links(report(), ROOT, artifacts)
    assert [link["value"] for link in links] == [
        "perfherder-data-talos.json",
        "perfherder-data-talos-2.json",
        "mochitest_errorsummary.log",
        "mochitest-2_errorsummary.log",
        "mochitest-3_errorsummary.log",
        "with space.txt",
        "README",
        "README-2",
        ".hidden",
        ".hidden-2",
    ]
    base = f"{ROOT}/api/queue/v1/task/{TASK}/runs/0/artifacts"
    assert links[0]["url"] == f"{base}/public/x/perfherder-data-talos.json"
    assert links[5]["url"] == f"{base}/public/with%20space.txt"


# --- what a task says about itself -----------------------------------------------------------------------------------


def test_defaults() -> None:
    told = facts_of()
    assert (told.group_symbol, told.group_name, told.product, told.tier) == ("?", "unknown", "unknown", 1)
    assert (told.reason, told.job_kind, told.options) == ("scheduled", None, ["opt"])
    platform = {"platform": "linux", "os_name": "-", "architecture": "-"}
    assert told.machine == told.build == platform


def test_machine_and_build_stand_in_for_each_other() -> None:
    told = facts_of(
        machine={"platform": "android", "os": "linux"}, build={"platform": "linux64", "architecture": "arm"}
    )
    assert told.machine == {"platform": "android", "os_name": "linux", "architecture": "arm"}
    assert told.build == {"platform": "linux64", "os_name": "linux", "architecture": "arm"}
    assert facts_of(build={"platform": "win"}).machine["platform"] == "win"


@pytest.mark.parametrize(("symbol", "shown"), [(3, "3"), (3.0, "3"), (2.5, "2.5"), ("", ""), ("B", "B")])
def test_symbols_may_be_numbers(symbol: Any, shown: str) -> None:
    assert facts_of(symbol=symbol).symbol == shown


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ({}, ["opt"]),
        ({"collection": {}}, ["opt"]),
        ({"collection": {"debug": False}}, ["opt"]),
        ({"collection": {"debug": True}}, ["debug"]),
        ({"collection": {"debug": True, "opt": False}}, ["debug"]),
        ({"labels": []}, ["opt"]),
        ({"labels": ["debug", "asan"]}, ["debug", "asan"]),
        ({"labels": ["pgo"], "collection": {"opt": True}}, ["pgo"]),
    ],
)
def test_options(section: dict[str, Any], options: list[str]) -> None:
    told = facts_of(**section)
    assert told.options == options
    job = rest_entry(report(), told, ROOT, "builds-4h", PUSH)["job"]
    assert job["option_collection"] == dict.fromkeys(options, True)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({}, "no extra.treeherder"),
        ({"treeherder": None}, "no extra.treeherder"),
        ({"treeherder": []}, "no extra.treeherder"),
        ({"treeherder": {}}, "symbol"),
        ({"treeherder": {"symbol": None}}, "symbol"),
        ({"treeherder": {"symbol": True}}, "symbol"),
        ({"treeherder": {"symbol": "B", "tier": 4}}, "tier"),
        ({"treeherder": {"symbol": "B", "tier": "1"}}, "tier"),
        ({"treeherder": {"symbol": "B", "jobKind": "tea"}}, "jobKind"),
        ({"treeherder": {"symbol": "B", "labels": [""]}}, "labels"),
        ({"treeherder": {"symbol": "B", "machine": "linux"}}, "machine"),
        ({"treeherder": {"symbol": "B", "collection": {"opt": True, "debug": True}}}, "debug, opt"),
    ],
)
def test_sections_that_are_not_usable_and_why(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnshowableTaskError, match=reason):
        TaskFacts(TASK, {**definition(extra=extra), "workerType": "linux"})


def _word(longest: int, shortest: int = 1) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from("aZ0_-"), min_size=shortest, max_size=longest)


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
CONFIGS = st.fixed_dictionaries(
    {"symbol": st.text(st.characters(exclude_categories=["Cs"]), max_size=25)},
    optional={
        "reason": _TEXT.filter(lambda text: len(text) <= 125),
        "tier": st.integers(1, 3),
        "jobKind": st.sampled_from(["build", "test", "other"]),
        "machine": st.fixed_dictionaries(
            {"platform": _word(50)}, optional={"os": _word(25), "architecture": _word(25)}
        ),
        "labels": st.lists(_word(50), max_size=4),
        "groupName": st.text("wörd ", min_size=1, max_size=255),
        "groupSymbol": st.text("gG?", min_size=1, max_size=25),
        "productName": st.text("p ", min_size=1, max_size=125),
        "unheardOf": st.integers(),
    },
)


@pytest.mark.published
@settings(max_examples=150, deadline=None)
@given(CONFIGS, st.integers(1, 5), st.sampled_from(list(Stage)))
def test_whatever_the_published_config_allows_becomes_a_job_that_fits(
    config: dict[str, Any], names: int, stage: Stage
) -> None:
    schema = yaml.safe_load((published_folder() / "treeherder/task-treeherder-config.yml").read_text())
    jsonschema.validate(config, schema)
    metadata = {"name": "n" * 100 * names, "description": "", "owner": "o" * 30 * names, "source": "https://x.y"}
    task = {**definition(extra={"treeherder": config}, metadata=metadata), "workerType": "linux"}
    told = TaskFacts(TASK, task)
    made = report(stage)
    check_job_entry("entry", "mc", rest_entry(made, told, ROOT, "builds-4h", PUSH))
    for form in SCHEMAS:
        check_pulse(pulse_message(made, told, ROOT, "live_backing_log", PUSH, schema=form), form)


SCHEMAS: tuple[Literal["2015", "2026"], ...] = ("2015", "2026")


def check_pulse(message: dict[str, Any], form: Literal["2015", "2026"] = "2015") -> None:
    """Hold a message against the published schema, or against its long-lived form before."""
    schema = yaml.safe_load((published_folder() / "treeherder/pulse-job.yml").read_text())
    if form == "2015":
        properties = schema["properties"]
        origin = properties["origin"]
        origin["properties"] = {**origin["properties"], "kind": {"enum": ["hg.mozilla.org"]}}
        origin["required"] = ["kind", "project", "revision"]
        properties["result"]["enum"].remove("retry")
        properties["display"]["properties"]["jobName"]["maxLength"] = 100
        properties["display"]["properties"]["groupName"]["maxLength"] = 100
    jsonschema.validate(message, schema)


# --- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("abcde", "abcde"),
        ("abcdef", "abcde"),
        ("abcd\N{FAMILY}f", "abcd\N{FAMILY}"),
        ("abcde\u0301", "abcd"),  # e with an accent is one character to a reader
        ("abcd\u2764\ufe0f", "abcd"),
        ("abc\N{MAN}\u200d\N{WOMAN}x", "abc"),
    ],
)
def test_cuts_leave_whole_characters(text: str, kept: str) -> None:
    assert cut(text, 5, TASK, "name") == kept


# --- pulse-job.yml ---------------------------------------------------------------------------------------------------


@pytest.mark.published
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


@pytest.mark.published
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

"""Runs and definitions become jobs: against recordings of a real queue and Treeherder, and the published schemas."""

import json
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.treeherder.store import check_job_entry
from service.clients.treeherder import FoundPush
from service.flow.jobs.pulse import pulse_message
from service.flow.jobs.rest import rest_entry
from service.flow.jobs.run import log_of, state_of
from service.flow.tasks.facts import TaskFacts
from service.store.models import Stage
from tests.published_schemas import published_folder
from tests.sandbox.taskcluster.message_examples import EXAMPLES
from tests.service.flow.jobs.report_factory import (
    PUSH,
    ROOT,
    SCHEMAS,
    TASK,
    TIP,
    check_pulse,
    facts_of,
    recorded,
    report,
    reports_of,
    status_of,
)
from tests.service.flow.report_harness import definition
from tests.task_event_examples import EVENTS

OURS = {"artifacts", "desc"}
"""Keys that this service adds to the recorded jobs: the link to the task, and the task's own description."""

THEIRS = {"perfherder_data_references"}
"""Keys that a present Treeherder adds itself."""


# --- recordings ------------------------------------------------------------------------------------------------------


def test_events_come_out_as_the_jobs_that_stand_beside_them() -> None:
    become_their_jobs(EVENTS)


@pytest.mark.published
def test_the_24_real_events_come_out_as_the_jobs_that_stand_beside_them() -> None:
    assert len(recorded()) == 24
    become_their_jobs(recorded())


def become_their_jobs(recordings: list[dict[str, Any]]) -> None:
    for event in recordings:
        # the recording is older than two keys that the queue's status has by now; we need neither
        (run_report,) = reports_of(event["message"]["payload"])
        entry = rest_entry(
            run_report,
            TaskFacts(run_report.task_id, event["task"]),
            ROOT,
            "live_backing_log",
            FoundPush(event["revision"], None),
        )
        job = entry["job"]
        assert {key: value for key, value in job.items() if key not in OURS} == {
            key: value for key, value in event["job"].items() if key not in THEIRS
        }
        assert job["desc"] == event["task"]["metadata"]["description"]
        details = [json.loads(artifact["blob"])["job_details"] for artifact in job["artifacts"]]
        links = [link["url"] for links in details for link in links]
        assert links == ([f"{ROOT}/tasks/{run_report.task_id}/runs/0"] if job["state"] == "completed" else [])
        check_job_entry("entry", "mc", entry)


def test_messages_of_a_queue_pass() -> None:
    runs: dict[str, list[tuple[str, str]]] = {}
    for message in EXAMPLES:
        reports = reports_of(message["payload"])
        for job_report in reports:
            check_job_entry("entry", "mc", rest_entry(job_report, facts_of(), ROOT, "builds-4h", PUSH))
        name = message["exchange"].rpartition("/")[2] + message["routingKey"].split(".")[2]
        runs[name] = [state_of(job_report, None) for job_report in reports]
    retried, pending = ("completed", "retry"), ("pending", "unknown")
    assert runs == {
        "task-defined_": [pending],
        "task-pending0": [pending],
        "task-pending1": [("completed", "retry"), pending],
        "task-running0": [("running", "unknown")],
        "task-completed0": [("completed", "success")],
        "task-completed3": [retried, retried, retried, ("completed", "success")],
        "task-failed0": [("completed", "testfailed")],
        "task-exception0": [("completed", "usercancel")],
        "task-exception1": [retried, retried, pending],  # it lists run 2 already
        "task-exception2": [retried, retried, retried, pending],
    }


@pytest.mark.published
def test_the_real_messages_of_a_queue_pass() -> None:
    folder = published_folder() / "pulse" / "queue-messages"
    states = {}
    for path in sorted(folder.glob("task-*-?.json")):
        if path.name.startswith(("task-group", "task-priority")):
            continue
        for run_report in reports_of(json.loads(path.read_text())["payload"]):
            states[path.stem, run_report.run_id] = state_of(run_report, None)
            check_job_entry("entry", "mc", rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH))
    assert states["task-defined-0", 0] == states["task-pending-0", 0] == ("pending", "unknown")
    assert states["task-failed-0", 0] == ("completed", "testfailed")
    assert states["task-exception-0", 0] == ("completed", "exception")
    # the exception of run 1 lists run 2 already: both the rerun and the retry are told
    assert states["task-exception-1", 0] == states["task-exception-1", 1] == ("completed", "retry")
    assert states["task-exception-1", 2] == ("pending", "unknown")
    assert states["task-exception-2", 2] == ("completed", "retry")
    assert states["task-exception-3", 0] == ("completed", "usercancel")


# --- what becomes of a run -------------------------------------------------------------------------------------------


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
    failed, facts = report(state="failed"), facts_of(**section)
    job = rest_entry(failed, facts, ROOT, "builds-4h", PUSH)["job"]
    assert (job["state"], job["result"]) == ("completed", result)
    assert len(job["log_references"]) == 1
    message = pulse_message(failed, facts, ROOT, "live_backing_log", PUSH)
    assert message["result"] == "fail"
    assert message["jobKind"] == section.get("jobKind", "test"), "which is what its reader makes red of"


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
        for run_report in reports_of({"status": status}):
            assert rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH)["job"]["log_references"] == []
            assert "logs" not in {k for k, v in pulse_message(run_report, facts_of(), ROOT, "l", PUSH).items() if v}
    for state in ("completed", "failed"):
        (run_report,) = reports_of({"status": status_of({"state": state, "reasonResolved": state})})
        assert len(rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH)["job"]["log_references"]) == 1


def test_a_run_that_never_started_has_an_end_but_no_start_and_no_log() -> None:
    run_report = report(state="exception", reason="canceled")
    del run_report.run["started"]
    del run_report.run["worker"]
    job = rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH)["job"]
    assert "start_timestamp" not in job
    assert job["end_timestamp"] == 1_700_000_020
    assert job["machine"] == "unknown"
    assert job["log_references"] == []


def test_the_log_has_the_name_it_is_given_and_an_address_that_fits() -> None:
    entry = rest_entry(report(), facts_of(), ROOT, "builds-4h", PUSH)
    (log,) = entry["job"]["log_references"]
    assert log["name"] == "builds-4h"
    assert log["url"] == f"{ROOT}/api/queue/v1/task/{TASK}/runs/0/artifacts/public/logs/live_backing.log"
    assert log_of(report(), "https://" + "x" * 200) is None
    assert log_of(report(Stage.RUNNING), ROOT) is None


def test_a_v1_report_names_the_hash_too() -> None:
    run_report = report()
    run_report.revision, run_report.revision_hash = None, "b2" * 20
    entry = rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH)
    assert (entry["revision"], entry["revision_hash"]) == (TIP, "b2" * 20)


def test_a_v2_report_names_the_hash_of_its_push_where_it_is_known() -> None:
    assert "revision_hash" not in rest_entry(report(), facts_of(), ROOT, "builds-4h", PUSH)
    entry = rest_entry(report(), facts_of(), ROOT, "builds-4h", FoundPush(TIP, "b2" * 20))
    assert (entry["revision"], entry["revision_hash"]) == (TIP, "b2" * 20)


# --- what a task says about itself -----------------------------------------------------------------------------------


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
    facts = facts_of(**section)
    assert facts.options == options
    job = rest_entry(report(), facts, ROOT, "builds-4h", PUSH)["job"]
    assert job["option_collection"] == dict.fromkeys(options, True)


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
@settings(max_examples=100, deadline=None)
@given(CONFIGS)
def test_the_generated_configs_are_allowed(config: dict[str, Any]) -> None:
    jsonschema.validate(
        config, yaml.safe_load((published_folder() / "treeherder/task-treeherder-config.yml").read_text())
    )


@settings(max_examples=150, deadline=None)
@given(CONFIGS, st.integers(1, 5), st.sampled_from(list(Stage)))
def test_whatever_the_config_allows_becomes_a_job_that_fits(config: dict[str, Any], names: int, stage: Stage) -> None:
    metadata = {"name": "n" * 100 * names, "description": "", "owner": "o" * 30 * names, "source": "https://x.y"}
    task = {**definition(extra={"treeherder": config}, metadata=metadata), "workerType": "linux"}
    facts = TaskFacts(TASK, task)
    run_report = report(stage)
    check_job_entry("entry", "mc", rest_entry(run_report, facts, ROOT, "builds-4h", PUSH))
    for form in SCHEMAS:
        check_pulse(pulse_message(run_report, facts, ROOT, "live_backing_log", PUSH, schema=form), form)

"""Values of a job that are derived from its run."""

import pytest

from sandbox.treeherder.store import check_job_entry
from service.flow.jobs.rest import rest_entry
from service.flow.jobs.run import artifact_links, job_guid, log_of, state_of
from service.store.models import Stage
from tests.service.flow.jobs.report_factory import PUSH, ROOT, TASK, facts_of, report, reports_of


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


def test_a_task_whose_deadline_passed_before_it_ran_and_has_no_run_is_an_exception() -> None:
    status = {
        "taskId": TASK,
        "taskGroupId": TASK,
        "deadline": "2026-01-02T00:00:00.000Z",
        "state": "exception",
        "runs": [],
    }
    (run_report,) = reports_of({"status": status})
    assert state_of(run_report, None) == ("completed", "exception")
    check_job_entry("entry", "mc", rest_entry(run_report, facts_of(), ROOT, "builds-4h", PUSH))


def test_job_guid() -> None:
    assert job_guid(TASK, 3) == "037e6659-346e-426c-a3f3-cc8c9c81747c/3"


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

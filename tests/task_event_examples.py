"""Task events with the definition and Treeherder's job beside them, in the form of 2019. All names are invented.

A queue of that time knew neither `projectId` nor `taskQueueId`.
"""

from typing import Any

Json = dict[str, Any]

ROOT = "https://taskcluster.net"
REVISION = "5e" * 20
PERSON = "rosa@example.org"
CREATED, CREATED_SECONDS = "2019-04-02T10:00:00.500Z", 1_554_199_200
STARTED, STARTED_SECONDS = "2019-04-02T10:05:20.900Z", 1_554_199_520
RESOLVED, RESOLVED_SECONDS = "2019-04-02T10:20:00.100Z", 1_554_200_400
GROUP = "OiYJ7XLUQW-wOiNYq3NeJg"

_WORKER = {"workerGroup": "garden", "workerId": "i-0123456789abcdef0"}
_RUNS: dict[str, Json] = {
    "pending": {},
    "running": {**_WORKER, "started": STARTED, "takenUntil": RESOLVED},
    "completed": {
        **_WORKER,
        "started": STARTED,
        "takenUntil": RESOLVED,
        "resolved": RESOLVED,
        "reasonResolved": "completed",
    },
}
_JOBS: dict[str, Json] = {
    "pending": {"state": "pending", "result": "unknown", "machine": "unknown"},
    "running": {
        "state": "running",
        "result": "unknown",
        "machine": _WORKER["workerId"],
        "start_timestamp": STARTED_SECONDS,
    },
    "completed": {
        "state": "completed",
        "result": "success",
        "machine": _WORKER["workerId"],
        "start_timestamp": STARTED_SECONDS,
        "end_timestamp": RESOLVED_SECONDS,
    },
}


def _definition(name: str, section: Json) -> Json:
    return {
        "provisionerId": "gardens-v1",
        "workerType": "g-linux",
        "schedulerId": "level-3",
        "taskGroupId": GROUP,
        "dependencies": ["QqPuDE5STnGtX1IQUKH41g"],
        "requires": "all-completed",
        "routes": [f"tc-treeherder.v2.gardens.{REVISION}.77", "index.gardens.latest"],
        "priority": "low",
        "retries": 5,
        "created": CREATED,
        "deadline": "2019-04-03T10:00:00.500Z",
        "expires": "2020-04-01T10:00:00.500Z",
        "scopes": ["secrets:get:gardens", "worker:cache:gardens-*"],
        "payload": {"maxRunTime": 60, "artifacts": {"public/logs/": {"type": "directory", "path": "/logs"}}},
        "metadata": {
            "name": name,
            "description": f"Runs {name} ([the push](https://treeherder.example/?revision={REVISION}))",
            "owner": PERSON,
            "source": f"https://hg.example.org/gardens/file/{REVISION}/ci",
        },
        "tags": {"createdForUser": PERSON, "kind": "test"},
        "extra": {"index": {"rank": 1}, "parent": GROUP, "treeherder": section},
    }


def _event(ids: tuple[str, str], state: str, name: str, section: Json, job: Json) -> Json:
    """Return an event; `ids` are the task's slugid and the same as a UUID, `job` what follows from the section."""
    task_id, uuid = ids
    definition = _definition(name, section)
    run = {"runId": 0, "state": state, "reasonCreated": "scheduled", "scheduled": CREATED, **_RUNS[state]}
    status = {
        "taskId": task_id,
        "state": state,
        "runs": [run],
        "retriesLeft": 5,
        **{
            key: definition[key]
            for key in ("provisionerId", "workerType", "schedulerId", "taskGroupId", "deadline", "expires")
        },
    }
    worker = {key: run[key] for key in _WORKER if key in run}
    place = {"platform": section["machine"]["platform"], "os_name": "-", "architecture": "-"}
    return {
        "revision": REVISION,
        "task": definition,
        "message": {
            "exchange": f"exchange/taskcluster-queue/v1/task-{state}",
            "payload": {"status": status, "runId": 0, "version": 1, **worker},
        },
        "job": {
            "job_guid": f"{uuid}/0",
            "taskcluster_task_id": task_id,
            "taskcluster_retry_id": 0,
            "name": name,
            "job_symbol": section["symbol"],
            "group_symbol": "?",
            "group_name": "unknown",
            "product_name": "unknown",
            "reason": "scheduled",
            "who": PERSON,
            "submit_timestamp": CREATED_SECONDS,
            "build_system_type": "taskcluster",
            "build_platform": place,
            "machine_platform": place,
            "option_collection": {"opt": True},
            "tier": 1,
            "log_references": [],
            "perfherder_data_references": [],
            **_JOBS[state],
            **job,
        },
    }


_LOG = f"{ROOT}/api/queue/v1/task/DvDCCWjmST-q_WGIoOWrfg/runs/0/artifacts/public/logs/live_backing.log"
_GROUPED = {"groupName": "Rakes without handles", "groupSymbol": "R-1"}

EVENTS: list[Json] = [
    _event(
        ("Cs0jmoyJRPm1i_7RJAq6Pg", "0acd239a-8c89-44f9-b58b-fed1240aba3e"),
        "pending",
        "rake-linux64/debug-2",
        {"symbol": "2", "tier": 1, "jobKind": "test", "collection": {"debug": True}, **_GROUPED}
        | {"machine": {"platform": "linux64"}},
        {"group_name": "Rakes without handles", "group_symbol": "R-1", "option_collection": {"debug": True}},
    ),
    _event(
        ("QUttoRFeTH2kq2jNCtzzHA", "414b6da1-115e-4c7d-a4ab-68cd0adcf31c"),
        "running",
        "spade-linux64/debug",
        {"symbol": "Spade", "tier": 2, "jobKind": "test", "collection": {"debug": True}}
        | {"machine": {"platform": "linux64"}},
        {"option_collection": {"debug": True}, "tier": 2},
    ),
    _event(
        ("DvDCCWjmST-q_WGIoOWrfg", "0ef0c209-68e6-493f-aafd-6188a0e5ab7e"),
        "completed",
        "rake-mac/opt-7",
        {"symbol": "7", "tier": 1, "jobKind": "test", "collection": {"opt": True}, **_GROUPED}
        | {"machine": {"platform": "mac-64"}},
        {
            "group_name": "Rakes without handles",
            "group_symbol": "R-1",
            "log_references": [{"name": "live_backing_log", "url": _LOG, "parse_status": "pending"}],
        },
    ),
    _event(
        ("QqPuDE5STnGtX1IQUKH41g", "42a3ee0c-4e52-4e71-ad5f-521050a1f8d6"),
        "pending",
        "callback of an action",
        {"symbol": "rt", "groupName": "callbacks", "groupSymbol": "CB", "machine": {"platform": "decision"}},
        {"group_name": "callbacks", "group_symbol": "CB"},
    ),
]

"""Messages of the queue about a task in several states, with invented ids."""

from typing import Any

from sandbox.taskcluster.tasks import EXCHANGES

QUEUE_OF_EXAMPLES = "local-prov/wt-a349c0"
EXAMPLE_TASK, EXAMPLE_GROUP = "Yq3tD0kXQ1mZb7JcWn5ePA", "OfR2_u8LTbKs4vGhXy1NdQ"
AT = "2031-05-06T07:08:09.123Z"


def run_of(
    run_id: int, state: str, created: str = "scheduled", resolved: str | None = None, claimed: bool = True
) -> dict[str, Any]:
    """Return a run as a status lists it."""
    run: dict[str, Any] = {"runId": run_id, "state": state, "reasonCreated": created, "scheduled": AT}
    if claimed:
        run |= {"workerGroup": "wg", "workerId": "w1", "takenUntil": AT, "started": AT}
    if resolved is not None:
        run |= {"reasonResolved": resolved, "resolved": AT}
    return run


def example(name: str, runs: list[dict[str, Any]], told: int | None = None, routes: tuple[str, ...] = ()) -> Any:
    """Return a message in the form of a recording; `told` is the run that it is about."""
    provisioner, worker_type = QUEUE_OF_EXAMPLES.split("/")
    status = {
        "taskId": EXAMPLE_TASK,
        "provisionerId": provisioner,
        "workerType": worker_type,
        "taskQueueId": QUEUE_OF_EXAMPLES,
        "schedulerId": "local-sched",
        "projectId": "none",
        "taskGroupId": EXAMPLE_GROUP,
        "priority": "lowest",
        "deadline": AT,
        "expires": AT,
        "retriesLeft": 5,
        "state": runs[-1]["state"] if runs else "unscheduled",
        "runs": runs,
    }
    payload: dict[str, Any] = {"status": status, "task": {"tags": {}}, "version": 1}
    run = "_._._"
    if told is not None:
        payload["runId"] = told
        worker = {key: value for key, value in runs[told].items() if key in ("workerGroup", "workerId")}
        payload |= worker
        run = ".".join((str(told), *(worker.values() or "__")))
    if name == "task-running":
        payload["takenUntil"] = AT.replace("Z", "+00:00")  # unlike all other dates
    key = f"primary.{EXAMPLE_TASK}.{run}.{provisioner}.{worker_type}.local-sched.{EXAMPLE_GROUP}._"
    return {"exchange": EXCHANGES + name, "routingKey": key, "payload": payload, "CC": [f"route.{r}" for r in routes]}


FAILED, SHUT_DOWN = run_of(0, "failed", resolved="failed"), run_of(1, "exception", "rerun", "worker-shutdown")
INTERMITTENT = run_of(2, "exception", "retry", "intermittent-task")
EXAMPLES: list[Any] = [
    example("task-defined", []),
    example("task-defined", [], routes=("index.garden.tools", "apple.pear")),
    example("task-pending", [run_of(0, "pending", claimed=False)], 0, ("apple.pear",)),
    example(
        "task-pending", [run_of(0, "completed", resolved="completed"), run_of(1, "pending", "rerun", claimed=False)], 1
    ),
    example("task-running", [run_of(0, "running")], 0, ("apple.pear",)),
    example("task-completed", [run_of(0, "completed", resolved="completed")], 0),
    example("task-completed", [FAILED, SHUT_DOWN, INTERMITTENT, run_of(3, "completed", "task-retry", "completed")], 3),
    example("task-failed", [FAILED], 0),
    example("task-exception", [run_of(0, "exception", resolved="malformed-payload")], 0, ("apple.pear",)),
    example("task-exception", [FAILED, SHUT_DOWN, run_of(2, "pending", "retry", claimed=False)], 1),
    example("task-exception", [FAILED, SHUT_DOWN, INTERMITTENT, run_of(3, "pending", "task-retry", claimed=False)], 2),
    example("task-exception", [run_of(0, "exception", resolved="canceled", claimed=False)], 0),
]

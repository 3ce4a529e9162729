"""Run tasks of every task queue to the end that their payload describes.

    payload: {"sandbox": {"seconds": 0.2, "result": "completed", "once": "failed"}}

- `seconds`: the duration of a run (default: the worker's)
- `result`: `completed` (default), `failed`, `exception:<reason>` (as reportException takes it), or `hang`: the worker
  never reports, so the run ends with its claim, its deadline or a cancel
- `once`: the result of the first run of its kind, after which `result` holds: for a rerun, a retry, and a copy of the
  task (same name, same tc-treeherder routes). So a demo can retrigger a failed task that succeeds the second time.
- `artifacts`: artifacts of a run that completes, by name: `{"content": JSON, or text as it is}`, or the body of a
  createArtifact (`{"storageType": "reference", "url": …}`), whose `expires` is by default the task's

A decision task (`decision`: see actions.py) writes its actions.json when it completes. The action tasks of its hooks do
what they are for (callbacks.py).

An invalid payload ends as `exception:malformed-payload`. Tasks of `built-in/succeed` and `built-in/fail` end at once,
and must have an empty payload, as the real ones.
"""

import asyncio
import json
from typing import Any

from sandbox.taskcluster import actions, checks
from sandbox.taskcluster.artifacts import Artifacts
from sandbox.taskcluster.callbacks import CallbackError, Callbacks, is_action
from sandbox.taskcluster.claims import CLAIM_TIME
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.hooks import Hooks
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Json

WORKER = {"workerGroup": "sandbox", "workerId": "toy-worker"}
LOG = "public/logs/live_backing.log"
EXCEPTION = "exception:"
MALFORMED = f"{EXCEPTION}malformed-payload"
RESULTS = ("completed", "failed", "hang", *(f"{EXCEPTION}{reason}" for reason in checks.REPORTED_REASONS))
MAX_SECONDS = CLAIM_TIME / 1000  # it does not reclaim
_BUILT_IN = {"built-in/succeed": "completed", "built-in/fail": "failed"}


class Worker:
    """A worker that claims up to `capacity` runs at a time from the queue; a run takes `seconds` by default."""

    def __init__(
        self, queue: Queue, artifacts: Artifacts, hooks: Hooks, *, capacity: int = 32, seconds: float = 0.2
    ) -> None:
        self._queue = queue
        self._artifacts = artifacts
        self._hooks = hooks
        self._callbacks = Callbacks(queue)
        self._seconds = seconds
        self._free = asyncio.Semaphore(capacity)
        self._seen: set[tuple[str, ...]] = set()

    def clear(self) -> None:
        """Forget which tasks have run."""
        self._seen.clear()

    async def run(self) -> None:
        """Work until cancelled; unfinished runs are then abandoned."""
        async with asyncio.TaskGroup() as running:
            while True:
                claim = await self._next()
                running.create_task(self._work(claim))

    async def _next(self) -> Json:
        """Return the next claim, once there is room for it."""
        await self._free.acquire()
        while True:
            for queue_id in self._queue.queues_with_work():
                if claims := self._queue.claim_work(queue_id, {**WORKER, "tasks": 1})["tasks"]:
                    claim: Json = claims[0]
                    return claim
            await self._queue.arrival(1.0)

    async def _work(self, claim: Json) -> None:
        task_id, run_id, task = claim["status"]["taskId"], claim["runId"], claim["task"]
        try:
            seconds, result = self._plan(task)
            if result == "hang":
                return
            await asyncio.sleep(seconds)
            messages: list[str] = []
            if result == "completed":
                try:
                    self._finish(task_id, run_id, task)
                except (CallbackError, ApiError) as error:
                    result, messages = "failed", [str(error)]
            self._artifacts.store(task_id, run_id, LOG, _log(task, run_id, result, messages))
            self._report(task_id, run_id, result)
        except ApiError as error:
            if error.code not in ("RequestConflict", "ResourceNotFound"):  # canceled, expired or cleared meanwhile
                raise
        finally:
            self._free.release()

    def _plan(self, task: Json) -> tuple[float, str]:
        """Return the duration of the run in seconds, and its result."""
        built_in = _BUILT_IN.get(task["taskQueueId"])
        if built_in is not None:
            return 0.0, MALFORMED if task["payload"] else built_in
        instructions: Any = task["payload"].get("sandbox", {})
        if not isinstance(instructions, dict):
            return 0.0, MALFORMED
        seconds, result = instructions.get("seconds", self._seconds), instructions.get("result", "completed")
        kind = (task["metadata"]["name"], *sorted(r for r in task["routes"] if r.startswith("tc-treeherder")))
        if kind not in self._seen:
            self._seen.add(kind)
            result = instructions.get("once", result)
        valid = isinstance(seconds, int | float) and 0 <= seconds < MAX_SECONDS and result in RESULTS
        artifacts = instructions.get("artifacts", {})
        valid = valid and isinstance(artifacts, dict) and all(isinstance(value, dict) for value in artifacts.values())
        valid = valid and ("decision" not in instructions or actions.is_decision(instructions["decision"]))
        return (seconds, result) if valid else (0.0, MALFORMED)

    def _finish(self, task_id: str, run_id: int, task: Json) -> None:
        """Do what a task is for that is about to complete. Raises CallbackError."""
        if is_action(task):
            self._callbacks.run(task_id, task)
        instructions = task["payload"].get("sandbox", {})
        for name, artifact in instructions.get("artifacts", {}).items():
            self._upload(task_id, run_id, name, {"expires": task["expires"], **artifact})
        if decision := instructions.get("decision"):
            for group_id, hook_id, hook in actions.hooks_of(decision):
                self._hooks.define(group_id, hook_id, hook)
            content = actions.actions_json(decision, task["taskGroupId"])
            self._artifacts.store(task_id, run_id, actions.ARTIFACT, content, "application/json")

    def _upload(self, task_id: str, run_id: int, name: str, artifact: Json) -> None:
        if "content" not in artifact:
            self._artifacts.create(task_id, run_id, name, artifact, base_url="")
            return
        content = artifact["content"]
        text = content if isinstance(content, str) else json.dumps(content)
        content_type = "application/json" if name.endswith(".json") else "text/plain"
        self._artifacts.store(task_id, run_id, name, text.encode("utf-8", "replace"), content_type)

    def _report(self, task_id: str, run_id: int, result: str) -> None:
        if result == "completed":
            self._queue.report_completed(task_id, run_id)
        elif result == "failed":
            self._queue.report_failed(task_id, run_id)
        else:
            self._queue.report_exception(task_id, run_id, {"reason": result.removeprefix(EXCEPTION)})


def _log(task: Json, run_id: int, result: str, messages: list[str]) -> bytes:
    lines = [
        f"[taskcluster] {task['metadata']['name']}, run {run_id}",
        *messages,
        f"[taskcluster] === Task finished: {result} ===",
    ]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")

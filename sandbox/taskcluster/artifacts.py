"""Keep artifacts of runs: as much of the queue's artifact methods as uploading, listing and finding logs needs.

`s3` and stored artifacts keep their bytes here and are served from `/__content__/`. An `object` artifact is answered as
the real queue answers it; its bytes are uploaded to `/__content__/`, too, because there is no object service.
"""

from dataclasses import dataclass, field
from typing import Any

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require
from sandbox.taskcluster.claims import QUEUE_CLIENT
from sandbox.taskcluster.clock import HOUR, MINUTE, iso, parse
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.pages import paged
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Json, Task, new_slugid

GRACE = 25 * MINUTE
"""Time after an exception in which artifacts may still be made for its run."""


@dataclass
class Artifact:
    """One artifact; `details` are the fields of its storage type: url, linked artifact, reason and message."""

    name: str
    storage_type: str
    content_type: str
    expires: int
    details: Json = field(default_factory=dict)
    content: bytes | None = None
    content_length: int | None = None
    upload_id: str = ""
    present: bool = True

    def describe(self) -> Json:
        """Return the artifact in the form of `artifact-response.json`."""
        described = {
            "storageType": self.storage_type,
            "name": self.name,
            "expires": iso(self.expires),
            "contentType": self.content_type,
        }
        length = self.content_length if self.content is None else len(self.content)
        return described if length is None else {**described, "contentLength": length}


class Artifacts:
    """Artifact methods of the queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def create(
        self, task_id: str, run_id: int, name: str, body: Json, *, base_url: str, caller: Caller | None = None
    ) -> Json:
        """Answer `createArtifact`: a repeated call with equal properties may only set a later `expires`."""
        checks.check_artifact(body)
        if (parse(body["expires"]) or 0) < self._queue.clock.now() - 15 * MINUTE:
            raise ApiError("InputError", "Expires must be in the future")
        if caller is not None:
            require(caller, f"queue:create-artifact:{task_id}/{run_id}")
        task = self._writable(task_id, run_id)
        artifact = self._enter(task, run_id, _from_request(name, body))
        if artifact.storage_type == "s3":
            return {
                "storageType": "s3",
                "contentType": artifact.content_type,
                "expires": iso(self._queue.clock.now() + 45 * MINUTE),
                "putUrl": _content_url(base_url, task_id, run_id, name),
            }
        if artifact.storage_type == "object":
            return {
                "storageType": "object",
                "name": f"t/{task_id}/{run_id}/{name}",
                "projectId": task.definition["projectId"],
                "uploadId": artifact.upload_id,
                "expires": iso(self._queue.clock.now() + 24 * HOUR),
                "credentials": self._credentials("object:upload", task, run_id, name),
            }
        return {"storageType": artifact.storage_type}

    def store(self, task_id: str, run_id: int, name: str, content: bytes, content_type: str = "text/plain") -> None:
        """Create an artifact with its content at once; it expires with the task."""
        task = self._writable(task_id, run_id)
        self._enter(task, run_id, Artifact(name, "s3", content_type, task.expires, content=content))

    def finish(self, task_id: str, run_id: int, name: str, body: Json, caller: Caller | None = None) -> None:
        """Answer `finishArtifact`: the `object` artifact can be read from now on."""
        checks.FINISH_ARTIFACT.check(body)
        if caller is not None:
            require(caller, f"queue:create-artifact:{task_id}/{run_id}")
        artifact = self._find(task_id, run_id, name)
        if artifact.storage_type != "object":
            raise ApiError(
                "InputError", f"Artifact `{name}` has storageType `{artifact.storage_type}`, which is not finished."
            )
        if artifact.upload_id != body["uploadId"]:
            raise ApiError("InputError", f"Invalid uploadId {body['uploadId']} for artifact `{name}`.")
        artifact.present = True

    def list_page(
        self,
        task_id: str,
        run_id: int | None,
        caller: Caller | None = None,
        token: str | None = None,
        limit: str | None = None,
    ) -> Json:
        """Answer `listArtifacts`, or `listLatestArtifacts` without a run, with one page."""
        _may_list(task_id, run_id, caller)
        artifacts = self._of_run(task_id, run_id)
        page, continuation = paged(sorted(artifacts), token, limit)
        return {"artifacts": [artifacts[name].describe() for name in page], **continuation}

    def info(self, task_id: str, run_id: int | None, name: str, caller: Caller | None = None) -> Json:
        """Answer `artifactInfo`, or `latestArtifactInfo` without a run; links are not followed."""
        _may_list(task_id, run_id, caller)
        return self._find(task_id, run_id, name).describe()

    def get(self, task_id: str, run_id: int | None, name: str, base_url: str, caller: Caller | None = None) -> Json:
        """Answer `getArtifact`, or `getLatestArtifact`: `{storageType, url}`, or `{reason, message}` of an error."""
        artifact, run_id = self._follow(task_id, run_id, name, caller)
        if artifact.storage_type == "error":
            return artifact.details
        url = artifact.details.get("url") or _content_url(base_url, task_id, run_id, artifact.name)
        return {"storageType": artifact.storage_type, "url": url}

    def content(self, task_id: str, run_id: int | None, name: str, base_url: str, caller: Caller | None = None) -> Json:
        """Answer `artifact`, or `latestArtifact`: the way to the content (`artifact-content-response.json`)."""
        artifact, run_id = self._follow(task_id, run_id, name, caller)
        if artifact.storage_type == "error":
            return {"storageType": "error", **artifact.details}
        if artifact.storage_type == "object":
            task = self._queue.find(task_id)
            credentials = self._credentials("object:download", task, run_id, artifact.name)
            return {
                "storageType": "object",
                "name": f"t/{task_id}/{run_id}/{artifact.name}",
                "credentials": credentials,
            }
        return self.get(task_id, run_id, artifact.name, base_url)

    def bytes_of(self, task_id: str, run_id: int, name: str) -> tuple[bytes, str]:
        """Return the content that the artifact's URL serves, and its content type."""
        artifact = self._find(task_id, run_id, name)
        if artifact.content is None:
            raise ApiError("ResourceNotFound", f"nothing was uploaded for artifact `{name}`")
        return artifact.content, artifact.content_type

    def put(self, task_id: str, run_id: int, name: str, content: bytes) -> None:
        """Store the content that was sent to the `putUrl` of an `s3` artifact."""
        self._find(task_id, run_id, name).content = content

    def _writable(self, task_id: str, run_id: int) -> Task:
        """Return the task if its run accepts artifacts: it is running, or ended in an exception at most `GRACE` ago."""
        task = self._queue.find(task_id)
        if run_id >= len(task.runs):
            raise ApiError("ResourceNotFound", f"Task `{task_id}` has no run {run_id}.")
        run = task.runs[run_id]
        ended = parse(run.get("resolved"))
        late = ended is not None and run["state"] == "exception" and self._queue.clock.now() <= ended + GRACE
        if run["state"] != "running" and not late:
            raise ApiError(
                "RequestConflict",
                f"Artifacts cannot be created for run {run_id} of task `{task_id}`, which is {run['state']}: "
                "only for a running one, and up to 25 minutes after an exception.",
            )
        return task

    def _enter(self, task: Task, run_id: int, artifact: Artifact) -> Artifact:
        if artifact.expires > task.expires:
            raise ApiError(
                "InputError",
                f"Artifact expires ({iso(artifact.expires)}) after the task expiration {task.definition['expires']} "
                "(task expiration < artifact expiration)",
            )
        kept: dict[str, Artifact] = task.artifacts.setdefault(run_id, {})
        old = kept.get(artifact.name)
        if old is None:
            kept[artifact.name] = artifact
            return artifact
        same = (old.storage_type, old.content_type, old.details) == (
            artifact.storage_type,
            artifact.content_type,
            artifact.details,
        )
        replaces = old.storage_type == "reference" and artifact.storage_type in ("reference", "link")
        if artifact.expires < old.expires or not (same or replaces):
            raise ApiError(
                "RequestConflict",
                f"Artifact `{artifact.name}` already exists, with different type or later expiration.",
            )
        if same:
            old.expires = artifact.expires
            return old
        kept[artifact.name] = artifact
        return artifact

    def _of_run(self, task_id: str, run_id: int | None) -> dict[str, Artifact]:
        task = self._queue.find(task_id)
        run_id = len(task.runs) - 1 if run_id is None else run_id
        if not 0 <= run_id < len(task.runs):
            raise ApiError(
                "ResourceNotFound",
                f"Task with taskId: `{task_id}` has no run with runId: {run_id}"
                if task.runs
                else "Task doesn't have any runs",
            )
        return task.artifacts.get(run_id, {})

    def _find(self, task_id: str, run_id: int | None, name: str) -> Artifact:
        artifact: Artifact | None = self._of_run(task_id, run_id).get(name)
        if artifact is None:
            raise ApiError("ResourceNotFound", "Artifact not found")
        return artifact

    def _follow(self, task_id: str, run_id: int | None, name: str, caller: Caller | None) -> tuple[Artifact, int]:
        """Return the artifact at the end of links, and its run; the caller needs the scope for each name on the way."""
        names: list[str] = []
        while True:
            if name in names:
                raise ApiError("InputError", "Artifact leads to a link cycle")
            names.append(name)
            if caller is not None:
                require(caller, {"AllOf": [f"queue:get-artifact:{visited}" for visited in names]})
            artifact = self._find(task_id, run_id, name)
            if not artifact.present:
                raise ApiError("ResourceNotFound", "Artifact not found")
            if artifact.expires < self._queue.clock.now():
                raise ApiError("ResourceExpired", "Artifact expired")
            if artifact.storage_type != "link":
                break
            name = artifact.details["artifact"]
        return artifact, len(self._queue.find(task_id).runs) - 1 if run_id is None else run_id

    def _credentials(self, verb: str, task: Task, run_id: int, name: str) -> dict[str, str]:
        now = self._queue.clock.now()
        scope = f"{verb}:{task.definition['projectId']}:t/{task.task_id}/{run_id}/{name}"
        return self._queue.auth.temporary_credentials(
            QUEUE_CLIENT, f"{QUEUE_CLIENT}/{verb.partition(':')[2]}", [scope], now - 5 * MINUTE, now + HOUR
        )


def _from_request(name: str, body: Json) -> Artifact:
    kind = body["storageType"]
    expires = parse(body["expires"])
    assert expires is not None
    content_type: Any = body.get("contentType") or ("application/json" if kind == "error" else "application/binary")
    details: Json = {key: body[key] for key in ("url", "artifact", "reason", "message") if key in body}
    length = body.get("contentLength")
    upload = new_slugid() if kind == "object" else ""
    return Artifact(name, kind, content_type, expires, details, None, length, upload, kind != "object")


def _may_list(task_id: str, run_id: int | None, caller: Caller | None) -> None:
    if caller is not None:
        require(caller, f"queue:list-artifacts:{task_id}" + ("" if run_id is None else f":{run_id}"))


def _content_url(base_url: str, task_id: str, run_id: int, name: str) -> str:
    return f"{base_url}/__content__/{task_id}/{run_id}/{name}"

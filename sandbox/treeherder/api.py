"""Answer the part of Treeherder's own API that submission needs."""

import io
import math
import re
from typing import Any, NoReturn

from mohawk import Receiver
from mohawk.exc import HawkFail
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sandbox.treeherder.bodies import json_response, parse_json
from sandbox.treeherder.state import State
from sandbox.treeherder.store import Repository, SubmissionError, UnknownPushError

_LIBRARY_AGENT = re.compile(
    r"(python|curl|wget|node-fetch|axios|undici|aiohttp|okhttp|go-http-client|java|libwww|$)", re.IGNORECASE
)


class Api:
    """Part of Treeherder's own API that submission needs."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def post_resultsets(self, request: Request) -> Response:
        project, resultsets = await self._submission(request, "resultset", self._state.behaviour.resultsets_per_minute)
        try:
            self._state.store.store_resultsets(project, resultsets)
        except SubmissionError as error:
            raise HTTPException(500, str(error)) from None
        return self._done("well-formed JSON stored")

    async def post_jobs(self, request: Request) -> Response:
        behaviour = self._state.behaviour
        project, jobs = await self._submission(request, "jobs", behaviour.jobs_per_minute)
        if isinstance(jobs, list):
            self._state.counters["jobs received"] += len(jobs)
        try:
            self._state.store.store_jobs(
                project,
                jobs,
                refuse=behaviour.refuse_jobs,
                drop_unknown_push=behaviour.unknown_push == "drop",
                old=behaviour.year == 2015,
            )
        except UnknownPushError as error:
            raise HTTPException(500, str(error)) from None
        except SubmissionError as error:
            raise HTTPException(behaviour.bad_job_status, str(error)) from None
        return self._done("Job successfully updated")

    def _done(self, message: str) -> Response:
        if self._state.behaviour.uses_up("fail_after"):
            raise HTTPException(500, "Internal Server Error")
        return json_response({"message": message})

    async def get_resultsets(self, request: Request) -> Response:
        return await self._pushes(request)

    async def get_pushes(self, request: Request) -> Response:
        return await self._pushes(request)

    async def _pushes(self, request: Request) -> Response:
        await self._admit(request)
        project = self._project(request)
        query = request.query_params
        if "revision" not in query and "revision_hash" not in query:
            raise HTTPException(400, "ask with ?revision=<40 hex> or ?revision_hash=<40 hex>")
        store, year = self._state.store, self._state.behaviour.year
        if "revision" not in query and year in (2017, "today"):  # they ignore the parameter
            pushes = store.newest(project, 10)
        else:
            push = store.push(
                project,
                revision=query.get("revision"),
                revision_hash=query.get("revision_hash"),
                any_changeset=year != 2015,
            )
            pushes = [] if push is None else [push]
        results = [{"id": push.id, **push.body, "revision_count": len(push.body["revisions"])} for push in pushes]
        if year == "today":
            for result in results:
                del result["revision_hash"]
        return json_response({"meta": {"count": len(results), "repository": project, **query}, "results": results})

    async def get_decision_tasks(self, request: Request) -> Response:
        """Answer the decision tasks that succeeded, one of each push. The project is not looked at."""
        await self._admit(request)
        names = request.query_params.get("push_ids", "").split(",")
        try:
            push_ids = {int(name) for name in names}
        except ValueError:
            raise HTTPException(500, "Internal Server Error") from None
        found: dict[str, dict[str, str]] = {}
        for job in self._state.store.jobs.values():
            body = job.body
            is_decision = body["name"].endswith("Decision Task") and body["job_symbol"] == "D"
            if job.push.id in push_ids and is_decision and body["result"] == "success":
                if "taskcluster_task_id" not in body:  # Treeherder has no metadata of such a job, and falls over
                    raise HTTPException(500, "Internal Server Error")
                run = body["job_guid"].split("/")[1]
                found[str(job.push.id)] = {"id": body["taskcluster_task_id"], "run": run}
        if not found:
            return json_response(f"No decision tasks found for pushes: {names}", 404)
        return json_response(found)

    async def get_jobs(self, request: Request) -> Response:
        await self._admit(request)
        project = self._project(request)
        guid = request.query_params.get("job_guid")
        if guid is None:
            raise HTTPException(400, "ask with ?job_guid=<uuid>/<runId>")
        job = self._state.store.jobs.get((project, guid))
        results = [] if job is None else [{"id": job.id, "push_id": job.push.id, **job.body}]
        return json_response({"meta": {"count": len(results), "offset": 0, "repository": project}, "results": results})

    async def get_repositories(self, request: Request) -> Response:
        await self._admit(request)
        return json_response(
            [describe_repository(repository) for repository in self._state.store.repositories.values()]
        )

    async def _submission(self, request: Request, kind: str, per_minute: int) -> tuple[str, Any]:
        """Return the project and the parsed body of an admitted POST. Raises HTTPException."""
        behaviour = self._state.behaviour
        client_id = await self._admit(request)
        if client_id is None:
            raise HTTPException(403, "Authentication credentials were not provided: sign the request with Hawk.")
        if behaviour.uses_up("too_many"):
            self._too_many(60)
        wait = self._state.seconds_to_wait(client_id, kind, per_minute) if behaviour.throttle else 0
        if wait:
            self._too_many(wait)
        project = self._project(request)
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise HTTPException(415, "send Content-Type: application/json")
        return project, parse_json(await request.body())

    def _too_many(self, wait: float) -> NoReturn:
        seconds = str(math.ceil(wait))
        headers = {"Retry-After": seconds} if self._state.behaviour.retry_after else None
        raise HTTPException(429, f"Request was throttled. Expected available in {seconds} seconds.", headers)

    async def _admit(self, request: Request) -> str | None:
        """Return the Hawk id of a request, or None if it is not signed. Raises HTTPException if it is not admitted."""
        agent = request.headers.get("user-agent", "")
        if _LIBRARY_AGENT.match(agent):
            raise HTTPException(403, f"User-Agent {agent!r} is a library's default: send one that names your service")
        if not _accepts_version_1(request.headers.get("accept", "")):
            raise HTTPException(406, 'Invalid version in "Accept" header: send application/json; version=1.0')
        header = request.headers.get("authorization")
        if header is None:
            return None
        credentials = self._state.credentials

        def look_up(client_id: str) -> dict[str, str]:
            return {"id": client_id, "key": credentials[client_id], "algorithm": "sha256"}

        body = await request.body()
        try:
            receiver = Receiver(
                look_up,
                header,
                str(request.url),
                request.method,
                # as a file: mohawk pretty-prints bytes for its debug log, even an unused one: about 24 ms for 200 jobs
                content=io.BytesIO(body) if body else "",
                content_type=request.headers.get("content-type", ""),
                seen_nonce=self._state.seen_nonce,
            )
        # mohawk raises KeyError and ValueError for missing parts of the header
        except (HawkFail, KeyError, ValueError) as error:
            raise HTTPException(403, f"Hawk authentication failed: {type(error).__name__}") from None
        return str(receiver.parsed_header["id"])

    def _project(self, request: Request) -> str:
        project: str = request.path_params["project"]
        if project not in self._state.store.repositories:
            raise HTTPException(404, f"No project with name {project}")
        return project


def describe_repository(repository: Repository) -> dict[str, Any]:
    """Return a project in the form of Treeherder's repository list."""
    return {"name": repository.name, "url": repository.url, "dvcs_type": "hg", "active_status": "active"}


def _accepts_version_1(accept: str) -> bool:
    for choice in accept.split(","):
        media_type, *parameters = (part.strip() for part in choice.split(";"))
        if media_type == "application/json" and "version=1.0" in parameters:
            return True
    return False

"""Answer `/__control__/` and the page: inspect the stand-in, configure faults, press buttons."""

import asyncio
import re
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sandbox.treeherder.api import describe_repository
from sandbox.treeherder.behaviour import Behaviour
from sandbox.treeherder.bodies import json_response, parse_json, require_object
from sandbox.treeherder.job_actions import Press, publish_job_action
from sandbox.treeherder.page import render_page
from sandbox.treeherder.state import State
from sandbox.treeherder.store import Job, Push, Repository
from service.contract.broker import BROKER_ERRORS
from service.contract.validation import problems_of


class Control:
    """Endpoints that a real Treeherder does not have: contents, faults, and the page with its buttons."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def page(self, request: Request) -> Response:
        return HTMLResponse(render_page(self._state.store))

    async def state(self, request: Request) -> Response:
        query = request.query_params

        def wanted(push: Push) -> bool:
            return query.get("project", push.project) == push.project and (
                query.get("revision", push.revision) == push.revision
            )

        pushes = [push for push in self._state.store.pushes if wanted(push)]
        jobs = [job for push in pushes for job in push.jobs if query.get("job_guid") in (None, job.body["job_guid"])]
        return json_response(
            {
                "repositories": [
                    describe_repository(repository) for repository in self._state.store.repositories.values()
                ],
                "resultsets": [_push_inside(push) for push in pushes],
                "jobs": [_job_inside(job) for job in jobs],
                **self._counters(),
            }
        )

    async def counters(self, request: Request) -> Response:
        return json_response(self._counters())

    def _counters(self) -> dict[str, Any]:
        store = self._state.store
        return {
            "requests": dict(self._state.counters),
            "resultsets_stored": len(store.pushes),
            "jobs_stored": len(store.jobs),
            "jobs_dropped": store.dropped_jobs,
        }

    async def clear(self, request: Request) -> Response:
        self._state.clear()
        return json_response({"message": "pushes, jobs and counters are gone"})

    async def behaviour(self, request: Request) -> Response:
        if request.method == "PATCH":
            changes = require_object(parse_json(await request.body()))
            try:
                self._state.behaviour = Behaviour.model_validate(self._state.behaviour.model_dump() | changes)
            except ValidationError as error:
                raise HTTPException(400, problems_of(error, Behaviour, quote=True)) from None
        elif request.method == "DELETE":
            self._state.behaviour = Behaviour()
        return json_response(self._state.behaviour.model_dump(mode="json"))

    async def add_repository(self, request: Request) -> Response:
        fields = require_object(parse_json(await request.body()))
        if not isinstance(fields.get("name"), str) or not re.fullmatch(r"[\w-]{1,50}", fields["name"]):
            raise HTTPException(400, f"name {fields.get('name')!r} is not 1 to 50 letters, digits, _ and -")
        repository = Repository(fields["name"], str(fields.get("url", "")))
        self._state.store.repositories[repository.name] = repository
        return json_response(describe_repository(repository), 201)

    async def job_action(self, request: Request) -> Response:
        try:
            press = Press.model_validate(parse_json(await request.body()))
        except ValidationError as error:
            raise HTTPException(400, problems_of(error, Press, quote=True)) from None
        if self._state.amqp_url is None:
            raise HTTPException(
                409, "no broker is configured, so nobody can hear the button: start the sandbox with an AMQP URL"
            )
        message: dict[str, Any] = {"version": 1, **press.model_dump(exclude={"trailing_dot"})}
        job = self._state.store.jobs.get((press.project, press.job_guid))
        if job is not None:
            message["job_id"] = job.id
        routing_key = f"taskcluster.{press.project}.{press.action}{'.' if press.trailing_dot else ''}"
        try:
            routed = await asyncio.to_thread(
                publish_job_action, self._state.amqp_url, routing_key, message, self._state.job_actions_exchange
            )
        except BROKER_ERRORS as error:
            raise HTTPException(
                503, f"the broker did not take the message ({type(error).__name__}: {error}): is it up, press again"
            ) from None
        return json_response(
            {
                "exchange": self._state.job_actions_exchange,
                "routing_key": routing_key,
                "message": message,
                "heard": routed,
            }
        )


def _push_inside(push: Push) -> dict[str, Any]:
    return {
        "id": push.id,
        "project": push.project,
        "posts": push.posts,
        "first_posted": push.first_posted,
        "last_posted": push.last_posted,
        "jobs": len(push.jobs),
        "resultset": push.body,
    }


def _job_inside(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "project": job.push.project,
        "revision": job.push.revision,
        "posts": len(job.history),
        "history": [
            {"at": at, "state": state, "result": result, "outcome": outcome}
            for at, state, result, outcome in job.history
        ],
        "job": job.body,
        "artifacts": list(job.artifacts.values()),  # as the page shows them
    }

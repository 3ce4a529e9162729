"""Answer `/__control__/` and `/__content__/`: what tests and demos ask of the stand-in itself.

All in JSON and without credentials:

    GET    /__control__/tasks            every task with its status (?taskId=: that one);
                                         POST creates some: {"tasks": [{"taskId", "task"}]}
    GET    /__control__/calls            calls and answers by method, createTask in order; DELETE begins anew
    GET    /__control__/faults           the faults; POST sets one (see faults.py); DELETE removes all, or /{id} one
    GET    /__control__/hooks            every hook with its fires; POST defines one: {"hookGroupId", "hookId", "task",
                                         "metadata", "triggerSchema"} (create-hook-request.json);
                                         DELETE /{hookGroupId}/{hookId} removes one
    POST   /__control__/clients          {"clientId", "disabled": true | false}; GET tells their ids
    POST   /__control__/clock            {"advance": seconds} | {"freeze": true} | {"reset": true}; GET tells the time
    POST   /__control__/latency          {"seconds": 0.02}: how long each call takes at least
    POST   /__control__/clear            forget tasks, calls, faults, fires of hooks; the clock goes back
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.taskcluster.clock import iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.instance import Taskcluster


def control_routes(tc: Taskcluster) -> list[Route]:
    """Return the routes for tests and demos."""

    async def tasks(request: HttpRequest) -> Response:
        if request.method == "POST":
            try:
                for entry in (await request.json())["tasks"]:
                    tc.queue.create_task(entry["taskId"], entry["task"])
            except ApiError as error:
                return JSONResponse({"code": error.code, "message": error.message}, error.status)
            return JSONResponse({"tasks": len(tc.queue.tasks)}, 201)
        task_id = request.query_params.get("taskId")
        selected = [task for task in tc.queue.tasks.values() if task_id in {None, task.task_id}]
        descriptions = [{"status": task.status(), "task": task.definition} for task in selected]
        return JSONResponse({"tasks": descriptions})

    async def calls(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            tc.journal.clear()
        return JSONResponse(tc.journal.describe())

    async def faults(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            fault_id = request.path_params.get("id")
            tc.faults.remove(fault_id)
        if request.method == "POST":
            try:
                fault = tc.faults.add(**await request.json())
            except (TypeError, ValueError) as error:
                return JSONResponse({"message": f"no such fault: {error}"}, 400)
            return JSONResponse(fault.describe(), 201)
        return JSONResponse({"faults": tc.faults.describe()})

    async def hooks(request: HttpRequest) -> Response:
        if request.method == "DELETE":
            tc.hooks.remove(request.path_params["hookGroupId"], request.path_params["hookId"])
        if request.method == "POST":
            body = await request.json()
            try:
                return JSONResponse(tc.hooks.define(body.get("hookGroupId", ""), body.get("hookId", ""), body), 201)
            except ApiError as error:
                return JSONResponse({"code": error.code, "message": error.message}, error.status)
        return JSONResponse({"hooks": tc.hooks.describe()})

    async def clock(request: HttpRequest) -> Response:
        if request.method == "POST":
            changes = await request.json()
            if changes.get("reset"):
                tc.clock.reset()
            if changes.get("freeze"):
                tc.clock.freeze()
            tc.advance(changes.get("advance", 0))
        return JSONResponse({"now": iso(tc.clock.now())})

    async def latency(request: HttpRequest) -> Response:
        tc.latency = float((await request.json())["seconds"])
        return JSONResponse({"seconds": tc.latency})

    async def clear(request: HttpRequest) -> Response:
        tc.clear()
        return JSONResponse({})

    async def content(request: HttpRequest) -> Response:
        location = request.path_params["taskId"], request.path_params["runId"], request.path_params["name"]
        try:
            if request.method == "PUT":
                tc.artifacts.put(*location, await request.body())
                return Response()
            body, kind = tc.artifacts.bytes_of(*location)
        except ApiError as error:
            return JSONResponse({"code": error.code, "message": error.message}, error.status)
        return Response(body, media_type=kind)

    return [
        Route("/__control__/tasks", tasks, methods=["GET", "POST"]),
        Route("/__control__/calls", calls, methods=["GET", "DELETE"]),
        Route("/__control__/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/__control__/faults/{id:int}", faults, methods=["DELETE"]),
        Route("/__control__/hooks", hooks, methods=["GET", "POST"]),
        Route("/__control__/hooks/{hookGroupId}/{hookId:path}", hooks, methods=["DELETE"]),
        Route("/__control__/clients", _clients(tc), methods=["GET", "POST"]),
        Route("/__control__/clock", clock, methods=["GET", "POST"]),
        Route("/__control__/latency", latency, methods=["POST"]),
        Route("/__control__/clear", clear, methods=["POST"]),
        Route("/__content__/{taskId}/{runId:int}/{name:path}", content, methods=["GET", "PUT"]),
    ]


def _clients(tc: Taskcluster) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def clients(request: HttpRequest) -> Response:
        if request.method == "POST":
            body = await request.json()
            if body.get("clientId") not in tc.auth.clients:
                return JSONResponse({"message": f"no such client: {body.get('clientId')}"}, 404)
            tc.auth.disable(body["clientId"], disabled=bool(body.get("disabled")))
        return JSONResponse({"clients": sorted(tc.auth.clients)})

    return clients

"""Serve the stand-in over HTTP: the methods of its services, the sign-in, pages for people, and `/__control__/`.

`create_app(Taskcluster())` is an ASGI app; its root url is where it is served.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.taskcluster.control import control_routes
from sandbox.taskcluster.endpoint import Endpoint
from sandbox.taskcluster.instance import Taskcluster
from sandbox.taskcluster.login_pages import login_routes
from sandbox.taskcluster.methods import api_methods
from sandbox.taskcluster.ui import ui_routes


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await JSONResponse({"code": "ResourceNotFound", "message": "Not found", "requestInfo": {}}, 404)(
            scope, receive, send
        )


def create_app(tc: Taskcluster) -> ASGIApp:
    """Return the ASGI app. Its lifespan runs `tc.running()`; an app that mounts it must do that itself."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with tc.running():
            yield

    routes = [
        Route(f"/api/{service}/v1{method.path}", Endpoint(tc, method), methods=[method.verb])
        for service, method in api_methods(tc)
    ]
    routes += [*control_routes(tc), *login_routes(tc.login), *ui_routes(tc)]
    return Router(routes, lifespan=lifespan, default=_not_found, redirect_slashes=False)

"""Routes that authenticate the caller and check the query before they read the body."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from service import auth
from service.api.deps import auditor, get_caller, may_render, reader, writer
from service.api.limit import Writes
from service.errors import Problem
from service.services import Services

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

API = "/api/v1"
"""Prefix of all paths of the API."""


class Route(APIRoute):
    """A route that refuses a caller before FastAPI reads the body, which FastAPI itself cannot do.

    The endpoint's own signature says who may call: `Reader`, `Writer`, `MayRender`, `Auditor`, or `CallerDep` for
    anyone known.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        dependants = list(flatten(self.dependant))
        calls = {dependant.call for dependant in dependants}
        known = sorted({parameter.alias for dependant in dependants for parameter in dependant.query_params})

        async def checked(request: Request) -> Response:
            await self._admit(request, calls)
            signed = get_caller in calls and auth.has_bewit(request, request.app.state.services.logins)
            _check_query(request, [*known, auth.BEWIT] if signed else known)
            return await handle(request)

        return checked

    async def _admit(self, request: Request, calls: set[Any]) -> None:
        """Authenticate, and check the scope as far as it does not depend on the body."""
        if get_caller not in calls:
            return
        services: Services = request.app.state.services
        caller = await self._identify(request)
        request.state.caller = caller
        if request.method not in {"GET", "HEAD"} and caller is not auth.ANYBODY:
            writes: Writes = request.app.state.writes
            writes.spend(caller.key)
        checks = [check for check in (reader, writer, may_render, auditor) if check in calls]
        for check in checks:
            await check(caller, services.settings)
        if not checks:
            auth.require_credentials(services.settings, caller)

    async def _identify(self, request: Request) -> auth.Caller:
        """Return the caller whose credentials the request has."""
        services: Services = request.app.state.services
        return await auth.identify(services.settings, request, services.logins)


class SignedRoute(Route):
    """A route for listeners, which verifies the signature of method and path before the body is read."""

    async def _admit(self, request: Request, calls: set[Any]) -> None:
        services: Services = request.app.state.services
        auth.verify_route_signature(services.settings, request)


def flatten(dependant: Dependant) -> Iterator[Dependant]:
    """Yield a dependant, and all that it depends on."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from flatten(dependency)


def _check_query(request: Request, known: list[str]) -> None:
    """Raise a 422 for a parameter that the route does not have, and for one that is given twice."""
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in given.items():
        if name not in known:
            names = ", ".join(known) or "none"
            raise Problem(422, "Unknown parameter", f"{name[:100]}: there is no such query parameter; known: {names}")
        if times > 1:  # FastAPI would take the last one
            raise Problem(422, "Invalid request", f"{name}: it is given {times} times: give it once")

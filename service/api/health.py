"""Dockerflow's endpoints: `/__lbheartbeat__` for load balancers, `/__heartbeat__` for people, `/__version__`.

`/__readiness__` is for Kubernetes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import func
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select

from service import clock as clocks
from service.api import gauges
from service.api.cached import Cached, Probe
from service.api.route import Route
from service.api.schemas.health import Check, Heartbeat
from service.clock import SETTLED, now
from service.contract.build import read_build
from service.engine.registry import WORK
from service.services import Services
from service.store.models import JobReport, PulseQueue, State

log = structlog.get_logger()
router = APIRouter(tags=["health"], route_class=Route)

TIME_LIMIT = 3.0
"""Seconds for one check: a check that hangs tells nobody anything."""

OLD_WORK = timedelta(minutes=10)

UNREAD = timedelta(minutes=5)
"""The time after which a Pulse queue counts as unread; `TcTreeherderPulseQueueUnread` of the chart has the same.

A listener tells every `pulse_report_every` (one minute) that it reads."""

DELETED = timedelta(days=1)
"""The time for which a deleted queue is a warning."""

FORGOTTEN = timedelta(days=7)
"""A queue that nobody has read for this long was given up or renamed."""


@router.get("/__lbheartbeat__", operation_id="lbHeartbeat", responses={503: {"description": "Restart it"}})
async def lb_heartbeat(request: Request, response: Response) -> dict[str, str]:
    """Answer 200 while worker and reporter run in this process; only a restart cures a 503."""
    ended = _ended(request)
    response.status_code = 503 if ended else 200
    return {"status": "error" if ended else "ok"}


@router.get("/__version__", operation_id="version")
async def get_version() -> dict[str, Any]:
    """Return the version that is running: version.json of the image, else the version of the package."""
    return await asyncio.to_thread(read_build)


class Health:
    """The checks and metrics that these endpoints show, computed for all callers together: the endpoints are open."""

    def __init__(self, services: Services) -> None:
        self._services = services
        seconds = services.settings.health_cache.total_seconds()
        self.metrics = Cached(lambda: gauges.exposition(services.database), seconds)
        self.checks = Cached(self._checks, seconds)
        self._write = Probe(services.database.write_probe, services.settings.write_check.total_seconds())

    async def database(self) -> Check:
        """Check that the database answers and takes writes, which it refuses if its disk is full or it is read-only."""
        check = await _checked("database", _database, self._services)
        if check.status != "ok":
            return check
        try:
            failure = await self._write.result(TIME_LIMIT)
        except TimeoutError:  # another writer may hold SQLite's only lock for so long
            return Check(name="database", status="warning", detail=f"no write ended within {TIME_LIMIT:g} s")
        if failure is not None:
            log.error("database-takes-no-writes", error=str(failure))
            return Check(name="database", status="error", detail=f"it takes no writes: {_why(failure)}")
        return check

    async def _checks(self) -> list[Check]:
        services = self._services
        return [
            await _checked("work", _work, services),
            await _checked("polls", _polls, services),
            await _checked("pulse", _pulse, services),
        ]

    async def close(self) -> None:
        await self._write.close()


async def get_health(request: Request) -> Health:
    """Return the checks of this process."""
    health: Health = request.app.state.health
    return health


HealthDep = Annotated[Health, Depends(get_health)]


@router.get("/__readiness__", operation_id="readiness", responses={503: {"model": Check}})
async def readiness(response: Response, health: HealthDep) -> Check:
    """Answer 200 if the database answers and takes writes.

    Nothing else counts: while Treeherder is away, events must still be stored.
    """
    check = await health.database()
    response.status_code = 503 if check.status == "error" else 200
    return check


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def get_metrics(health: HealthDep) -> Response:
    """Return the metrics in Prometheus' text format, up to `health_cache` old."""
    body = await asyncio.wait_for(health.metrics.get(), TIME_LIMIT * 3)
    return Response(body, media_type=gauges.CONTENT_TYPE)


@router.get("/__heartbeat__", operation_id="heartbeat", responses={503: {"model": Heartbeat}})
async def heartbeat(request: Request, response: Response, health: HealthDep) -> Heartbeat:
    """Return every check, with warnings apart from errors; 503 if there is an error."""
    checks = [await health.database()]
    if checks[0].status != "error":
        checks += [*await health.checks.get(), _clock()]
    for name in _ended(request):
        checks.append(Check(name=name, status="error", detail=f"the {name} has ended: restart this process"))
    order = ["ok", "warning", "error"]
    status = max((check.status for check in checks), key=order.index)
    response.status_code = 503 if status == "error" else 200
    return Heartbeat(status=status, checks=checks)


def _ended(request: Request) -> list[str]:
    """Return the names of the loops of this process that should run and have ended."""
    tasks = {name: getattr(request.app.state, f"{name}_task") for name in ("worker", "reporter")}
    return [name for name, task in tasks.items() if task is not None and task.done()]


def _why(failure: Exception) -> str:
    """Return the database's reason for refusing a write.

    A driver's words about a connection name its address and user, and this page is open: of those only the class.
    """
    cause = failure.orig if isinstance(failure, DBAPIError) else None
    if cause is None:
        return type(failure).__name__
    import sqlite3  # noqa: PLC0415 - a process loads the driver of its own database, which takes 2 to 9 MB

    if isinstance(cause, sqlite3.Error):
        return str(cause)
    import psycopg  # noqa: PLC0415

    message = cause.diag.message_primary if isinstance(cause, psycopg.Error) and cause.sqlstate else None
    return message or type(cause).__name__


async def _checked(name: str, check: Callable[[Services], Awaitable[Check]], services: Services) -> Check:
    try:
        return await asyncio.wait_for(check(services), TIME_LIMIT)
    except TimeoutError:
        return Check(name=name, status="error", detail=f"no answer within {TIME_LIMIT:g} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this check is for
        return Check(name=name, status="error", detail=type(error).__name__)


async def _database(services: Services) -> Check:
    async with services.database.reading() as session:
        await session.exec(select(1))
    return Check(name="database", status="ok")


async def _work(services: Services) -> Check:
    async with services.database.reading() as session:
        waiting = await gauges.oldest_work(session)
        old = [(WORK.tables[model].waiting, since) for model, since in waiting.items() if now() - since >= OLD_WORK]
        if not old:
            return Check(name="work", status="ok")
        without = (JobReport.state == State.PENDING, col(JobReport.no_push_since).is_not(None))
        some = select(JobReport.id).where(*without).limit(MOST_COUNTED).subquery()
        no_push = (await session.exec(select(func.count()).select_from(some))).one()
    oldest = min(since for _, since in old)
    detail = f"the oldest unfinished work has waited since {oldest:%F %T}Z: {'; '.join(where for where, _ in old)}"
    if no_push:
        detail += f". {no_push} job reports wait for pushes that Treeherder does not know: {NO_PUSH} lists them"
    return Check(name="work", status="warning", detail=detail)


MOST_COUNTED = 10_000

NO_PUSH = "`tc-treeherder reports list --waiting-for-push`"


def _clock() -> Check:
    """Check that the clock of this process agrees with the database's."""
    clock = clocks.process_clock
    if clock.usable and not clock.reported:
        return Check(name="clock", status="ok")
    detail = (
        f"the database's clock is {clock.difference:+.0f} s from this process's: one of them jumped, "
        "or this machine was paused. Check NTP on both"
    )
    if clock.usable:
        return Check(name="clock", status="warning", detail=detail)
    detail += f". No work is taken until they agree, or differ by the same for {SETTLED:g} s; events are still stored"
    return Check(name="clock", status="error", detail=detail)


async def _pulse(services: Services) -> Check:
    at = now()
    async with services.database.reading() as session:
        queues = (await session.exec(select(PulseQueue).where(col(PulseQueue.seen_at) > at - FORGOTTEN))).all()
    warnings = [
        f"{queue.name} was found deleted at {queue.deleted_at:%F %T}Z: its {queue.events} since "
        f"{queue.messages_lost_since:%F %T}Z may be lost; whoever pressed a button then may have to press again"
        for queue in queues
        if queue.deleted_at is not None and queue.messages_lost_since is not None and at - queue.deleted_at < DELETED
    ]
    for events in sorted({queue.events for queue in queues}):
        newest = max((queue for queue in queues if queue.events == events), key=lambda queue: queue.seen_at)
        if at - newest.seen_at > UNREAD:
            warnings.append(
                f"nobody has read {newest.name} since {newest.seen_at:%F %T}Z: is tc-treeherder listen pulse running? "
                "Pulse deletes a queue that grows"
            )
    return Check(name="pulse", status="warning" if warnings else "ok", detail="; ".join(warnings) or "")


async def _polls(services: Services) -> Check:
    async with services.database.reading() as session:
        polls = await gauges.summarize_polls(session)
    if not polls.old:
        return Check(name="polls", status="ok")
    detail = (
        f"no good poll for {gauges.OLD_POLL} of {polls.old} repositories: is a listener running? "
        "`tc-treeherder repositories list` shows the problem of each"
    )
    return Check(name="polls", status="warning", detail=detail)

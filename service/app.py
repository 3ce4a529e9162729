"""Assemble the FastAPI app from lifespan, middlewares, routers and error handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import errors, metrics
from service.api import (
    actions,
    audit,
    dead_letters,
    docs,
    events,
    health,
    listeners,
    manual,
    offers,
    openapi,
    polls,
    push_view,
    pushes,
    render,
    reports,
    repositories,
    task_events,
    tasks,
    watch,
)
from service.api.limit import BodyLimit, Local, Writes
from service.api.queue_look import open_looks
from service.api.trace import QUIET, Trace
from service.contract import tracing
from service.engine import retention
from service.engine.reporter import Reporter
from service.engine.worker import Worker
from service.services import open_services
from service.settings import Settings, load
from service.store.database import Database, check_schema_async, follow_clock
from service.web import install as web
from service.web.pages import open_site


def create_app(settings: Settings | None = None, *, work: bool = True, alone: bool = False) -> FastAPI:
    """Return the app. With `work` False, other processes run the worker (`tc-treeherder work`).

    `alone`: the caller has made sure that no other process uses this SQLite database.
    """
    used_settings = settings or load()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = used_settings.database_url.get_secret_value()
        await check_schema_async(url)
        build = await health.get_version()
        metrics.running(str(build.get("version", "")), str(build.get("commit", "")))
        database = Database(url, used_settings.database_pool)
        try:
            async with (
                open_services(used_settings, database, alone=alone) as services,
                open_looks(services) as app.state.looks,
                open_site(services) as app.state.site,
            ):
                app.state.services = services
                app.state.health = pages = health.Health(services)
                app.state.worker = worker = Worker(services)
                app.state.reporter = reporter = Reporter(services)
                app.state.worker_task = app.state.reporter_task = None
                if work:
                    await services.replica.start()
                    await services.renderer.start()
                    app.state.worker_task = asyncio.create_task(worker.run())
                    app.state.reporter_task = asyncio.create_task(reporter.run())
                    helpers = [retention.run(database, used_settings.retention), database.wakeups.listen(url)]
                else:
                    helpers = [follow_clock(database)]
                running = [asyncio.create_task(helper) for helper in helpers]
                yield
                await pages.close()
                worker.stop()
                reporter.stop()
                for task in running:
                    task.cancel()
                await asyncio.wait(running)  # a connection that one gives back later is closed by nobody
                if work:
                    await asyncio.gather(app.state.worker_task, app.state.reporter_task)
        finally:
            await database.close()

    app = FastAPI(
        title="tc-treeherder",
        summary="Ties Mercurial's pushlog, Taskcluster and Treeherder together.",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        servers=[{"url": "/", "description": "this service"}],
        license_info={"name": "MPL-2.0", "identifier": "MPL-2.0"},
        version="1",
        lifespan=lifespan,
        docs_url=None,  # `docs` serves them without a CDN
        redoc_url=None,
        telemetry=tracing.app_config(QUIET),
    )
    app.state.writes = Writes(used_settings.writes_per_minute)
    app.add_middleware(BodyLimit, seconds=used_settings.request_timeout.total_seconds())
    if not used_settings.has_credentials:
        app.add_middleware(Local)
    app.add_middleware(Trace)  # the last added is the outermost
    errors.install(app)
    for_people = (repositories, render, pushes, push_view, tasks, actions, offers, reports, watch, dead_letters, audit)
    for_listeners = (polls, events, task_events, listeners)
    for module in (*for_listeners, *for_people, health, manual):  # those first that are asked for most
        # as they are: include_router() has FastAPI make each of them anew for this app (0.1 s, 1 MB)
        app.router.routes.extend(module.router.routes)
    openapi.install(app)
    docs.install(app)
    web.install(app, used_settings)
    return app

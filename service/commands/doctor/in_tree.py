"""Check in-tree actions: which hooks of each repository's last decision task the service may trigger."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from sqlmodel import col, select

from service.auth import Caller
from service.clients.artifacts import TaskclusterArtifacts
from service.clients.hooks import TaskclusterHooks, fires_scope, trigger_scope
from service.clients.http import Http
from service.clients.taskcluster import TaskclusterQueue
from service.commands.doctor.finding import Examination, Report, summarize_names
from service.engine.render import Renderer
from service.errors import UpstreamError
from service.flow.actions.decision import decisions_of_push
from service.flow.actions.offers import Offer, load_offer
from service.flow.tasks.subject import ActionFailedError, PushSubject
from service.services import Services, treeherders_of
from service.store.database import Database
from service.store.models import Push, Repository, TreeActions

PUSHES = 5
"""Pushes of a repository that are looked at for a decision task: the newest."""

AT_A_TIME = 4
"""Repositories that are looked at side by side."""


async def hooks(report: Report, examination: Examination) -> None:
    """Check the scopes for the hooks that each repository's last decision task names."""
    environments = examination.settings.environments.values()
    others_create = any(environment.pushes != "rest" for environment in environments)  # and Treeherder says which task
    repositories = [repository for repository in examination.monitored if repository.graph or others_create]
    if not repositories:
        return
    async with AsyncExitStack() as stack:
        services = await _services(examination, stack)
        try:
            held = await services.queue.own_scopes()
        except UpstreamError as error:
            report.warning("in-tree actions", f"not checked: {error}", "see the other checks of Taskcluster")
            return
        caller = Caller(examination.settings.taskcluster.client_id or "anonymous", tuple(held))
        slots = asyncio.Semaphore(AT_A_TIME)

        async def check(repository: Repository) -> None:
            async with slots:
                await _check(report, services, caller, repository)

        await asyncio.gather(*map(check, repositories))


async def _services(examination: Examination, stack: AsyncExitStack) -> Services:
    """Return what finding and reading a decision task's offer needs, and nothing that changes anything."""
    settings = examination.settings
    database = Database(settings.database_url.get_secret_value(), AT_A_TIME)
    queue, renderer = TaskclusterQueue(settings.taskcluster), Renderer(settings.render)
    artifacts, of_hooks = TaskclusterArtifacts(settings.taskcluster), TaskclusterHooks(settings.taskcluster)
    for opened in (database, queue, renderer, artifacts, of_hooks):
        stack.push_async_callback(opened.close)
    nothing: Any = None
    treeherders = treeherders_of(settings, await stack.enter_async_context(Http("treeherder")))
    return Services(settings, database, nothing, queue, treeherders, None, renderer, b"", of_hooks, artifacts)


async def _check(report: Report, services: Services, caller: Caller, repository: Repository) -> None:
    check = f"in-tree actions of {repository.alias}"
    try:
        offer = await _last_offer(services, repository)
    except (ActionFailedError, UpstreamError) as error:
        report.warning(check, f"not checked: {error}", "look at the decision task of its last push")
        return
    if offer is None:
        report.ok(check, f"none of its last {PUSHES} pushes has a decision task with actions")
        return
    named = sorted({(action["hook"][0], action["hook"][1]) for action in offer.actions if action["hook"]})
    missing = {
        "/".join(hook): [scope for scope in (trigger_scope(*hook), fires_scope(*hook)) if not caller.has(scope)]
        for hook in named
    }
    may = [hook for hook, scopes in missing.items() if not scopes]
    detail = f"of the hooks of decision task {offer.decision.task_id}, the service may trigger {_names(may)}"
    lacking = [scope for scopes in missing.values() for scope in scopes]
    if not lacking:
        report.ok(check, detail)
        return
    detail += f", and not {_names([hook for hook, scopes in missing.items() if scopes])}"
    if repository.actions == TreeActions.COPIES and not may:
        report.ok(check, f"{detail}: retrigger and cancel are this service's own (actions: copies)")
        return
    report.warning(check, detail, f"give client {caller.name} the scopes {summarize_names(lacking)}")


def _names(hooks: list[str]) -> str:
    return summarize_names(hooks) if hooks else "none"


async def _last_offer(services: Services, repository: Repository) -> Offer | None:
    """Return what the newest decision task of the repository offers. Raises ActionFailedError and UpstreamError."""
    newest = select(Push).where(Push.repository_id == repository.id).order_by(col(Push.id).desc()).limit(PUSHES)
    async with services.database.reading() as session:
        pushes = (await session.exec(newest)).all()
    for push in pushes:
        for decision in await decisions_of_push(services, PushSubject(repository, push)):
            offer = await load_offer(services, decision, "doctor")
            if offer is not None:
                return offer
    return None

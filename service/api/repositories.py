"""Routes for the monitored repositories."""

from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, Query, Response
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from service.api.audit import record
from service.api.deps import (
    After,
    Limit,
    Reader,
    Reading,
    RepositoryAlias,
    ServicesDep,
    Writer,
    Writing,
)
from service.api.openapi import LOCATION, MERGE_PATCH, WRITES, problems
from service.api.paging import page_of_all
from service.api.route import API, Route
from service.api.schemas.repositories import (
    RepositoryCreate,
    RepositoryPage,
    RepositoryPatch,
    RepositoryRead,
    Reset,
)
from service.auth import Caller, loopback
from service.clock import now
from service.contract.validation import closest
from service.engine import leases
from service.errors import PermanentUpstreamError, Problem, Unavailable
from service.flow.pushes import poll
from service.flow.pushes.push import load_pushes
from service.flow.pushes.urls import canonical_url
from service.sanitize import escape_unstorable
from service.services import Services
from service.settings import Settings
from service.store.database import Session, wake_after
from service.store.models import Action, AuditEvent, Push, PushStep, Repository
from service.store.wakeups import Topic

log = structlog.get_logger()
router = APIRouter(prefix=f"{API}/repositories", tags=["repositories"], route_class=Route)


def normal_url(settings: Settings, url: str) -> tuple[str, str]:
    """Return the one spelling of a url that we store, and its host. Raises a 422 that says what is wrong."""

    def wrong(why: str) -> Problem:
        # what is behind these characters is not shown: it may hold a password
        shown = "the one given" if set(url) & set("@?#") else repr(url)
        return Problem(422, "Invalid url", f"url: {shown} {why}")

    try:
        canonical, host = canonical_url(url)
    except ValueError as error:
        raise wrong(str(error)) from None
    if host not in settings.allowed_hosts:
        refusal = wrong(
            f"is on {host}, which is not among allowed_hosts ({', '.join(settings.allowed_hosts)}): "
            "if it may be trusted, add it to that setting of the service"
        )
        refusal.more["host_not_allowed"] = host
        raise refusal
    if canonical.startswith("http:") and not loopback(host):
        raise wrong("is http; only a host on loopback may be asked without TLS")
    return canonical, host


def default_scopes(url: str) -> list[str]:
    """Return the scopes of a project that states none: those of its role."""
    split = urlsplit(url)
    return [f"assume:repo:{split.netloc}/{split.path.strip('/')}:branch:default"]


def _known_environments(settings: Settings, environments: list[str] | None) -> None:
    unknown = sorted(set(environments or []) - set(settings.environments))
    if unknown:
        known = ", ".join(settings.environments) or "none"
        match = closest(unknown[0], settings.environments)
        suggestion = f" (did you mean {match}?)" if match else ""
        detail = f"environments: {', '.join(unknown)} is not configured{suggestion}; known: {known}"
        raise Problem(422, "Invalid request", detail)


MOST_LOOKED_AT, MOST_NAMED = 100, 10
"""Aliases among which the one is looked for that was probably meant, and aliases that an error names."""


async def unknown_repository(session: Session, alias: str) -> Problem:
    """Return a 404 that names the monitored repositories, and the one that was probably meant."""
    query = select(Repository.alias).where(col(Repository.deleted_at).is_(None)).order_by(col(Repository.id))
    aliases = (await session.exec(query.limit(MOST_LOOKED_AT))).all()
    match = closest(alias[:MOST_LOOKED_AT], aliases)
    suggestion = f"; did you mean {match}?" if match else "."
    known = ", ".join(aliases[:MOST_NAMED]) + (", …" if len(aliases) > MOST_NAMED else "")
    detail = f"no repository {alias!r} is monitored{suggestion} `tc-treeherder repositories list` lists them: {known}"
    if not aliases:
        detail = f"no repository {alias!r} is monitored, and no other: `tc-treeherder repositories add` adds one"
    return Problem(404, "Unknown repository", detail)


async def find(session: Session, alias: str, *, lock: bool = False) -> Repository:
    """Return the monitored repository of this alias. Raises a 404."""
    query = select(Repository).where(Repository.alias == escape_unstorable(alias), col(Repository.deleted_at).is_(None))
    repository = (await session.exec(query.with_for_update() if lock else query)).first()
    if repository is None:
        raise await unknown_repository(session, alias)
    return repository


async def _end_of_pushlog(services: Services, url: str) -> int:
    try:
        return await services.hg.last_push_id(url)
    except PermanentUpstreamError as error:
        raise Problem(422, "No pushlog there", f"url: {error}") from None
    except Unavailable as error:
        detail = f"the pushlog's present end could not be asked for: {error}. Try again, or give last_push_id."
        raise Problem(502, "Pushlog unavailable", detail) from None


@router.get("", operation_id="listRepositories", responses=problems())
async def list_repositories(session: Reading, _: Reader, limit: Limit = 100, after: After = None) -> RepositoryPage:
    """List the monitored repositories, in the order in which they were added."""
    query = select(Repository).where(col(Repository.deleted_at).is_(None))
    repositories, following = await page_of_all(session, query, Repository.id, limit, after, newest_first=False)
    items = [RepositoryRead.model_validate(repository) for repository in repositories]
    return RepositoryPage(items=items, next=following)


@router.post(
    "",
    status_code=201,
    operation_id="addRepository",
    responses={201: LOCATION, **problems(409, 502, scope=WRITES)},
)
async def add_repository(
    body: RepositoryCreate, response: Response, services: ServicesDep, caller: Writer
) -> RepositoryRead:
    """Monitor a repository from now on, or from `last_push_id`."""
    url, host = normal_url(services.settings, body.url)
    _known_environments(services.settings, body.environments)
    async with services.database.reading() as session:
        await _taken(session, body.alias, url)
    last_push_id = body.last_push_id
    if last_push_id is None:
        last_push_id = await _end_of_pushlog(services, url)
    try:
        async with services.database.writing() as session:
            known = (await session.exec(select(Repository).where(Repository.url == url).with_for_update())).first()
            await _taken(session, body.alias, url)  # after the lock: who waited for it sees what the other did
            repository = _created(known, body, url, host, last_push_id)
            session.add(repository)
            await session.flush()
            read = RepositoryRead.model_validate(repository)
            values = read.model_dump(mode="json", include=set(RepositoryCreate.model_fields))
            record(session, AuditEvent.REPOSITORY_ADDED, caller, repository=read.alias, values=values)
    except IntegrityError:
        async with services.database.reading() as session:
            await _taken(session, body.alias, url)
        raise Problem(
            409, "Taken", f"alias {body.alias!r} or url {url} was taken just now: read it and try again"
        ) from None
    log.info("repository-added", repository=read.alias, url=read.url, cursor=read.last_push_id, by=caller.name)
    response.headers["Location"] = f"/api/v1/repositories/{read.alias}"
    return read


@router.post("/plan", operation_id="planRepository", responses=problems(409))
async def plan_repository(body: RepositoryCreate, services: ServicesDep, _: Reader) -> RepositoryCreate:
    """Return what would be added, or why it cannot be. The pushlog is not asked, and nothing changes."""
    url, _host = normal_url(services.settings, body.url)
    _known_environments(services.settings, body.environments)
    async with services.database.reading() as session:
        await _taken(session, body.alias, url)
    scopes = body.scopes if body.scopes is not None else default_scopes(url)
    return body.model_copy(update={"url": url, "scopes": scopes})


async def _taken(session: Session, alias: str, url: str) -> None:
    live = await session.exec(
        select(Repository).where(
            (Repository.alias == alias) | (Repository.url == url), col(Repository.deleted_at).is_(None)
        )
    )
    for other in live:
        what = f"alias {alias!r}" if other.alias == alias else f"url {url}"
        detail = f"{what} is taken by repository {other.alias} ({other.url}): change or delete that one"
        raise Problem(409, "Taken", detail, repository=other.alias)


def _created(known: Repository | None, body: RepositoryCreate, url: str, host: str, last_push_id: int) -> Repository:
    """Return a new row, or the `known` row of a deleted repository, which keeps its generation."""
    values = {
        **body.model_dump(exclude={"url", "last_push_id", "scopes"}),
        "scopes": body.scopes if body.scopes is not None else default_scopes(url),
        "host": host,
        "last_push_id": last_push_id,
    }
    repository = Repository(url=url, **values)
    if known is None:
        return repository
    kept = {"id", "url", "generation", "shift"}
    for name in Repository.model_fields.keys() - kept:
        setattr(known, name, getattr(repository, name))
    return known


@router.get("/{alias}", operation_id="getRepository", responses=problems(404))
async def get_repository(alias: RepositoryAlias, session: Reading, _: Reader) -> RepositoryRead:
    """Return one repository, with the state of its poll."""
    return RepositoryRead.model_validate(await find(session, alias))


@router.patch(
    "/{alias}",
    operation_id="changeRepository",
    responses=problems(404, scope=WRITES),
    openapi_extra=MERGE_PATCH,
)
async def change_repository(
    alias: RepositoryAlias, change: RepositoryPatch, caller: Writer, session: Writing, services: ServicesDep
) -> RepositoryRead:
    """Change a repository by JSON Merge Patch (RFC 7396). Alias and url cannot change: delete and add it instead."""
    _known_environments(services.settings, change.environments)
    repository = await find(session, alias, lock=True)
    before = RepositoryRead.model_validate(repository)
    for name in change.model_fields_set:
        setattr(repository, name, getattr(change, name))
    if repository.scopes is None:
        repository.scopes = default_scopes(repository.url)
    poll.end_shift(repository)
    after = RepositoryRead.model_validate(repository)
    changes = _changes(before, after, change.model_fields_set)
    record(session, AuditEvent.REPOSITORY_CHANGED, caller, repository=alias, changes=changes)
    log.info("repository-changed", repository=alias, changed=sorted(change.model_fields_set), by=caller.name)
    return after


def _changes(before: RepositoryRead, after: RepositoryRead, names: set[str]) -> dict[str, list[Any]]:
    """Return of each of these fields that changed what it was and what it is."""
    values = [read.model_dump(mode="json", include=names) for read in (before, after)]
    return {name: [values[0][name], values[1][name]] for name in sorted(names) if values[0][name] != values[1][name]}


@router.delete(
    "/{alias}",
    status_code=204,
    operation_id="deleteRepository",
    responses=problems(404, 409, scope=WRITES),
)
async def delete_repository(
    alias: RepositoryAlias,
    caller: Writer,
    session: Writing,
    force: Annotated[bool, Query(description="bury the unfinished work as dead letters")] = False,
) -> None:
    """Stop monitoring a repository. Its pushes can still be read, and its generation is kept."""
    repository = await find(session, alias, lock=True)
    # locked: what a worker ends just now is not buried
    steps = await session.exec(
        select(PushStep)
        .join(Push, col(Push.id) == PushStep.push_id)
        .where(Push.repository_id == repository.id, col(PushStep.due_at).is_not(None))
        .order_by(col(PushStep.id))
        .with_for_update(of=PushStep)
    )
    actions = await session.exec(
        select(Action)
        .where(Action.project == alias, col(Action.due_at).is_not(None))
        .order_by(col(Action.id))
        .with_for_update()
    )
    of_pushes, of_tasks = list(steps), list(actions)
    unfinished = len(of_pushes) + len(of_tasks)
    if unfinished and not force:
        detail = (
            f"{len(of_pushes)} steps of {alias}'s pushes and {len(of_tasks)} actions on its tasks are unfinished: wait "
            f"for them, or bury them with `tc-treeherder repositories remove {alias} --force` (?force=true)"
        )
        raise Problem(409, "Unfinished work", detail, unfinished=unfinished)
    pushes = await load_pushes(session, of_pushes)
    work = [*((step, pushes[step.push_id]) for step in of_pushes), *((action, None) for action in of_tasks)]
    session.add_all(leases.bury(work, f"the repository was deleted by {caller.name}"))
    wake_after(session, Topic.WORK)  # the failures of what was buried are to be shown
    repository.deleted_at = now()
    poll.end_shift(repository)
    record(session, AuditEvent.REPOSITORY_DELETED, caller, repository=alias, buried=unfinished)
    log.info("repository-deleted", repository=alias, buried=unfinished, by=caller.name)


@router.post(
    "/{alias}/reset",
    operation_id="resetRepository",
    responses=problems(404, 502, scope=WRITES),
)
async def reset_repository(
    alias: RepositoryAlias, body: Reset, services: ServicesDep, caller: Writer
) -> RepositoryRead:
    """Begin a new generation of a repository that was created anew, and set its cursor."""
    return await reset_once(alias, body, services, caller, None)


async def reset_once(
    alias: str, body: Reset, services: Services, caller: Caller, generation: int | None
) -> RepositoryRead:
    """Begin a new generation. Raises a 409 if `generation` is given, and is not the present one any more."""
    async with services.database.reading() as session:
        url = (await find(session, alias)).url
    last_push_id = body.last_push_id
    if last_push_id is None:
        last_push_id = await _end_of_pushlog(services, url)
    async with services.database.writing() as session:
        repository = await find(session, alias, lock=True)
        if generation not in {None, repository.generation}:
            detail = (
                f"{alias} was reset since you loaded this form, to generation {repository.generation}: load it again"
            )
            raise Problem(409, "Changed meanwhile", detail)
        poll.reset(repository, last_push_id, record_before=None)
        values = {"last_push_id": last_push_id, "generation": repository.generation}
        record(session, AuditEvent.REPOSITORY_RESET, caller, repository=alias, values=values)
        log.warning("repository-reset", repository=alias, new_generation=repository.generation, by=caller.name)
        return RepositoryRead.model_validate(repository)


@router.post(
    "/{alias}/poll",
    status_code=202,
    operation_id="pollRepository",
    responses=problems(404, 409, scope=WRITES),
)
async def poll_repository(alias: RepositoryAlias, caller: Writer, session: Writing) -> RepositoryRead:
    """Have a repository polled at once, whatever its last polls were like: a listener does it within seconds."""
    repository = await find(session, alias, lock=True)
    if not repository.enabled:
        raise Problem(409, "Not polled", f"{alias} is not polled: enable it first")
    poll.end_shift(repository)
    record(session, AuditEvent.REPOSITORY_POLLED, caller, repository=alias)
    log.info("repository-polled", repository=alias, by=caller.name)
    return RepositoryRead.model_validate(repository)

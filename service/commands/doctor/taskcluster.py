"""Taskcluster: it answers, our clocks agree, the credentials are good, and they have the scopes that we need."""

import re
from collections import defaultdict

import httpx

from service.auth import Caller
from service.clients.taskcluster import ScopesRefusal, current_scopes, expand_scopes, named, satisfies, session_of
from service.clock import now
from service.commands.doctor.finding import Examination, Report, ask, judge_clock, some, told
from service.engine.render import Renderer, TemplateError
from service.errors import PermanentUpstreamError, Unavailable, UpstreamError
from service.flow.actions import retrigger
from service.flow.pushes.show_error import render_error_task
from service.flow.pushes.template import scopes_of
from service.flow.tasks.definition import needed_scopes
from service.store.models import Push, PushStep, Repository, StepKind

_PING = "/api/auth/v1/ping"
_ROOT_REMEDY = (
    "set TC_TREEHERDER_TASKCLUSTER__ROOT_URL to the deployment's root, such as "
    "https://firefox-ci-tc.services.mozilla.com, without any path"
)
_STALE = re.compile(r"stale timestamp", re.IGNORECASE)

READS = {
    "queue:get-task:*": "retriggers, cancels and jobs read tasks",
    "queue:status:*": "graphs are checked, retriggers and cancels read the state of tasks",
    "queue:list-task-group:*": "retriggers ask whether a task group is sealed, and copy decision tasks",
    "queue:list-dependent-tasks:*": "retriggers copy what depends on a task",
}
"""Scopes for what we read, and what for; a task's id says nothing of its project, so only the star helps."""

NOTIFY_PUSHER = "queue:route:notify.email.*"
"""In `authorizedScopes` of each graph (flow/graph.py): without it every createTask is 401."""


async def ping(report: Report, ex: Examination) -> None:
    """It answers, and its clock is ours."""
    root = ex.settings.taskcluster.root
    remedy = "check TC_TREEHERDER_TASKCLUSTER__ROOT_URL, and the way there"
    try:
        answer, drift = await ask(ex, root + _PING)
    except httpx.HTTPError as error:
        report.error("ping", f"{root}: {told(error)}", remedy)
        return
    if answer.status_code == httpx.codes.NOT_FOUND:
        detail = f"{root}{_PING} answers 404: there is a server, and no Taskcluster"
        report.error("ping", detail, _ROOT_REMEDY)
        return
    if answer.status_code != httpx.codes.OK:
        report.error("ping", f"{root}{_PING} answers {answer.status_code}", remedy)
        return
    report.ok("ping", root)
    judge_clock(report, "clock", drift)


async def scopes(report: Report, ex: Examination) -> None:
    """The credentials are good, and have what is needed."""
    settings = ex.settings.taskcluster
    if not settings.client_id or settings.access_token is None:
        remedy = "set TC_TREEHERDER_TASKCLUSTER__CLIENT_ID and …__ACCESS_TOKEN"
        report.error("credentials", "none: no task can be created or cancelled", remedy)
        return
    try:
        held = await _current_scopes(ex)
    except PermanentUpstreamError as error:
        if not isinstance(error, ScopesRefusal):
            detail = f"auth.currentScopes is answered {error.status}: {error}"
            report.error("credentials", detail, _ROOT_REMEDY)
            return
        # they are good, for others are told 401; but what they may do cannot be asked
        lacking = named(error.missing) or "auth:current-scopes"
        remedy = f"give client {settings.client_id} the scope {lacking}"
        report.warning("scopes", f"not checked: {settings.client_id} may not ask for its own (no {lacking})", remedy)
        return
    except Unavailable as error:
        report.error("credentials", str(error), _credentials_remedy(settings.client_id, str(error)))
        return
    except (ValueError, TypeError):
        # of the client's own making, from the certificate
        remedy = "set TC_TREEHERDER_TASKCLUSTER__CERTIFICATE to its JSON, or leave it out with permanent credentials"
        report.error("credentials", "the certificate is not the JSON of temporary credentials", remedy)
        return
    report.ok("credentials", f"{settings.client_id}, {len(held)} scopes")
    caller = Caller(settings.client_id, tuple(held))
    for scope, why in READS.items():
        if caller.has(scope):
            report.ok(scope, why)
        else:
            report.error(scope, f"missing: {why}", f"give client {settings.client_id} the scope {scope}")
    if any(each.artifact_links and each.jobs != "off" for each in ex.settings.environments.values()):
        _wanted(report, caller, "queue:list-artifacts:*", "jobs link to what runs have uploaded")
    _some_of(report, caller, "queue:cancel-task:", "cancels")
    _some_of(report, caller, "queue:schedule-task:", "tasks that Taskcluster left unscheduled are mended")
    _projects(report, ex, caller)


def _credentials_remedy(client_id: str, why: str) -> str:
    if _STALE.search(why):
        return "set the clock of this machine (NTP): Taskcluster refuses signatures that are a minute off"
    if "refuses our credentials" in why:
        return f"is client {client_id} enabled, not expired, and the access token its own? Else make a new one"
    return "the credentials could not be tried: see `ping`, and what is between here and there"


_SAMPLE = "0" * 40
"""The revision of a push that is made up."""


async def error_tasks(report: Report, ex: Examination) -> None:
    """For each repository, the task that shows a broken file can be created with the project's scopes."""
    settings = ex.settings
    repositories = [repository for repository in ex.monitored if repository.graph]
    renderer = Renderer(settings.render)
    scopes: dict[tuple[str, ...], list[str]] = {}
    lacking: dict[str, list[str]] = defaultdict(list)
    try:
        async with session_of(settings.taskcluster.root, ex.seconds, 1) as session:
            for repository in repositories:
                push = _sample_push(repository)
                step = PushStep(push_id=0, kind=StepKind.GRAPH, lane="", refused="an example")
                task = await render_error_task(settings, renderer, step, push, repository, lambda _: _SAMPLE_ID)
                key = tuple(scopes_of(settings, repository, push))
                if key not in scopes:
                    scopes[key] = await expand_scopes(settings.taskcluster, session, key)
                for any_of in needed_scopes(task.definition or {}):
                    if not any(satisfies(scopes[key], scope) for scope in any_of):
                        general = any_of[-1].replace(f".{repository.alias}.", ".<alias>.").partition(_SAMPLE)
                        lacking[general[0] + ("*" if general[1] else "")].append(repository.alias)
    except TemplateError as error:
        report.error("error tasks", f"the setting error_task is wrong: {error}", "mend it, or leave it out")
        return
    except UpstreamError as error:
        remedy = "see the other checks of Taskcluster"
        if isinstance(error, ScopesRefusal):
            missing = named(error.missing) or "auth:expand-scopes"
            remedy = f"give client {settings.taskcluster.client_id} the scope {missing}"
        detail = f"not checked: what the projects may do cannot be asked ({error})"
        report.warning("error tasks", detail, remedy)
        return
    finally:
        await renderer.close()
    for scope, aliases in lacking.items():
        _lacking(report, scope, aliases)
    if repositories and not lacking:
        report.ok("error tasks", f"a broken file can be shown on the pushes of all {len(repositories)} repositories")


def _lacking(report: Report, scope: str, aliases: list[str]) -> None:
    role = "give that to the projects' roles"
    if scope.startswith("queue:route:"):
        detail = f"the projects' scopes lack {scope}: the error task of {some(aliases)} is created without that route"
    else:
        detail = f"the projects' scopes lack {scope}: no task can show a broken file on pushes of {some(aliases)}"
    if scope.startswith("queue:scheduler-id:"):
        role = "set the trust domain and the level of the repositories (`tc-treeherder repositories set`), or " + role
    report.warning("error tasks", detail, role)


_SAMPLE_ID = "AAAAAAAAQAyAAAAAAAAAAA"


def _sample_push(repository: Repository) -> Push:
    return Push(
        repository_id=repository.id or 0,
        generation=0,
        push_id=1,
        user="somebody@example.com",
        date=now(),
        revision=_SAMPLE,
        revision_hash=_SAMPLE,
        changesets=[],
        nodes=[],
    )


async def _current_scopes(ex: Examination) -> list[str]:
    async with session_of(ex.settings.taskcluster.root, ex.seconds, 1) as session:
        return await current_scopes(ex.settings.taskcluster, session)


def _wanted(report: Report, caller: Caller, scope: str, why: str) -> None:
    if caller.has(scope):
        report.ok(scope, why)
    else:
        report.warning(scope, f"missing: {why}", f"give client {caller.name} the scope {scope}")


def _some_of(report: Report, caller: Caller, prefix: str, why: str) -> None:
    """Scopes `<prefix><schedulerId>/<taskGroupId>/<taskId>`: all of them, or those of some schedulers."""
    scope = f"{prefix}*"
    if caller.has(scope):
        report.ok(scope, why)
        return
    remedy = (
        f"give client {caller.name} the scope {scope}, or {prefix}<schedulerId>/* for each scheduler of your projects"
    )
    if narrower := [held for held in caller.scopes if held.startswith(prefix)]:
        report.warning(scope, f"only {some(narrower)}: {why}, for tasks of these schedulers alone", remedy)
    else:
        report.error(scope, f"missing: {why}", remedy)


def _projects(report: Report, ex: Examination, caller: Caller) -> None:
    """`authorizedScopes` of each repository's graphs and copies are satisfied by ours."""
    repositories = [repository for repository in ex.monitored if repository.graph]
    lacking: dict[str, list[str]] = defaultdict(list)
    for repository in repositories:
        for scope in dict.fromkeys([*retrigger.scopes_of(repository), NOTIFY_PUSHER]):
            if not caller.has(scope):
                lacking[scope].append(repository.alias)
    for scope, aliases in lacking.items():
        detail = f"missing {scope}: no task can be created for {some(aliases)}"
        report.error("repositories", detail, f"give client {caller.name} the scope {scope}")
    if repositories and not lacking:
        report.ok("repositories", f"ours satisfy the scopes of all {len(repositories)}")

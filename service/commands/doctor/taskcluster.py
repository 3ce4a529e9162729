"""Check Taskcluster: it answers, the clocks agree, the credentials are valid, and have the scopes that we need."""

import re
from collections import defaultdict

import httpx

from service.auth import Caller
from service.clients.taskcluster import ScopesRefusal, current_scopes, expand_scopes, named, satisfies, session_of
from service.clock import now
from service.commands.doctor.finding import (
    Examination,
    Report,
    error_text,
    get_with_drift,
    judge_clock,
    summarize_names,
)
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
    "queue:list-task-group:*": "retriggers check whether a task group is sealed, and actions on a push list its tasks",
    "queue:list-dependent-tasks:*": "retriggers copy the tasks that depend on a task",
}
"""Scopes for reading, with their use. Only `*` is sufficient, because a task's id does not tell its project."""

NOTIFY_PUSHER = "queue:route:notify.email.*"
"""A scope that is in `authorizedScopes` of each graph (flow/pushes/graph.py): without it every createTask is 401."""


async def ping(report: Report, examination: Examination) -> None:
    """Check that Taskcluster answers, and that its clock agrees with ours."""
    root = examination.settings.taskcluster.root
    remedy = "check TC_TREEHERDER_TASKCLUSTER__ROOT_URL, and the network on the way"
    try:
        answer, drift = await get_with_drift(examination, root + _PING)
    except httpx.HTTPError as error:
        report.error("ping", f"{root}: {error_text(error)}", remedy)
        return
    if answer.status_code == httpx.codes.NOT_FOUND:
        detail = f"{root}{_PING} answers 404: the server is not Taskcluster"
        report.error("ping", detail, _ROOT_REMEDY)
        return
    if answer.status_code != httpx.codes.OK:
        report.error("ping", f"{root}{_PING} answers {answer.status_code}", remedy)
        return
    report.ok("ping", root)
    judge_clock(report, "clock", drift)


async def scopes(report: Report, examination: Examination) -> None:
    """Check that the credentials are valid, and have the scopes that we need."""
    settings = examination.settings.taskcluster
    if not settings.client_id or settings.access_token is None:
        remedy = "set TC_TREEHERDER_TASKCLUSTER__CLIENT_ID and …__ACCESS_TOKEN"
        report.error("credentials", "none: no task can be created or cancelled", remedy)
        return
    try:
        held = await _current_scopes(examination)
    except PermanentUpstreamError as error:
        if not isinstance(error, ScopesRefusal):
            detail = f"auth.currentScopes answers {error.status}: {error}"
            report.error("credentials", detail, _ROOT_REMEDY)
            return
        # the credentials are valid, otherwise the answer is a 401; but their scopes cannot be read
        missing = named(error.missing) or "auth:current-scopes"
        remedy = f"give client {settings.client_id} the scope {missing}"
        report.warning("scopes", f"not checked: {settings.client_id} may not read its own (no {missing})", remedy)
        return
    except Unavailable as error:
        report.error("credentials", str(error), _credentials_remedy(settings.client_id, str(error)))
        return
    except (ValueError, TypeError):
        # Taskcluster's client raises these for an invalid certificate
        remedy = "set TC_TREEHERDER_TASKCLUSTER__CERTIFICATE to its JSON, or unset it for permanent credentials"
        report.error("credentials", "the certificate is not the JSON of temporary credentials", remedy)
        return
    report.ok("credentials", f"{settings.client_id}, {len(held)} scopes")
    caller = Caller(settings.client_id, tuple(held))
    for scope, use in READS.items():
        if caller.has(scope):
            report.ok(scope, use)
        else:
            report.error(scope, f"missing: {use}", f"give client {settings.client_id} the scope {scope}")
    if any(
        environment.artifact_links and environment.jobs != "off"
        for environment in examination.settings.environments.values()
    ):
        _check_optional(report, caller, "queue:list-artifacts:*", "jobs link to the artifacts of runs")
    if examination.settings.web_sign_in.client_id is not None:
        _check_reads_of_people(report, caller)
    _check_by_scheduler(report, caller, "queue:cancel-task:", "cancels")
    _check_by_scheduler(report, caller, "queue:schedule-task:", "tasks that Taskcluster left unscheduled are scheduled")
    _check_projects(report, examination, caller)


def _credentials_remedy(client_id: str, reason: str) -> str:
    if _STALE.search(reason):
        return "set the clock of this machine (NTP): Taskcluster refuses signatures that are a minute off"
    if "refuses our credentials" in reason:
        return (
            f"check that client {client_id} is enabled, not expired, and has this access token; else create a new one"
        )
    return "the credentials could not be checked: see `ping`, and the network on the way"


_SAMPLE = "0" * 40
"""Revision of the sample push."""


async def error_tasks(report: Report, examination: Examination) -> None:
    """Check that each project's scopes allow the task that shows a broken file."""
    settings = examination.settings
    repositories = [repository for repository in examination.monitored if repository.graph]
    renderer = Renderer(settings.render)
    expanded: dict[tuple[str, ...], list[str]] = {}
    lacking: dict[str, list[str]] = defaultdict(list)
    try:
        async with session_of(settings.taskcluster.root, examination.seconds, 1) as session:
            for repository in repositories:
                push = _sample_push(repository)
                step = PushStep(push_id=0, kind=StepKind.GRAPH, lane="", refused="an example")
                task = await render_error_task(settings, renderer, step, push, repository, lambda _: _SAMPLE_ID)
                key = tuple(scopes_of(settings, repository, push))
                if key not in expanded:
                    expanded[key] = await expand_scopes(settings.taskcluster, session, key)
                for any_of in needed_scopes(task.definition or {}):
                    if not any(satisfies(expanded[key], scope) for scope in any_of):
                        general = any_of[-1].replace(f".{repository.alias}.", ".<alias>.").partition(_SAMPLE)
                        lacking[general[0] + ("*" if general[1] else "")].append(repository.alias)
    except TemplateError as error:
        report.error("error tasks", f"the setting error_task is invalid: {error}", "correct it, or unset it")
        return
    except UpstreamError as error:
        remedy = "see the other checks of Taskcluster"
        if isinstance(error, ScopesRefusal):
            missing = named(error.missing) or "auth:expand-scopes"
            remedy = f"give client {settings.taskcluster.client_id} the scope {missing}"
        detail = f"not checked: the projects' scopes cannot be read ({error})"
        report.warning("error tasks", detail, remedy)
        return
    finally:
        await renderer.close()
    for scope, aliases in lacking.items():
        _report_lacking(report, scope, aliases)
    if repositories and not lacking:
        report.ok("error tasks", f"a broken file can be shown on the pushes of all {len(repositories)} repositories")


def _report_lacking(report: Report, scope: str, aliases: list[str]) -> None:
    role = f"give {scope} to the projects' roles"
    names = summarize_names(aliases)
    if scope.startswith("queue:route:"):
        detail = f"the projects' scopes lack {scope}: the error task of {names} is created without that route"
    else:
        detail = f"the projects' scopes lack {scope}: no task can show a broken file on pushes of {names}"
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


async def _current_scopes(examination: Examination) -> list[str]:
    async with session_of(examination.settings.taskcluster.root, examination.seconds, 1) as session:
        return await current_scopes(examination.settings.taskcluster, session)


def _check_optional(report: Report, caller: Caller, scope: str, use: str) -> None:
    if caller.has(scope):
        report.ok(scope, use)
    else:
        report.warning(scope, f"missing: {use}", f"give client {caller.name} the scope {scope}")


def _check_reads_of_people(report: Report, caller: Caller) -> None:
    """Check the scope for looking up the clients with which people signed in to the page."""
    scope, prefix = "auth:get-client:*", "auth:get-client:"
    use = "the page looks up what people may do who sign in with Taskcluster"
    if caller.has(scope) or any(held.startswith(prefix) for held in caller.scopes):
        report.ok(scope, use)
    else:
        report.error(scope, f"missing: {use}", f"give client {caller.name} the scope {scope}")


def _check_by_scheduler(report: Report, caller: Caller, prefix: str, use: str) -> None:
    """Check the scopes `<prefix><schedulerId>/<taskGroupId>/<taskId>`, for all schedulers or for some."""
    scope = f"{prefix}*"
    if caller.has(scope):
        report.ok(scope, use)
        return
    remedy = (
        f"give client {caller.name} the scope {scope}, or {prefix}<schedulerId>/* for each scheduler of your projects"
    )
    if narrower := [held for held in caller.scopes if held.startswith(prefix)]:
        report.warning(scope, f"only {summarize_names(narrower)}: {use}, for tasks of these schedulers only", remedy)
    else:
        report.error(scope, f"missing: {use}", remedy)


def _check_projects(report: Report, examination: Examination, caller: Caller) -> None:
    """Check that our scopes satisfy `authorizedScopes` of each repository's graphs and copies."""
    repositories = [repository for repository in examination.monitored if repository.graph]
    lacking: dict[str, list[str]] = defaultdict(list)
    for repository in repositories:
        for scope in dict.fromkeys([*retrigger.scopes_of(repository), NOTIFY_PUSHER]):
            if not caller.has(scope):
                lacking[scope].append(repository.alias)
    for scope, aliases in lacking.items():
        detail = f"missing {scope}: no task can be created for {summarize_names(aliases)}"
        report.error("repositories", detail, f"give client {caller.name} the scope {scope}")
    if repositories and not lacking:
        report.ok("repositories", f"our scopes satisfy those of all {len(repositories)}")

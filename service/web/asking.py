"""Ask for actions by forms: a preview first, then the action itself, once however often its form is sent."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service import auth
from service.api.actions import create_action, plan_of
from service.api.deps import CallerDep, ServicesDep
from service.api.schemas.actions import ActionCreate
from service.auth import Caller
from service.contract.validation import problems_of
from service.errors import Problem
from service.flow.tasks.action_kinds import ACTIONS, scope_of
from service.sanitize import InvalidJSONError, parse
from service.web.copy_tree import tree_of
from service.web.forms import form_of, input_of
from service.web.offers import named, offered
from service.web.pages import FormDep, PageRoute, SiteDep, show

router = APIRouter(route_class=PageRoute)

ON_TASKS, ON_PUSHES = ("retrigger", "cancel"), ("retrigger-failed", "cancel-push")
"""The actions that the pages of tasks and of pushes offer."""

MAX_LISTED = 200
"""Tasks of each kind that a preview lists."""


@dataclass(frozen=True)
class Button:
    """An action that is offered; `missing` is the scope that the caller lacks for it."""

    action: str
    summary: str
    missing: str | None
    times: bool  # it takes a number of copies


def buttons_for(caller: Caller, names: tuple[str, ...], project: str) -> list[Button]:
    """Return the buttons of these actions for whoever looks."""
    return [
        Button(
            action=name,
            summary=ACTIONS[name].summary,
            missing=None if caller.has(scope_of(name, project)) else scope_of(name, project),
            times="times" in ACTIONS[name].input.model_fields,
        )
        for name in names
    ]


def wanted_action(form: Mapping[str, str]) -> ActionCreate:
    """Return the action that a form asks for. Raises a 422."""
    numbers: dict[str, int] = {}
    for name in ("push", "times"):
        text = form.get(name, "")
        if text and not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise Problem(422, "Invalid request", f"{name}: {text[:100]!r} is no number")
        if text:
            numbers[name] = int(text)
    given = {"times": numbers["times"]} if "times" in numbers else {}
    if form.get("input"):  # of a preview
        try:
            given = parse(form["input"].encode())
        except InvalidJSONError:
            raise Problem(422, "Invalid request", "input: it is not that of a preview: begin there") from None
    body = {
        "action": form.get("action", ""),
        "project": form.get("project", ""),
        "task_id": form.get("task_id") or None,
        "push": numbers.get("push"),
        "input": given,
    }
    try:
        return ActionCreate.model_validate(body)
    except ValidationError as error:
        raise Problem(422, "Invalid request", problems_of(error, ActionCreate, quote=True)) from None


@router.post("/actions/plan")
async def preview_action(request: Request, services: ServicesDep, caller: CallerDep, form: FormDep) -> Response:
    """Show what an action would do now, with the form that does it."""
    wanted = wanted_action(form)
    auth.require(services.settings, caller, scope_of(wanted.action, wanted.project))  # before anything is looked up
    if form.get("offered"):
        offers = await offered(services, caller, task_id=wanted.task_id, project=wanted.project, push=wanted.push)
        schema = named(offers, wanted.action).input
        # in a thread, for some ten thousand characters of YAML take a tenth of a second
        wanted.input = await asyncio.to_thread(lambda: input_of(form_of(schema), form))
    plan = await plan_of(wanted, services, caller)
    key = secrets.token_urlsafe(16)
    return show(
        request,
        "plan.html",
        plan=plan,
        tree=tree_of(plan.tasks[:MAX_LISTED]),
        input=json.dumps(wanted.input),
        key=key,
        summary=_summary(wanted),
        most=MAX_LISTED,
    )


def _summary(wanted: ActionCreate) -> str:
    return ACTIONS[wanted.action].summary if wanted.action in ACTIONS else ""


@router.post("/actions")
async def ask_for_action(
    request: Request, services: ServicesDep, caller: CallerDep, form: FormDep, site: SiteDep
) -> Response:
    """Store an action, and lead to its page, which shows the progress."""
    key = form.get("key", "")
    if not 1 <= len(key) <= 200:
        raise Problem(422, "Invalid request", "key: the form of the preview has one: begin there")
    action = await create_action(wanted_action(form), request, Response(), services, caller, f"page {key}"[:200])
    return site.redirect(f"/actions/{action.id}")

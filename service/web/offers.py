"""The in-tree actions of a task or of a push, and the form of each, which leads to the preview."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.deps import PushNumber, Reader, RepositoryAlias, ServicesDep
from service.api.offers import read_push_offers, read_task_offers
from service.api.schemas.offers import OfferedAction, OfferedActions
from service.api.tasks import TaskNumber
from service.auth import Caller
from service.errors import Problem
from service.services import Services
from service.web.forms import form_of
from service.web.pages import PageRoute, show

router = APIRouter(route_class=PageRoute)


async def offered(
    services: Services, caller: Caller, *, task_id: str | None, project: str | None, push: int | None
) -> OfferedActions:
    """Return the in-tree actions of a task, or of a push of the project. Raises Problem."""
    if task_id is not None:
        return await read_task_offers(task_id, services, caller, project)
    if project is not None and push is not None:
        return await read_push_offers(project, push, services, caller)
    raise Problem(422, "Invalid request", "task_id, push: one of them says what the action is about")


def named(offers: OfferedActions, name: str) -> OfferedAction:
    """Return the offered action of this name. Raises a 404."""
    for action in offers.items:
        if action.name == name:
            return action
    names = ", ".join(action.name for action in offers.items[:50]) or offers.reason or "nothing"
    raise Problem(404, "Not Found", f"the tree does not offer {name[:100]!r} here: it offers {names}")


@router.get("/tasks/{task_id}/offers")
async def get_task_offers(request: Request, task_id: TaskNumber, services: ServicesDep, caller: Reader) -> Response:
    """List the in-tree actions of a task."""
    offers = await offered(services, caller, task_id=task_id, project=None, push=None)
    return show(request, "offers.html", offers=offers, place=("tasks", task_id))


@router.get("/tasks/{task_id}/offers/{name}")
async def get_task_offer(
    request: Request, task_id: TaskNumber, name: str, services: ServicesDep, caller: Reader
) -> Response:
    """Show the form of an in-tree action of a task."""
    offers = await offered(services, caller, task_id=task_id, project=None, push=None)
    return _form(request, offers, name, ("tasks", task_id))


@router.get("/pushes/{alias}/{push_id}/offers")
async def get_push_offers(
    request: Request, alias: RepositoryAlias, push_id: PushNumber, services: ServicesDep, caller: Reader
) -> Response:
    """List the in-tree actions of a push."""
    offers = await offered(services, caller, task_id=None, project=alias, push=push_id)
    return show(request, "offers.html", offers=offers, place=("pushes", alias, push_id))


@router.get("/pushes/{alias}/{push_id}/offers/{name}")
async def get_push_offer(
    request: Request, alias: RepositoryAlias, push_id: PushNumber, name: str, services: ServicesDep, caller: Reader
) -> Response:
    """Show the form of an in-tree action of a push."""
    offers = await offered(services, caller, task_id=None, project=alias, push=push_id)
    return _form(request, offers, name, ("pushes", alias, push_id))


def _form(request: Request, offers: OfferedActions, name: str, place: tuple[Any, ...]) -> Response:
    action = named(offers, name)
    return show(request, "offer.html", offers=offers, action=action, form=form_of(action.input), place=place)

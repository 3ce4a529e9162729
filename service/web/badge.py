"""A small picture of the state of a repository's last push, for pages elsewhere, where reads are public."""

import time
from dataclasses import dataclass

from fastapi import APIRouter, Response

from service.api.deps import Reader, ServicesDep
from service.api.push_tasks import MOST, RESOLVED_RANK, TaskState, task_states
from service.api.pushes import summarize_pushes
from service.api.schemas.pushes import PushSummary
from service.errors import Problem
from service.services import Services
from service.web.pages import PageRoute, SiteDep
from service.web.rendering import HEADERS, render_text
from service.web.words import tone_of

router = APIRouter(route_class=PageRoute)

KEPT = 10.0
"""Seconds for which a badge is kept for all who ask."""

ELSEWHERE = {**HEADERS, "Cross-Origin-Resource-Policy": "cross-origin", "Cache-Control": "public, max-age=30"}
"""Other sites may show it."""

_COLOURS = {"good": "#116329", "bad": "#b3141d", "busy": "#0550ae", "mute": "#55555f"}
_CHARACTER, _MARGIN = 7, 6


@dataclass(frozen=True)
class BadgeState:
    """A state in a word, and its colour."""

    word: str
    tone: str


def state_of(push: PushSummary | None, states: dict[str, TaskState]) -> BadgeState:
    """Return the state of a push, of whose tasks these states were reported."""
    if push is None:
        return BadgeState("no pushes", "mute")
    steps = [each.state for each in push.resultsets] + ([push.graph.state] if push.graph is not None else [])
    if "failed" in steps:
        return BadgeState("broken", "bad")
    if any(tone_of(each.state) == "bad" for each in states.values()):
        return BadgeState("failed", "bad")
    if "pending" in steps or any(each.rank[1] < RESOLVED_RANK for each in states.values()):
        return BadgeState("running", "busy")
    return BadgeState("passed" if states else "pushed", "good")


@router.get("/badge/{name}.svg")
async def get_badge(name: str, services: ServicesDep, _: Reader, site: SiteDep) -> Response:
    """Show the state of the last push of a repository."""
    if not services.settings.public_reads:
        raise Problem(404, "Not Found", "there are badges where reads are public alone (public_reads)")
    at = time.monotonic()
    known: tuple[float, str] | None = site.badges.get(name)
    if known is None or at - known[0] >= KEPT:
        known = (at, await _draw(services, name))
        site.badges.put(name, known, 2_000)
    return Response(known[1].encode(), 200, ELSEWHERE, "image/svg+xml")


async def _draw(services: Services, alias: str) -> str:
    async with services.database.reading() as session:
        page = await summarize_pushes(session, repository=alias, limit=1, tasks=MOST)
        push = next(iter(page.items), None)
        tasks = [] if push is None or push.graph is None else push.graph.tasks
        states = await task_states(session, [task.task_id for task in tasks if task.task_id is not None])
    state = state_of(push, states)
    left, right = (_CHARACTER * len(text) + 2 * _MARGIN for text in (alias, state.word))
    return render_text("badge.svg", alias=alias, state=state, colour=_COLOURS[state.tone], left=left, right=right)

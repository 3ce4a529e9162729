"""The list of dead letters, and the page of one."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.dead_letters import get_dead_letter, list_dead_letters
from service.api.deps import After, LetterNumber, Reader, Reading
from service.api.schemas.dead_letters import LetterKind
from service.web.pages import PageRoute, show

router = APIRouter(route_class=PageRoute)

MAX_PAYLOAD = 20_000
"""Characters of a payload that a page shows."""


@router.get("/dead-letters")
async def get_dead_letters_page(
    request: Request,
    session: Reading,
    caller: Reader,
    kind: Annotated[LetterKind | Literal[""], Query(description="of this kind alone")] = "",
    after: After = None,
) -> Response:
    """List dead letters, the newest first."""
    page = await list_dead_letters(session, caller, kind=kind or None, after=after)
    return show(request, "dead_letters.html", page=page, filters={"kind": kind}, kinds=list(LetterKind))


@router.get("/dead-letters/{letter_id}")
async def get_dead_letter_page(request: Request, letter_id: LetterNumber, session: Reading, caller: Reader) -> Response:
    """Show one dead letter, with the beginning of its payload."""
    letter = await get_dead_letter(letter_id, session, caller)
    payload = None if letter.payload is None else letter.payload[:MAX_PAYLOAD]
    return show(request, "dead_letter.html", letter=letter, payload=payload)

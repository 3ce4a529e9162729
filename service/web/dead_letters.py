"""The list of dead letters, and the page of one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service.api.dead_letters import drop_dead_letter, get_dead_letter, list_dead_letters, replay_dead_letter
from service.api.deps import After, LetterNumber, Reader, Reading, ServicesDep, Writer
from service.api.marks import Watched
from service.api.schemas.dead_letters import LetterKind
from service.auth import LOCAL, Caller
from service.errors import Problem
from service.services import Services
from service.settings import REPOSITORIES_WRITE
from service.web.pages import FormDep, PageRoute, Site, lacking_to_write, show, show_view
from service.web.pushes import LIST_AGAIN
from service.web.views import Shown, View, live

router = APIRouter(route_class=PageRoute)

MAX_PAYLOAD = 20_000
"""Characters of a payload that a page shows."""


@live
@dataclass(frozen=True)
class DeadLettersView(View):
    """A list of dead letters."""

    name = "dead-letters"
    template = "dead_letters.html"

    kind: LetterKind | None = None
    after: str | None = None
    may_choose: bool = False

    async def read(self, services: Services, site: Site) -> Shown:
        """Read one page of the list."""
        async with services.database.reading() as session:
            page = await list_dead_letters(session, LOCAL, kind=self.kind, after=self.after)
        values = {
            "page": page,
            "filters": {"kind": self.kind or ""},
            "kinds": list(LetterKind),
            "missing": lacking_to_write(self.may_choose),
        }
        watched = Watched(rows=frozenset(("letter", letter.id) for letter in page.items), newest=frozenset({"letter"}))
        return Shown(values, watched, LIST_AGAIN)


@router.get("/dead-letters")
async def get_dead_letters_page(
    request: Request,
    caller: Reader,
    kind: Annotated[LetterKind | Literal[""], Query(description="of this kind alone")] = "",
    after: After = None,
) -> Response:
    """List dead letters, the newest first."""
    return await show_view(request, DeadLettersView(kind or None, after, caller.has(REPOSITORIES_WRITE)))


@router.get("/dead-letters/{letter_id}")
async def get_dead_letter_page(request: Request, letter_id: LetterNumber, session: Reading, caller: Reader) -> Response:
    """Show one dead letter, with the beginning of its payload."""
    letter = await get_dead_letter(letter_id, session, caller)
    payload = None if letter.payload is None else letter.payload[:MAX_PAYLOAD]
    missing = lacking_to_write(caller.has(REPOSITORIES_WRITE))
    return show(request, "dead_letter.html", letter=letter, payload=payload, missing=missing)


@router.post("/dead-letters")
async def handle_dead_letters(request: Request, services: ServicesDep, caller: Writer, form: FormDep) -> Response:
    """Replay or drop the chosen dead letters, each by itself, and say what became of each."""
    do = form.get("do", "")
    chosen = [name.removeprefix("letter-") for name in form if name.startswith("letter-")]
    numbers = [int(text) for text in chosen if text.isascii() and text.isdigit() and len(text) <= 10]
    if do not in {"replay", "drop"} or not numbers:
        raise Problem(422, "Invalid request", "choose dead letters, and then whether to replay or to drop them")
    outcomes = [(number, await _handle(do, number, request, services, caller)) for number in numbers]
    return show(request, "dead_letters_done.html", do=do, outcomes=outcomes)


async def _handle(do: str, number: int, request: Request, services: Services, caller: Caller) -> str | None:
    """Replay or drop one; return why that cannot be."""
    try:
        if do == "replay":
            await replay_dead_letter(number, request, services, caller)
        else:
            async with services.database.writing() as session:
                await drop_dead_letter(number, caller, session)
    except Problem as refused:
        return refused.detail
    return None

"""Which repository a listener asks next."""

import asyncio
import time

from fastapi import APIRouter, Request
from pydantic import ValidationError

from events import LeasedRepository, LeaseRequest, Leases, PollResult
from service.api.deps import PartsDep
from service.api.openapi import Lease, signed
from service.api.route import SignedRoute
from service.api.signed import signed_json
from service.door import reason_of
from service.errors import Problem
from service.flow import poll
from service.parts import Parts

router = APIRouter(prefix="/polls", tags=["internal"], route_class=SignedRoute)

LOOK = 0.25
"""Seconds between two looks for a repository that became due, while a listener waits for one."""


@router.post("/lease", operation_id="leasePolls", openapi_extra=signed(Lease))
async def lease_polls(request: Request, parts: PartsDep) -> Leases:
    """Report how the last polls went, and lease the next due repositories; waits a little when nothing is due."""
    _, body = await signed_json(request, parts.settings)
    try:
        asked = LeaseRequest.model_validate(body)
    except ValidationError as error:
        raise Problem(422, "Invalid request", reason_of(error)) from None
    results, problems = [], []
    for result in asked.results:
        try:
            results.append(PollResult.model_validate(result))
        except ValidationError as error:
            problems.append(reason_of(error))
    end = time.monotonic() + asked.wait
    if asked.urls:
        async with parts.database.writing() as session:
            await poll.announced(session, asked.urls)
    pause = 0.0
    while True:
        leases, pause = await _lease(parts, results, asked.max, asked.urls, known_due=pause > 0)
        results = []
        left = end - time.monotonic()
        if leases or left <= 0 or not asked.max:
            return Leases(leases=leases, problems=problems)
        await asyncio.sleep(min(max(pause, LOOK), left))
        if await request.is_disconnected():  # a lease for a listener that has gone would keep others from it
            return Leases(leases=[], problems=problems)


async def _lease(
    parts: Parts, results: list[PollResult], limit: int, urls: list[str], *, known_due: bool
) -> tuple[list[LeasedRepository], float]:
    if not results and not known_due:
        async with parts.database.reading() as session:
            if not limit or not await poll.any_due(session, parts.settings.allowed_hosts):
                return [], 0
    async with parts.database.writing() as session:
        spent = await poll.report(session, parts.settings.poll, results)
        return await poll.lease(session, parts.settings.poll, parts.settings.allowed_hosts, limit, urls, spent)

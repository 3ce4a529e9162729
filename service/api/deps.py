"""Dependencies of endpoints, such as a session, the services and the caller."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from service import auth
from service.api.queue_look import QueueLooks
from service.services import Services
from service.settings import AUDIT_READ, RENDER, REPOSITORIES_WRITE, Settings
from service.store.database import Session

# all of them async: a plain function would be sent to a thread, for each request


async def get_services(request: Request) -> Services:
    """Return the services of this process."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_looks(request: Request) -> QueueLooks:
    """Return what the API of this process asked the queue lately."""
    looks: QueueLooks = request.app.state.looks
    return looks


LooksDep = Annotated[QueueLooks, Depends(get_looks)]


async def get_settings(services: ServicesDep) -> Settings:
    """Return the settings of this process."""
    return services.settings


SettingsDep = Annotated[Settings, Depends(get_settings)]


async def reading(services: ServicesDep) -> AsyncIterator[Session]:
    """Open a session for reads, until the answer is made."""
    async with services.database.reading() as session:
        yield session


async def writing(services: ServicesDep) -> AsyncIterator[Session]:
    """Open a session that commits before the answer goes out."""
    async with services.database.writing() as session:
        yield session


# scope="function": the commit comes before the answer goes out, so that a 2xx is never a promise that was not kept
Reading = Annotated[Session, Depends(reading, scope="function")]
Writing = Annotated[Session, Depends(writing, scope="function")]


async def get_caller(request: Request) -> auth.Caller:
    """Return the caller whom `route.Route` has authenticated."""
    caller: auth.Caller = request.state.caller
    return caller


CallerDep = Annotated[auth.Caller, Depends(get_caller)]


async def reader(caller: CallerDep, settings: SettingsDep) -> auth.Caller:
    """Return the caller. Raises a 403 if it may not read."""
    auth.may_read(settings, caller)
    return caller


Reader = Annotated[auth.Caller, Depends(reader)]


async def writer(caller: CallerDep, settings: SettingsDep) -> auth.Caller:
    """Return the caller. Raises a 403 if it may not change repositories."""
    auth.require(settings, caller, REPOSITORIES_WRITE)
    return caller


Writer = Annotated[auth.Caller, Depends(writer)]
"""Stands before the session in a signature: who may not write opens no transaction."""


async def may_render(caller: CallerDep, settings: SettingsDep) -> auth.Caller:
    """Return the caller. Raises a 403 if it may not have files rendered."""
    auth.require(settings, caller, RENDER)
    return caller


MayRender = Annotated[auth.Caller, Depends(may_render)]


async def auditor(caller: CallerDep, settings: SettingsDep) -> auth.Caller:
    """Return the caller. Raises a 403 if it may not read who changed what."""
    auth.require(settings, caller, AUDIT_READ)
    return caller


Auditor = Annotated[auth.Caller, Depends(auditor)]

RepositoryAlias = Annotated[str, Path(description="alias of a repository", examples=["mozilla-central"])]
PushNumber = Annotated[int, Path(description="id in the pushlog", examples=[43210])]
ActionNumber = Annotated[int, Path(description="id of an action", examples=[17])]
LetterNumber = Annotated[int, Path(description="id of a dead letter", examples=[3])]

Limit = Annotated[int, Query(ge=1, le=500, description="items on a page")]
After = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]

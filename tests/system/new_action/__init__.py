"""A service with one action more, `python -m tests.system.new_action serve`: what it takes to add one."""

import asyncio

from pydantic import BaseModel

from service.clock import now
from service.engine.leases import Lease
from service.flow.tasks.action_kinds import ActionKind, Plan, register
from service.flow.tasks.subject import PushSubject, Subject, fetch_subject, find_push
from service.services import Services
from service.store.models import Action, State


class Pause(BaseModel):
    seconds: float = 1


async def run(_services: Services, lease: Lease[Action]) -> None:
    if lease.item.planned_at is None:  # a holder of before may have been killed after this
        await lease.commit(planned_at=now())
        await asyncio.sleep(Pause(**lease.item.input).seconds)
    await lease.finish(State.DONE)


async def plan(services: Services, action: Action) -> Plan:
    subject: Subject | PushSubject
    if action.push_id is None:
        subject = await fetch_subject(services, action.project, action.task)
    else:
        subject = await find_push(services, action)
    return Plan(notes=[f"{subject.name} would be looked at for {Pause(**action.input).seconds} s"])


register(ActionKind("look", "Look at something for a while.", run, plan, Pause, subjects=frozenset({"task", "push"})))

"""The in-tree actions that a decision task offers in `public/actions.json`.

The file is fetched within limits, and read by a render child (`service.engine.render_actions`): here is only what the
child says of it. It is cached by decision task and run, because a run that has ended does not change its artifacts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.clients.taskcluster import Definition
from service.engine.render import Rendered, SpentError, TemplateError
from service.engine.render_actions import first_relevant
from service.errors import PermanentUpstreamError
from service.flow.actions.decision import Decision, decisions_of_push, decisions_of_task
from service.flow.tasks.subject import ActionFailedError, PushSubject, Subject
from service.services import Services

FILE = "public/actions.json"

MAX_FILE = 10 * 1024 * 1024
"""Bytes of the largest file that is read."""


@dataclass(frozen=True)
class Offer:
    """A decision task's file, and the actions in it: see `render_actions.list_actions`."""

    decision: Decision
    file: "File"

    @property
    def actions(self) -> list[dict[str, Any]]:
        """Return all actions in the file."""
        return self.file.actions


@dataclass(frozen=True)
class File:
    """What is kept of an `actions.json`."""

    document: bytes = field(repr=False)
    actions: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Offered:
    """The actions that are relevant for a task or a push, in order; `reason` says why there are none."""

    actions: list[dict[str, Any]] = field(default_factory=list)
    offer: Offer | None = None
    reason: str | None = None


async def offered_for_task(services: Services, subject: Subject, share: str) -> Offered:
    """Return the actions for a task. Raises ActionFailedError and Unavailable."""
    decisions = await decisions_of_task(services, subject)
    name = f"task {subject.status['taskId']} ({subject.name})"
    return await _offered(services, decisions, tags_of(subject.definition), name, share)


async def offered_for_push(services: Services, subject: PushSubject, share: str) -> Offered:
    """Return the actions for a push. Raises ActionFailedError and Unavailable."""
    return await _offered(services, await decisions_of_push(services, subject), None, subject.name, share)


def tags_of(definition: Definition) -> dict[str, str]:
    """Return the tags of a task."""
    tags = definition.get("tags")
    return {name: value for name, value in tags.items() if isinstance(value, str)} if isinstance(tags, dict) else {}


async def _offered(
    services: Services, decisions: Sequence[Decision], tags: Mapping[str, str] | None, name: str, share: str
) -> Offered:
    """Return the actions of the first of these decision tasks that has a file."""
    for decision in decisions:
        offer = await load_offer(services, decision, share)
        if offer is not None:
            return Offered(first_relevant(offer.actions, tags), offer)
    if not decisions:
        return Offered(reason=f"no decision task of {name} is known, or none has succeeded")
    tried = ", ".join(decision.task_id for decision in decisions[:3])
    return Offered(reason=f"the decision task of {name} ({tried}) has no {FILE}, or that has expired")


async def load_offer(services: Services, decision: Decision, share: str) -> Offer | None:
    """Return what a decision task offers, None if it has no file or that has expired.

    Raises ActionFailedError if the file cannot be used, and Unavailable.
    """
    if decision.run_id is None:
        return None
    key = decision.task_id, decision.run_id
    file: File | str | None = services.offers.get(key)
    if file is None:
        file, size = await _load(services, decision, decision.run_id, share)
        if file is not None and decision.ended:
            services.offers.put(key, file, size)
    if isinstance(file, str):
        raise ActionFailedError(file)
    return None if file is None else Offer(decision, file)


async def _load(services: Services, decision: Decision, run_id: int, share: str) -> tuple[File | str | None, int]:
    """Return the file, or why it cannot be used; and about how many bytes that takes."""
    place = f"{FILE} of the decision task {decision.task_id}"
    try:
        document = await services.artifacts.fetch(decision.task_id, run_id, FILE, MAX_FILE)
        if document is None:
            return None, 0
        listed = await services.renderer.actions(document, share)
        actions = _parse(listed) if listed.small else await services.compute(share, _parse, listed)
    except SpentError as error:
        raise ActionFailedError(f"{place} {error}") from None  # not kept: it may be better another time
    except TemplateError as error:
        reason = f"{place} {error}"
        return reason, len(reason) + 1_000
    except PermanentUpstreamError as refusal:
        if refusal.status == 413:
            return f"{place} cannot be used: {refusal}", 1_000
        raise ActionFailedError(f"{place} cannot be read ({refusal.status}): {refusal}") from None
    # a parsed value takes several times the memory of its text
    return File(document, actions), len(document) + 10 * len(listed.answer)


def _parse(listed: Rendered) -> list[dict[str, Any]]:
    (actions,) = listed.parse(lambda label: label).result
    return list(actions)

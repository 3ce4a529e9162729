"""Find what a text names: a revision, a task, a push, a user, a repository, or one of these in an address."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from sqlmodel import col, select

from service.api.tasks import get_task
from service.auth import LOCAL
from service.errors import Problem
from service.sanitize import escape_unstorable
from service.store.database import Session
from service.store.models import Action, Push, Repository

MIN_PREFIX = 8
"""Digits of a revision that are needed."""

MOST = 20
"""Pushes that are found of one revision."""

_REVISION = re.compile(rf"[0-9a-fA-F]{{{MIN_PREFIX},40}}")
_TASK = re.compile(r"[A-Za-z0-9_-]{22}")
_PUSH = re.compile(r"(\S+)/(\d{1,10})")


@dataclass(frozen=True)
class Match:
    """Something that a text names. `name` is the task's id, the user, or the alias of the repository."""

    kind: Literal["push", "task", "user", "requester", "repository"]
    name: str
    push_id: int | None = None
    generation: int | None = None
    detail: str = ""


@dataclass
class Wanted:
    """What a text can mean, before anything was looked up."""

    revision: str | None = None  # or the beginning of one
    task_id: str | None = None
    push: tuple[str, int] | None = None
    alias: str | None = None
    user: str | None = None
    url: str | None = None  # of a repository
    understood: list[str] = field(default_factory=list)  # in words


def understand(text: str) -> Wanted:
    """Return what a text can mean. A word can be several things."""
    text = escape_unstorable(text.strip())
    wanted = _of_address(text) if re.match(r"https?://", text) else _of_word(text)
    wanted.understood = [
        words
        for value, words in (
            (wanted.revision, f"a push whose tip begins with {wanted.revision}"),
            (wanted.task_id, f"the task {wanted.task_id}"),
            (wanted.push, f"push {wanted.push and wanted.push[1]} of {wanted.push and wanted.push[0]}"),
            (wanted.user, f"a user {wanted.user}"),
            (wanted.alias, f"a repository {wanted.alias}"),
            (wanted.url, f"the repository at {wanted.url}"),
        )
        if value is not None
    ]
    return wanted


def _of_word(text: str) -> Wanted:
    wanted = Wanted()
    if not text:
        return wanted
    if _REVISION.fullmatch(text):
        wanted.revision = text.lower()
    if _TASK.fullmatch(text):
        wanted.task_id = text
    if (push := _PUSH.fullmatch(text)) and int(push[2]) < 2**31:
        wanted.push = push[1], int(push[2])
    wanted.user = wanted.alias = text
    return wanted


def _of_address(text: str) -> Wanted:
    """Return what an address of Treeherder, Taskcluster, hgweb or our page names."""
    try:
        address = urlsplit(text)
        fragment = urlsplit(address.fragment)
        query = {name: escape_unstorable(value) for name, value in parse_qsl(address.query) + parse_qsl(fragment.query)}
    except ValueError:
        return Wanted()
    parts = [escape_unstorable(unquote(part)) for part in f"{address.path}/{fragment.path}".split("/") if part]
    wanted = Wanted(alias=query.get("repo"), user=query.get("author"))
    revision = (
        query.get("revision") or query.get("changeset") or _after(parts, ("rev", "file", "raw-file", "changeset"))
    )
    if revision and _REVISION.fullmatch(revision):
        wanted.revision = revision.lower()
    task = (
        query.get("selectedTaskRun") or query.get("taskId") or _after(parts, ("tasks", "task", "groups", "task-group"))
    )
    if task == "groups":
        task = _after(parts, ("groups",))
    if task and _TASK.fullmatch(task[:22]) and task[22:23] in {"", ".", "-"}:
        wanted.task_id = task[:22]
    if "pushes" in parts and (push := _PUSH.fullmatch("/".join(parts[parts.index("pushes") + 1 :][:2]))):
        wanted.push = push[1], int(push[2])
    of_hg = next((n for n, part in enumerate(parts) if part in _HG), None)
    if of_hg:
        wanted.url = f"{address.scheme}://{address.netloc}/{'/'.join(parts[:of_hg])}"
        if re.fullmatch(r"[0-9]{1,10}", number := query.get("endID", "")) and int(number) < 2**31:
            wanted.push = wanted.url, int(number)
    elif wanted == Wanted():
        wanted.url = text.rstrip("/")
    return wanted


_HG = {"rev", "file", "raw-file", "pushloghtml", "json-pushes", "shortlog", "log", "changeset", "graph"}


def _after(parts: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the part that follows the first of these names."""
    for number, part in enumerate(parts[:-1]):
        if part in names:
            return parts[number + 1]
    return None


async def search(session: Session, wanted: Wanted) -> list[Match]:
    """Return everything known that this can mean, the most exact first: at most `MOST` pushes, and one of each else."""
    if wanted.task_id is not None and (task := await _task(session, wanted.task_id)):
        return [task]
    matches = []
    if wanted.revision is not None:
        matches += await _pushes_at(session, wanted)
    if wanted.push is not None:
        matches += await _push(session, *wanted.push)
    if matches:
        return matches
    if wanted.user is not None:
        matches += await _person(session, wanted.user)
    if wanted.alias is not None or wanted.url is not None:
        is_it = Repository.alias == wanted.alias if wanted.url is None else Repository.url == wanted.url
        query = select(Repository.alias, Repository.url).where(is_it).limit(1)
        matches += [Match("repository", alias, detail=url) for alias, url in await session.exec(query)]
    return matches


async def _task(session: Session, task_id: str) -> Match | None:
    try:
        task = await get_task(task_id, session, LOCAL)
    except Problem:
        return None
    return Match("task", task.task_id, detail=task.name or "")


async def _pushes_at(session: Session, wanted: Wanted) -> list[Match]:
    revision = wanted.revision or ""
    query = (
        select(Repository.alias, Push.push_id, Push.generation, Push.revision)
        .join(Repository, col(Repository.id) == Push.repository_id)
        # g comes after all digits: a range, which an index has, unlike LIKE
        .where(col(Push.revision) >= revision, col(Push.revision) < f"{revision}g")
    )
    if wanted.alias not in {None, revision} and wanted.user is None:
        query = query.where(Repository.alias == wanted.alias)
    if wanted.url is not None:
        query = query.where(Repository.url == wanted.url)
    rows = (await session.exec(query.order_by(col(Push.revision), col(Push.id)).limit(MOST))).all()
    return [Match("push", alias, number, generation, tip or "") for alias, number, generation, tip in rows]


async def _push(session: Session, name: str, push_id: int) -> list[Match]:
    """Return the push of the newest generation, of a repository with this alias or URL."""
    query = (
        select(Repository.alias, Push.push_id, Push.generation, Push.revision)
        .join(Repository, col(Repository.id) == Push.repository_id)
        .where(Repository.url == name if "://" in name else Repository.alias == name, Push.push_id == push_id)
    )
    rows = sorted((await session.exec(query)).all(), key=lambda row: row[2], reverse=True)
    return [Match("push", alias, number, generation, tip or "") for alias, number, generation, tip in rows[:1]]


async def _person(session: Session, name: str) -> list[Match]:
    pushed = select(Push.id).where(Push.user == name).limit(1)
    asked = select(Action.id).where(Action.requester == name).limit(1)
    matches = []
    if (await session.exec(pushed)).first() is not None:
        matches.append(Match("user", name, detail="pushes"))
    if (await session.exec(asked)).first() is not None:
        matches.append(Match("requester", name, detail="actions"))
    return matches

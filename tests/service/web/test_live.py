"""Changes are told to whoever watches: read once for all, nothing without watchers, and no watcher without bounds."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from service.api import marks
from service.api.marks import Watched
from service.errors import Problem
from service.store.models import DeadLetter, PulseQueue, State
from service.web import live
from service.web.audit import AuditView
from service.web.dead_letters import DeadLettersView
from service.web.live import EventStream, Hub, Watcher
from service.web.pages import Site
from service.web.pushes import PushesView, PushView
from service.web.repositories import RepositoriesView
from service.web.views import View
from service.web.watch import PulseQueuesView, ReportsView, WaitingLaneView, WaitingView
from tests.service.api.test_reports import report
from tests.service.asgi import push_event
from tests.service.web.browser import Browser
from tests.service.web.support import XSS, is_escaped, statements

PUSH = PushView("mc", 101, None, 0, may_retry=False)


@pytest.fixture
async def watched(admin: Browser, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """Return a browser with a push, and a hub that polls only when it is told to."""
    monkeypatch.setattr(live, "EVERY", 3_600.0)
    await admin.api.add()
    await admin.api.push(push_event(101))
    return admin


def site_of(browser: Browser) -> Site:
    site: Site = browser.api.app.state.site
    return site


async def poll(hub: Hub) -> None:
    await hub._poll(asyncio.get_running_loop().time())


def data_of(event: bytes) -> Any:
    lines = dict(line.split(": ", 1) for line in event.decode().splitlines() if line)
    assert lines["event"] == "change"
    return json.loads(lines["data"])


async def test_what_changes_is_told_once_read_to_all_who_watch(watched: Browser) -> None:
    hub = site_of(watched).hub
    watchers = [await hub.enter(PUSH, "", str(number)) for number in range(20)]
    first = data_of(await watchers[0].next(1))
    assert set(first) >= {"steps", "counts", "picture"}
    digest = hub._pages[PUSH].digest
    for watcher in watchers[1:]:
        await watcher.next(1)
    await poll(hub)
    await watched.api.end_steps(State.FAILED, XSS)
    with statements(watched.api) as sent:
        await poll(hub)
    assert len([statement for statement in sent if statement.startswith("SELECT")]) < 20
    told = [data_of(await watcher.next(1)) for watcher in watchers]
    assert all(each == told[0] for each in told)
    assert set(told[0]["steps"]["items"]) == {"resultset tc-treeherder", "resultset tc-treeherder-stage", "graph"}
    assert is_escaped("".join(told[0]["failures"]["items"].values()))
    assert hub._pages[PUSH].digest != digest
    for watcher in watchers:
        hub.leave(PUSH, watcher)
    assert (hub.watchers, hub._pages) == (0, {})


async def test_a_poll_that_finds_no_change_reads_no_page(watched: Browser) -> None:
    hub = site_of(watched).hub
    await hub.enter(PUSH, "", "a")
    await poll(hub)
    await poll(hub)
    page = hub._pages[PUSH]
    page.again_at = None
    with statements(watched.api) as sent:
        await poll(hub)
    assert len([statement for statement in sent if statement.startswith("SELECT")]) <= 2


async def test_whoever_has_the_newest_page_is_told_nothing_before_a_change(watched: Browser) -> None:
    hub = site_of(watched).hub
    view = PushesView("mc")
    await hub.enter(view, "", "a")
    page = await watched.page("/pushes?repository=mc")
    digest = page.partition('data-digest="')[2].partition('"')[0]
    assert digest == hub._pages[view].digest
    watcher = await hub.enter(view, digest, "a")
    assert await watcher.next(0.01) == b": nothing\n\n"
    await watched.api.push(push_event(102))
    hub._pages[view].again_at = 0
    await poll(hub)
    change = data_of(await watcher.next(1))
    assert change["pushes"]["keys"] == ["mc/102/0", "mc/101/0"]
    assert list(change["pushes"]["items"]) == ["mc/102/0"]


LANE = "resultset tc-treeherder"


async def test_every_other_list_is_told_what_is_added_and_what_goes(watched: Browser) -> None:
    views: dict[View, str] = {
        DeadLettersView(): "letters",
        ReportsView(): "reports",
        RepositoriesView(): "repositories",
        AuditView(): "entries",
        PulseQueuesView(): "queues",
        WaitingView(): "lanes",
        WaitingLaneView("push_step", LANE): "pieces",
    }
    hub = site_of(watched).hub
    watchers = {view: await hub.enter(view, "", view.name) for view in views}
    for _ in range(len(views)):
        await poll(hub)
    keys = {view: data_of(await watchers[view].next(1))[name]["keys"] for view, name in views.items()}
    assert keys[WaitingLaneView("push_step", LANE)] == ["2"]
    async with watched.api.database.writing() as session:
        session.add(report(7, lane="other"))
        session.add(PulseQueue(name="queue/x", events="tasks"))
    await watched.api.add("other")
    await watched.api.end_steps(State.FAILED, "gave up", bury=True)
    for page in hub._pages.values():
        page.again_at = None  # marks alone tell
    for _ in range(len(views)):
        await poll(hub)
    for view, name in views.items():
        assert data_of(await watchers[view].next(1))[name]["keys"] != keys[view], view
    async with watched.api.database.writing() as session:
        await session.delete(await session.get_one(DeadLetter, 1))
    await watched.api.change_repository("other", poll_failures=3)
    for page in hub._pages.values():
        page.again_at = None
    for _ in range(len(views)):
        await poll(hub)
    assert "1" not in data_of(await watchers[DeadLettersView()].next(1))["letters"]["keys"]
    assert list(data_of(await watchers[RepositoriesView()].next(1))["repositories"]["items"]) == ["other"]


async def test_busy_pages_wait_for_their_turn(watched: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RENDERED_AT_ONCE", 2)
    hub = site_of(watched).hub
    views = [PushesView("mc", user=f"u{number}") for number in range(5)]
    for view in views:
        await hub.enter(view, "", "a")
        hub._pages[view].again_at = 0
    at = asyncio.get_running_loop().time()
    for left in (3, 1, 0):
        await hub._poll(at)
        assert sum((page.again_at or 0) <= at for page in hub._pages.values()) == left


async def test_each_address_has_its_turn(watched: Browser) -> None:
    hub = site_of(watched).hub
    hogged = [PushesView("mc", user=f"u{number}") for number in range(5)]
    for view in hogged:
        await hub.enter(view, "", "hog")
        hub._pages[view].again_at = 0.5
    for address in ("hog", "a"):
        await hub.enter(PUSH, "", address)
    await hub.enter(PushesView("mc"), "", "b")
    hub._pages[PUSH].again_at = hub._pages[PushesView("mc")].again_at = 1
    due = [view for view, _ in hub._due(2)]
    assert due == [hogged[0], PUSH, PushesView("mc"), *hogged[1:]]
    hub._pages[hogged[4]].changed_at = 1.5
    assert hub._due(2)[0][0] == hogged[4]


async def test_tasks_of_more_pages_than_are_looked_at_have_their_turn(
    watched: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MOST_TASKS", 4)
    hub = site_of(watched).hub
    views = [PushView("mc", 101, None, first, may_retry=False) for first in range(5)]
    for number, view in enumerate(views):
        await hub.enter(view, "", "a")
        hub._pages[view].watched = Watched(task_ids=frozenset({f"{number} a", f"{number} b"}))
    looked_at = [hub._watched() for _ in range(5)]
    assert all(len(each.task_ids) == 4 for each, _ in looked_at)
    turns = [
        [
            number
            for number, (_, with_tasks) in enumerate(sorted(pages, key=lambda it: min(it[0].watched.task_ids)))
            if with_tasks
        ]
        for _, pages in looked_at
    ]
    assert turns == [[0, 1], [2, 3], [0, 4], [1, 2], [3, 4]]


async def test_pages_with_changes_come_before_those_that_are_read_again_without(watched: Browser) -> None:
    hub = site_of(watched).hub
    await hub.enter(PUSH, "", "a")
    others = [PushesView("mc", user=f"u{number}") for number in range(5)]
    for view in others:
        await hub.enter(view, "", "a")
    for _ in range(5):
        await poll(hub)
    for view in others:
        hub._pages[view].again_at = 0
    await watched.api.end_steps(State.FAILED, "gave up")
    digest = hub._pages[PUSH].digest
    await poll(hub)
    assert hub._pages[PUSH].digest != digest


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30, -1])
async def test_a_page_of_a_number_that_no_row_has_is_unknown(watched: Browser, number: int) -> None:
    for view in (PushView("mc", number, None, 0, may_retry=False), PushView("mc", 101, number, 0, may_retry=False)):
        with pytest.raises(Problem) as unknown:
            await site_of(watched).hub.enter(view, "", "a")
        assert unknown.value.status == 404
    assert site_of(watched).hub.watchers == 0


async def test_there_are_bounds_of_all_and_of_each_address(watched: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_WATCHERS", 3)
    monkeypatch.setattr(live, "MOST_OF_ADDRESS", 2)
    hub = site_of(watched).hub
    for address in ("a", "a", "b"):
        await hub.enter(PUSH, "", address)
    for address in ("a", "c"):
        with pytest.raises(Problem) as refused:
            await hub.enter(PUSH, "", address)
        assert refused.value.status == 503
    assert hub.watchers == 3


async def test_what_cannot_be_read_leaves_no_watcher_behind(watched: Browser) -> None:
    hub = site_of(watched).hub
    with pytest.raises(Problem):
        await hub.enter(PushView("mc", 999, None, 0, may_retry=False), "", "a")
    assert (hub.watchers, hub._pages) == (0, {})


async def test_what_a_watcher_was_not_told_yet_is_merged() -> None:
    watcher = Watcher("a")
    watcher.tell({"rows": {"items": {"1": "a", "2": "b"}, "keys": ["1", "2"]}}, "x")
    watcher.tell({"rows": {"items": {"1": "c"}}, "other": {"items": {"1": "d"}}}, "y")
    event = await watcher.next(1)
    assert b"\nid: y\n" in event
    assert data_of(event) == {
        "rows": {"items": {"1": "c", "2": "b"}, "keys": ["1", "2"]},
        "other": {"items": {"1": "d"}},
    }


class Connection:
    """A browser's end of a stream; `read` is whether it takes what it is sent."""

    def __init__(self, *, reads: bool) -> None:
        self.reads, self.messages, self.aborted = reads, list[Message](), False
        self.closed = asyncio.Event()
        self.got = asyncio.Event()

    async def receive(self) -> Message:
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self.reads and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        self.messages.append(message)
        self.got.set()

    def abort(self) -> None:
        self.aborted = True


async def test_a_browser_that_goes_is_forgotten_at_once(watched: Browser) -> None:
    hub = site_of(watched).hub
    connection = Connection(reads=True)
    stream = EventStream(hub, PUSH, await hub.enter(PUSH, "", "a"))
    scope: dict[str, Any] = {"type": "http"}
    task = asyncio.create_task(stream(scope, connection.receive, connection.send))
    await connection.got.wait()
    connection.closed.set()
    await asyncio.wait_for(task, 5)
    assert (hub.watchers, scope["endless"]) == (0, True)
    head = dict(connection.messages[0]["headers"])
    assert head[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"frame-ancestors 'none'" in head[b"content-security-policy"]
    assert b"content-length" not in head


async def test_a_browser_that_does_not_read_is_dropped(watched: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALLED", 0.01)
    hub = site_of(watched).hub
    connection = Connection(reads=False)
    stream = EventStream(hub, PUSH, await hub.enter(PUSH, "", "a"))
    scope = {"type": "http", "abort": connection.abort}
    await asyncio.wait_for(stream(scope, connection.receive, connection.send), 5)
    assert connection.aborted
    assert hub.watchers == 0


async def test_a_stream_ends_some_day_so_that_whoever_may_not_look_any_more_does_not(
    watched: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LIFE", 0.0)
    connection = Connection(reads=True)
    hub = site_of(watched).hub
    await EventStream(hub, PUSH, await hub.enter(PUSH, "", "a"))({"type": "http"}, connection.receive, connection.send)
    assert connection.messages[-1] == {"type": "http.response.body", "body": b""}


async def test_nothing_is_polled_without_watchers(watched: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.001)
    hub = site_of(watched).hub
    watcher = await hub.enter(PUSH, "", "a")
    task = hub._task
    assert task is not None
    assert not task.done()
    hub.leave(PUSH, watcher)
    await asyncio.wait_for(task, 5)


async def test_a_database_that_goes_away_ends_no_watching(watched: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.001)
    hub = site_of(watched).hub
    polls = asyncio.Semaphore(0)

    async def fail(_: float) -> None:
        polls.release()
        raise ConnectionError("the database went away")

    monkeypatch.setattr(hub, "_poll", fail)
    await hub.enter(PUSH, "", "a")
    for _ in range(3):
        await asyncio.wait_for(polls.acquire(), 5)

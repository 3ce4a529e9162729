"""Tell browsers what changes on the pages that they show, by server-sent events.

All watchers of a page share its view, which is read and rendered once for all of them. Once a second, one poll of the
database looks for changes of whatever is watched; without watchers there is none. What is rendered at a time is
bounded, so many busy pages are told later, and cost no more.
"""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.marks import Marks, Watched, WatchedSum, read_marks
from service.errors import Problem, UpstreamError
from service.services import Services
from service.web.rendering import HEADERS
from service.web.views import Lists, View, differences

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two polls."""

MOST_WATCHERS, MOST_OF_ADDRESS = 1_000, 250
"""Pages that watch at a time, in this process, and of one address."""

RENDERED_AT_ONCE = 2
"""Pages that are read again after one poll: each takes some 25 ms, so this is what watching costs at most."""

STALLED = 10.0
"""Seconds within which a browser must read what it is sent."""

HEARTBEAT = 15.0
"""Seconds after which a browser that was told nothing is told so: proxies end connections that are quiet."""

LIFE = 600.0
"""Seconds after which a browser has to ask again, and show that it still may."""


class Watcher:
    """A browser that watches a page. What it was not told yet is merged, so it stays small."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.gone = False
        self._changes: dict[str, Any] = {}
        self._digest = ""
        self._something = asyncio.Event()

    def tell(self, changes: dict[str, Any], digest: str) -> None:
        """Note what has changed."""
        for name, change in changes.items():
            known = self._changes.setdefault(name, {})
            known["items"] = {**known.get("items", {}), **change.get("items", {})}
            if "keys" in change:
                known["keys"] = change["keys"]
        self._digest = digest
        self._something.set()

    def end(self) -> None:
        """Note that the browser has gone."""
        self.gone = True
        self._something.set()

    async def next(self, seconds: float) -> bytes:
        """Return the next event, after `seconds` one that says nothing."""
        try:
            async with asyncio.timeout(seconds):
                await self._something.wait()
        except TimeoutError:
            return b": nothing\n\n"
        self._something.clear()
        changes, self._changes = self._changes, {}
        if not changes:
            return b""
        return f"event: change\nid: {self._digest}\ndata: {json.dumps(changes)}\n\n".encode()


@dataclass
class _Page:
    """A view that is watched, and how it was rendered last."""

    watchers: set[Watcher] = field(default_factory=set)
    lists: Lists | None = None
    digest: str = ""
    watched: Watched = field(default_factory=Watched)
    keys: set[tuple[str, Any]] = field(default_factory=set)  # of the marks of what is watched
    marks: Marks = field(default_factory=dict)
    changed_at: float | None = None  # since then there is a change that it does not show
    again_at: float | None = None  # when it is read again without one
    ready: asyncio.Lock = field(default_factory=asyncio.Lock)

    def has_changed(self, marks: Marks, with_tasks: bool) -> bool:
        """Return True if a mark differs from when the page was rendered; of tasks only if they were looked at."""
        keys = self.keys if with_tasks else replace(self.watched, task_ids=frozenset()).keys
        return any(key in marks and marks[key] != self.marks.get(key) for key in keys)


class Hub:
    """The pages that are watched in this process."""

    def __init__(self, services: Services, site: Any) -> None:
        self._services, self._site = services, site
        self._pages: dict[View, _Page] = {}
        self._task: asyncio.Task[None] | None = None
        self._turn = 0

    @property
    def watchers(self) -> int:
        return sum(len(page.watchers) for page in self._pages.values())

    async def enter(self, view: View, digest: str, address: str) -> Watcher:
        """Add a watcher, who has the page of this digest. Raises Problem, a 503 if there are too many."""
        of_address = Counter(watcher.address for page in self._pages.values() for watcher in page.watchers)
        if of_address.total() >= MOST_WATCHERS or of_address[address] >= MOST_OF_ADDRESS:
            detail = (
                f"{of_address.total()} pages are watched, {of_address[address]} of them by {address}: reload by hand"
            )
            raise Problem(503, "Too many watchers", detail, {"Retry-After": "60"})
        watcher = Watcher(address)
        page = self._pages.setdefault(view, _Page())
        page.watchers.add(watcher)  # at once, so that the bound holds
        try:
            async with page.ready:
                if page.lists is None:
                    await self._render(view, page)
        except BaseException:
            self.leave(view, watcher)
            raise
        if digest != page.digest:
            watcher.tell(differences({}, page.lists or {}), page.digest)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return watcher

    def leave(self, view: View, watcher: Watcher) -> None:
        """Remove a watcher."""
        page = self._pages.get(view)
        if page is not None:
            page.watchers.discard(watcher)
            if not page.watchers:
                del self._pages[view]

    async def close(self) -> None:
        """End all watching."""
        for page in self._pages.values():
            for watcher in page.watchers:
                watcher.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pages:
            await asyncio.sleep(EVERY)
            try:
                await self._poll(loop.time())
            except Exception as error:  # noqa: BLE001 - whatever it is, the next poll tries again
                log.warning("live-poll-failed", why=type(error).__name__)

    async def _poll(self, at: float) -> None:
        """Look for changes, and render the pages that have some: those first that wait for it longest."""
        watched, pages = self._watched()
        marks: Marks = {}
        if watched != Watched():
            async with self._services.database.reading() as session:
                marks = await read_marks(session, watched)
        for page, with_tasks in pages:
            if page.changed_at is None and page.has_changed(marks, with_tasks):
                page.changed_at = at
        for view, page in self._due(at)[:RENDERED_AT_ONCE]:
            async with page.ready:
                await self._render_again(view, page, marks)

    def _watched(self) -> tuple[Watched, list[tuple[_Page, bool]]]:
        """Return what is looked at in this poll, and all pages, each with whether its tasks are looked at.

        The first page whose tasks are not begins the next poll. What all watch is put together in one set: to make one
        for each page took a second for 200 pages of 300 tasks.
        """
        pages = list(self._pages.values())
        begin = self._turn % max(1, len(pages))
        together, looked_at, turn = WatchedSum(), [], None
        for number in (*range(begin, len(pages)), *range(begin)):
            fits = together.add(pages[number].watched)
            looked_at.append((pages[number], fits))
            if not fits and turn is None:
                turn = number
        self._turn = turn or 0
        return together.watched, looked_at

    def _due(self, at: float) -> list[tuple[View, _Page]]:
        """Return the pages to read again: those with changes first, the one before that waits longest.

        Each address has its turn, so whoever watches hundreds of busy pages makes nobody else wait for them.
        """
        due = [
            (page.changed_at is None, page.changed_at or page.again_at or at, view, page)
            for view, page in self._pages.items()
            if page.changed_at is not None or (page.again_at is not None and page.again_at <= at)
        ]
        in_turns = []
        earlier: Counter[tuple[bool, str]] = Counter()  # pages of the same address
        for unchanged, _, view, page in sorted(due, key=lambda item: item[:2]):
            turns = {(unchanged, watcher.address): earlier[unchanged, watcher.address] for watcher in page.watchers}
            share = min(turns, key=turns.__getitem__, default=(unchanged, ""))
            in_turns.append(((unchanged, earlier[share]), view, page))
            earlier[share] += 1
        return [(view, page) for _, view, page in sorted(in_turns, key=lambda item: item[0])]

    async def _render_again(self, view: View, page: _Page, marks: Marks) -> None:
        before, page.changed_at = page.lists or {}, None
        try:
            await self._render(view, page)
        except Exception as error:  # noqa: BLE001 - such as a Problem of a repository that was deleted meanwhile
            tell = log.info if isinstance(error, Problem | UpstreamError) else log.exception
            tell("live-page-failed", page=view.name, why=str(error))
            page.again_at = asyncio.get_running_loop().time() + HEARTBEAT
        # they were read before the page was, so nothing that came in between is missed
        page.marks |= {key: mark for key, mark in marks.items() if key in page.keys}
        if changes := differences(before, page.lists or {}):
            for watcher in page.watchers:
                watcher.tell(changes, page.digest)

    async def _render(self, view: View, page: _Page) -> None:
        shown = await view.read(self._services, self._site)
        page.watched = shown.watched
        page.keys = shown.watched.keys
        page.marks = {key: mark for key, mark in page.marks.items() if key in page.keys}
        items = self._site.render_items(view, shown.values)
        page.lists, page.digest = items.lists, items.digest()
        page.again_at = None if shown.again is None else asyncio.get_running_loop().time() + shown.again


class EventStream(Response):
    """The answer to a browser that watches a page: events, until it goes or has been told for `LIFE` seconds."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, view: View, watcher: Watcher) -> None:
        super().__init__(None, 200, {**HEADERS, "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._view, self._watcher = hub, view, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events. A browser that does not read them within `STALLED` seconds is dropped."""
        scope["endless"] = True  # it does not keep the server from ending: see `service.server`
        listening = asyncio.create_task(self._wait_until_gone(receive))
        end = asyncio.get_running_loop().time() + LIFE
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            event = b"retry: 3000\n\n"
            while not self._watcher.gone and asyncio.get_running_loop().time() < end:
                if event:
                    async with asyncio.timeout(STALLED):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await self._watcher.next(HEARTBEAT)
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            log.info("watcher-dropped", address=self._watcher.address, why=f"it read nothing for {STALLED:g} s")
            if (abort := scope.get("abort")) is not None:
                abort()
        finally:
            self._hub.leave(self._view, self._watcher)
            listening.cancel()

    async def _wait_until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._watcher.end()

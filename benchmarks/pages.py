"""Measure what pages cost that people keep open: `bin/measure-pages`.

A commit is pushed every second, with a graph of tasks that run. In turns nobody watches, and so many browsers watch:
half of them lists, the other half pages of the newest pushes. What the service takes more of a core is the price.
"""

import asyncio
import html
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.figures import DatabaseUrl, cpu_seconds, database_name, prepare
from sandbox.credentials import LEVEL, TRUST_DOMAIN
from sandbox.demo import PATH, REPOSITORY, TASKCLUSTER_YML, USER
from sandbox.stack import Process, Stack

SETTINGS = {
    "TC_TREEHERDER_LOG_LEVEL": "WARNING",
    "TC_TREEHERDER_PUBLIC_READS": "true",
    "TC_TREEHERDER_POLL__INTERVAL": "1",  # or several pushes would come at a time
}

LISTS = ("/", "/pushes", "/actions")

PUSHES = 10
"""The newest pushes whose pages are open."""


class Browsers:
    """Browsers that keep pages open."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.events = 0
        self.bytes = 0

    @asynccontextmanager
    async def watching(self, paths: list[str]) -> AsyncIterator[None]:
        """Open these pages, and watch them meanwhile."""
        limits = httpx.Limits(max_connections=len(paths) + 1)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=self._url, timeout=60, limits=limits))
            pages = {path: (await client.get(path)).raise_for_status().text for path in set(paths)}
            tasks = []
            for path in paths:
                query = self._watch_query(pages[path])
                answer = await stack.enter_async_context(client.stream("GET", "/live", params=query))
                answer.raise_for_status()
                tasks.append(asyncio.create_task(self._count(answer)))
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _watch_query(page: str) -> dict[str, str]:
        """Return what the script of the page asks for."""
        return {
            name: html.unescape(re.findall(f'data-{name}="([^"]*)"', page)[-1]) for name in ("page", "args", "digest")
        }

    async def _count(self, answer: httpx.Response) -> None:
        async for piece in answer.aiter_bytes():
            self.events += piece.count(b"event: change")
            self.bytes += len(piece)


class Pusher:
    """Somebody who pushes commits to a repository, which is added for that."""

    def __init__(self, stack: Stack) -> None:
        self._hg = stack.control("hg")
        self._api = stack.api()
        self._number = 0
        url = stack.sandbox["repositories"][REPOSITORY]
        body = {"alias": REPOSITORY, "url": url, "level": LEVEL, "trust_domain": TRUST_DOMAIN}
        self._api.post("/repositories", json=body).raise_for_status()

    def push(self) -> None:
        """Push one commit."""
        self._number += 1
        changeset = {"message": f"Bug {self._number}", "files": {".taskcluster.yml": TASKCLUSTER_YML}}
        body = {"repository": PATH, "user": USER, "changesets": [changeset]}
        self._hg.post("/push", json=body).raise_for_status()

    def newest(self) -> list[str]:
        """Return the paths of the newest pushes' pages."""
        items = self._api.get("/pushes", params={"limit": PUSHES}).json()["items"]
        return [f"/pushes/{item['repository']}/{item['push_id']}" for item in items]


async def _seconds_of_cpu(service: Process, pusher: Pusher, seconds: int) -> float:
    """Push once a second for so long, and return the CPU of the service, a second."""
    before, began = cpu_seconds(service), time.monotonic()
    for number in range(1, seconds + 1):
        await asyncio.to_thread(pusher.push)
        await asyncio.sleep(max(0.0, began + number - time.monotonic()))
    return (cpu_seconds(service) - before) / (time.monotonic() - began)


async def _measure(stack: Stack, service: Process, pages: int, seconds: int, rounds: int) -> None:
    pusher = Pusher(stack)
    for _ in range(PUSHES):
        await asyncio.to_thread(pusher.push)
    while len(await asyncio.to_thread(pusher.newest)) < PUSHES:  # noqa: ASYNC110 - the service is another process
        await asyncio.sleep(0.2)
    for number in range(1, rounds + 1):
        alone = await _seconds_of_cpu(service, pusher, seconds)
        newest = await asyncio.to_thread(pusher.newest)
        paths = [LISTS[each % len(LISTS)] for each in range(pages // 2)]
        paths += [newest[each % len(newest)] for each in range(pages - pages // 2)]
        browsers = Browsers(stack.service_url)
        async with browsers.watching(paths):
            events, size = browsers.events, browsers.bytes
            watched = await _seconds_of_cpu(service, pusher, seconds)
            events, size = browsers.events - events, browsers.bytes - size
        typer.echo(
            f"round {number}: {100 * alone:.1f} % of a core with nobody, {100 * watched:.1f} % with {pages} open pages "
            f"({100 * (watched - alone):+.1f}); {events} events, {size / seconds / 1e3:.0f} kB a second"
        )


def main(
    pages: Annotated[int, typer.Option(help="pages that are open")] = 200,
    seconds: Annotated[int, typer.Option(help="for each half of a round")] = 30,
    rounds: Annotated[int, typer.Option(help="how often")] = 3,
    database_url: DatabaseUrl = None,
) -> None:
    """Measure what open pages cost the service while a commit is pushed every second."""
    typer.echo(f"{database_name(database_url)}, {json.dumps({'pages': pages, 'seconds': seconds})}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), database_url=database_url, settings=SETTINGS) as stack,
    ):
        prepare(stack, database_url)
        service = stack.service()
        stack.listener()
        asyncio.run(_measure(stack, service, pages, seconds, rounds))


if __name__ == "__main__":
    typer.run(main)

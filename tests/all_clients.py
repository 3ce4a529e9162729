"""Ask something with each client that the project has, and print as JSON what came of it, and what was counted.

    python -m tests.all_clients SERVICE_URL

Apart from the service, each is asked at a name that no resolver knows.
"""

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from listeners.forward import Forwarder, encode_json
from listeners.listing import PushlogClient
from service import metrics
from service.clients.auth import SignedRequest, TaskclusterLogins
from service.clients.hg import HttpHg
from service.clients.http import Http
from service.clients.taskcluster import TaskclusterQueue
from service.clients.treeherder import RestTreeherder
from service.commands.client import Service
from service.commands.sources import from_treeherder
from service.contract.events import AnnouncedLeases
from service.settings import Environment, TaskclusterSettings, load
from tests.listeners.fakes import quick_settings

HG, TASKCLUSTER, TREEHERDER = (f"{name}.egress.test" for name in ("hg", "tc", "th"))


async def main(service_url: str) -> None:
    settings = TaskclusterSettings.model_validate({"root_url": f"https://{TASKCLUSTER}", "timeout": 10})
    environment = Environment.model_validate({"url": f"https://{TREEHERDER}", "client_id": "c", "secret": "s" * 30})
    hg, queue, logins = HttpHg(load()), TaskclusterQueue(settings), TaskclusterLogins(settings)
    listener = quick_settings(service_url)
    forwarder = Forwarder(listener, threading.Event(), connections=1)
    pushlogs = PushlogClient(10, 1000, 1)

    def in_thread(call: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
        return lambda: asyncio.to_thread(call)

    async with Http("treeherder") as http:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "hg": lambda: hg.last_push_id(f"https://{HG}/r"),
            "queue": lambda: queue.status("Q47ciBXISJ-kc4l49EAI-A"),
            "auth": lambda: logins.check(SignedRequest("GET", "/", "here.test", 443, "Hawk x")),
            "treeherder": lambda: RestTreeherder(environment, http).post_resultset("try", {}),
            "listing": in_thread(lambda: pushlogs.list_pushes(f"https://{HG}/r", 0, 1).lastpushid),
            "forward": in_thread(
                lambda: forwarder.post("/api/v1/polls/announced", encode_json({}), AnnouncedLeases, until=0).leases
            ),
            "command": in_thread(lambda: list(Service(service_url).pages("repositories"))),
            "import": in_thread(lambda: from_treeherder(f"https://{TREEHERDER}").wanted),
        }
        outcomes: dict[str, str] = {}
        for name, call in calls.items():
            try:
                outcomes[name] = repr(await call())
            except Exception as error:  # noqa: BLE001 - printed, and judged by the test
                outcomes[name] = f"{type(error).__name__}: {error}"
    for client in (hg, queue, logins):
        await client.close()
    counted: Counter[str] = Counter()
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            if sample.name == "tc_treeherder_upstream_seconds_count":
                counted[f"{sample.labels['system']} {sample.labels['status']}"] += int(sample.value)
    print(json.dumps({"outcomes": outcomes, "counted": counted}))  # noqa: T201 - what it is for


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

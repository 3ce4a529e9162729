"""Listeners that are killed, stopped and started at random: the budget of a host is kept, and every repository polled.

BUDGET_SECONDS says for how long; `bin/soak` does it for minutes.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from sandbox.stack import Process
from tests.system.conftest import System, mostly_postgresql

Systems = Callable[..., System]

SECONDS = float(os.environ.get("BUDGET_SECONDS", "7"))
RATE = 40
REPOSITORIES = 30
THREADS = 3
SHIFT = 1.5
SETTINGS = {
    "TC_TREEHERDER_POLL__MAX_REQUESTS_PER_HOST": str(RATE),
    "TC_TREEHERDER_POLL__INTERVAL": "0.1",
    "TC_TREEHERDER_POLL__SHIFT": str(SHIFT),
    "TC_TREEHERDER_POLL__RENEW": "0.3",
    "TC_TREEHERDER_POLL__AT_A_TIME": "12",
    "TC_TREEHERDER_POLL_WORKERS": str(THREADS),
    "TC_TREEHERDER_LOG_LEVEL": "WARNING",
}


def monitor(system: System, repositories: int = REPOSITORIES) -> None:
    for number in range(repositories):
        name = f"r{number}"
        system.hg.post("/repositories", json={"repository": name}).raise_for_status()
        body = {"alias": name, "url": f"{system.stack.sandbox['hg']}/{name}", "level": "3", "last_push_id": 0}
        system.api.post("/repositories", json=body).raise_for_status()


def all_polled_since(system: System, since: float) -> bool:
    repositories = system.api.get("/repositories", params={"limit": 500}).json()["items"]
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return all((repository["last_good_poll_at"] or "") >= at for repository in repositories)


def over_budget(arrivals: list[float], began: float, stops: list[float]) -> list[str]:
    """Return where more requests came than the budget allows: from the beginning, and in each five seconds.

    The only ones beyond it may come from a process that was stopped: each of its threads may have been about to send
    one. The buckets start empty, so nothing is saved up before the beginning; later a second's worth may be.
    """
    wrong, first = [], 0
    for number, at in enumerate(arrivals):
        while arrivals[first] < at - 5:
            first += 1
        late = THREADS * sum(stop <= at for stop in stops)
        if number + 1 > RATE * (at - began) + late:
            wrong.append(f"{number + 1} requests in the first {at - began:.2f} s, {late} of which may be late")
        late = THREADS * sum(at - 5 - 2 * SHIFT <= stop <= at for stop in stops)
        if number - first + 1 > RATE * (at - arrivals[first] + 1) + late:
            wrong.append(f"{number - first + 1} requests within {at - arrivals[first]:.2f} s")
    return wrong


@pytest.mark.timeout(120 + 2 * SECONDS)
@mostly_postgresql
def test_the_budget_is_kept_by_four_listeners_that_are_killed_and_stopped(systems: Systems, database_url: str) -> None:
    chance = random.Random(SECONDS)
    system = systems(database_url, settings=SETTINGS)
    system.stack.service()
    monitor(system)
    system.hg.delete("/requests")
    began = time.time()
    listeners: dict[str, Process] = {f"listener {n}": system.stack.listener(f"listener {n}") for n in range(4)}
    stopped: dict[str, float] = {}  # until when
    stops: list[float] = []
    while time.time() - began < SECONDS:
        time.sleep(chance.uniform(0.1, 0.6))
        for name in [name for name, until in stopped.items() if until < time.time()]:
            os.kill(listeners[name].pid, signal.SIGCONT)
            del stopped[name]
        name = chance.choice(list(listeners))
        match chance.choice(["kill", "stop", "stop", "end", "nothing"]):
            case "kill":
                listeners[name].kill()
                stopped.pop(name, None)
                listeners[name] = system.stack.listener(name)
            case "stop" if name not in stopped:
                stops.append(time.time())
                os.kill(listeners[name].pid, signal.SIGSTOP)
                stopped[name] = time.time() + chance.uniform(0.1, 2 * SHIFT)
            case "end" if name not in stopped:
                listeners[name].stop()
                listeners[name] = system.stack.listener(name)
    for name in stopped:
        os.kill(listeners[name].pid, signal.SIGCONT)
    calm = time.time()
    system.wait(lambda: all_polled_since(system, calm + 1))
    arrivals = system.hg.get("/arrivals").json()
    assert stops
    assert over_budget(arrivals, began, stops) == []
    assert len(arrivals) > RATE * SECONDS / 8, "they were hardly asked"


def test_what_a_killed_listener_had_goes_to_another_within_a_shift(systems: Systems, sqlite_url: str) -> None:
    """While both run, each has its half."""
    system = systems(sqlite_url, settings=SETTINGS)
    system.stack.service()
    monitor(system, 10)
    first = system.stack.listener("first")
    second = system.stack.listener("second")
    system.wait(lambda: all_polled_since(system, 0))
    first.kill()
    killed_at = time.time()
    system.wait(lambda: all_polled_since(system, killed_at + SHIFT), 10 * SHIFT)
    second.stop()


def test_a_listener_without_a_service_stops_polling(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url, settings=SETTINGS)
    service = system.stack.service()
    monitor(system, 5)
    system.stack.listener()
    system.wait(lambda: all_polled_since(system, 0))
    service.kill()
    time.sleep(SHIFT + 0.5)
    requests = system.polls("requests")
    time.sleep(1)
    assert system.polls("requests") == requests
    system.stack.service()
    system.wait(lambda: system.polls("requests") > requests)

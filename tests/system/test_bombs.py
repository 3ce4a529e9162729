"""Templates that explode, pushed like any other: each ends in an error task, and the service answers meanwhile."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psutil

from tests.service.engine.rendering import NESTED
from tests.service.engine.test_render import BOMBS
from tests.system.conftest import PATH, REPOSITORY, System, graph_of

Systems = Callable[..., System]

LIMITS = {
    "TC_TREEHERDER_RENDER__SECONDS": "1",
    "TC_TREEHERDER_RENDER__MEMORY_MIB": "128",
    "TC_TREEHERDER_RENDER__OUTPUT_MIB": "1",
}


@contextmanager
def answering(url: str, most: float) -> Iterator[list[float]]:
    """Ask again and again; fail if any answer took longer than so many seconds."""
    durations: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=10) as client:
            while not stop.is_set():
                began = time.monotonic()
                answer = client.get(url)
                durations.append(time.monotonic() - began if answer.status_code == 200 else float("inf"))
                stop.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield durations
    finally:
        stop.set()
        asking.join()
    assert len(durations) > 20
    assert max(durations) < most


def push(system: System, message: str, text: str) -> int:
    changeset = {"message": message, "files": {".taskcluster.yml": text}}
    answer = system.hg.post("/push", json={"repository": PATH, "user": "mallory", "changesets": [changeset]})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def test_bombs_end_in_error_tasks_and_the_service_answers(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url, settings=LIMITS)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    push(system, "first", graph_of(1))
    system.wait(lambda: system.settled(1))
    before = psutil.Process(service.pid).memory_info().rss
    with answering(f"{system.stack.service_url}/__lbheartbeat__", 0.5):
        bombs = {push(system, name, text): name for name, text in BOMBS.items()}
        good = push(system, "good", graph_of(2))
        system.wait(lambda: system.settled(len(bombs) + 2), 60)
    after = psutil.Process(service.pid).memory_info().rss
    assert after - before < 100 * 1024 * 1024, "what explodes does so elsewhere"

    pushes = {push["push_id"]: push for push in system.pushes()}
    assert pushes[good]["graph"]["state"] == "done"
    assert len(pushes[good]["graph"]["tasks"]) == 2
    tasks = {task["status"]["taskId"]: task for task in system.taskcluster.get("/tasks").json()["tasks"]}
    for push_id, name in bombs.items():
        graph = pushes[push_id]["graph"]
        assert graph["state"] == "failed", name
        assert graph["reason"], name
        assert len(graph["reason"]) < 11_000, name
        error = json.dumps(tasks[graph["error_task"]])
        assert f"tc-treeherder.v2.{REPOSITORY}.{pushes[push_id]['revision']}" in error, name
        (resultset,) = pushes[push_id]["resultsets"]
        assert resultset["state"] == "done", "the push itself is shown"
    assert len(tasks) == 1 + 2 + len(bombs)


@contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """Yield a list that has the highest resident set size of the process, in bytes, once the block has ended."""
    peak = [0]
    stop = threading.Event()

    def sample() -> None:
        process = psutil.Process(pid)
        while not stop.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield peak
    finally:
        stop.set()
        sampling.join()


FULL = (
    "version: 1\ntasks:\n  - taskId: {$eval: ownTaskId}\n    extra:\n      $let: {a: "
    + json.dumps([{}] * 1_000)
    + "}\n      in: {$map: {$eval: 'range(0, 950)'}, each(n): {$eval: a}}\n"
)
"""Renders to one task of 951,000 values, which is within the limits; it is no task definition."""


def test_small_templates_with_huge_plans_take_neither_memory_nor_the_loop(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url)
    service = system.stack.service()
    system.stack.listener()
    system.add_repository()
    push(system, "first", graph_of(1))
    system.wait(lambda: system.settled(1))
    wide = "version: 1\ntasks: {$map: {$eval: 'range(0, 40000)'}, each(x): {}}"
    texts = {"nested": NESTED, "full": FULL, "wide": wide}
    with answering(f"{system.stack.service_url}/__lbheartbeat__", 1.5), peak_memory(service.pid) as peak:
        names = {push(system, f"{name} {n}", text): name for n in range(4) for name, text in texts.items()}
        system.wait(lambda: system.settled(len(names) + 1), 90)
    assert peak[0] < 400 * 1024 * 1024
    reasons = {"nested": "more than 1,000,000 values", "full": "no task definition", "wide": "40,000 tasks: at most"}
    for push_id, stored in {stored["push_id"]: stored for stored in system.pushes()}.items():
        if push_id in names:
            assert reasons[names[push_id]] in stored["graph"]["reason"]


def test_a_file_that_is_too_large_or_no_text_is_an_error_too(systems: Systems, sqlite_url: str) -> None:
    system = systems(sqlite_url, settings=LIMITS)
    system.stack.service()
    system.stack.listener()
    system.add_repository()
    large = push(system, "large", "version: 1\ntasks: []\n#" + "x" * (2 * 1024 * 1024))
    odd = push(system, "odd", "version: 1\ntasks: ['\u0085\u2028\ufeff\x07']")
    system.wait(lambda: system.settled(2))
    pushes = {push["push_id"]: push for push in system.pushes()}
    assert "2,097,152" in pushes[large]["graph"]["reason"]
    for push_id in (large, odd):
        assert pushes[push_id]["graph"]["state"] == "failed"
        assert pushes[push_id]["graph"]["error_task"]

"""Ask the queue for the tasks of a push: once for all who look, within bounds, and without waiting for it too long."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from sandbox import taskcluster
from service.api import queue_look
from service.api.queue_look import QueueLooks, state_of_status
from service.errors import Unavailable
from tests.service.flow.graph_factory import Direct, build, end, slug


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue() -> Direct:
    return Direct(taskcluster.Taskcluster([], claim_wait=0).queue)


@pytest.fixture
async def looks(queue: Direct, clock: Clock) -> AsyncIterator[QueueLooks]:
    looks = QueueLooks(lambda: queue, clock)  # type: ignore[arg-type, return-value]  # it has the calls that are made
    yield looks
    await looks.close()


def decide(queue: Direct, created: Sequence[str] = ("build", "test")) -> str:
    """Create a decision task, with the tasks that it created; return its id."""
    decision = slug("decision")
    build(queue._queue, {"decision": ()}, taskGroupId=decision)
    tags = {"kind": "build"}
    build(queue._queue, {name: ["decision"] for name in created}, taskGroupId=decision, tags=tags)
    return decision


async def test_tasks_that_a_decision_task_created_are_told_with_states_and_dependencies(
    queue: Direct, looks: QueueLooks
) -> None:
    decision = decide(queue)
    end(queue._queue, "decision", "completed")
    end(queue._queue, "build", "failed")
    look = await looks.look("push", [decision])
    assert (look.problem, look.more) == (None, False)
    states = {task.name: task.state.state for task in look.tasks.values()}
    assert states == {"decision": "completed", "build": "failed", "test": "pending"}
    built = look.tasks[slug("build")]
    assert (built.kind, built.dependencies) == ("build", (decision,))
    (run,) = built.state.runs
    assert run.scheduled is not None
    assert run.started is not None
    assert run.ended is not None
    assert run.scheduled <= run.started <= run.ended


async def test_all_who_look_within_seconds_ask_once(queue: Direct, looks: QueueLooks, clock: Clock) -> None:
    decision = decide(queue)
    await asyncio.gather(*(looks.look("push", [decision]) for _ in range(50)))
    assert dict(queue.calls) == {"statuses": 1, "group": 1}
    end(queue._queue, "decision", "completed")
    assert (await looks.look("push", [decision])).tasks[decision].state.state == "pending"
    clock.at += queue_look.FRESH
    assert (await looks.look("push", [decision])).tasks[decision].state.state == "completed"


async def test_a_large_group_is_listed_rarely_and_its_states_are_asked_for(
    queue: Direct, looks: QueueLooks, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_look, "DEFINITIONS_PER_SECOND", 0.1)
    decision = decide(queue)
    await looks.look("push", [decision])
    end(queue._queue, "decision", "completed")
    end(queue._queue, "build", "failed")
    clock.at += queue_look.FRESH
    look = await looks.look("push", [decision])
    assert look.tasks[slug("build")].state.state == "failed"
    assert dict(queue.calls) == {"statuses": 2, "group": 1}
    clock.at += 30
    await looks.look("push", [decision])
    assert queue.calls["group"] == 2


async def test_no_more_than_the_bound_is_kept(
    queue: Direct, looks: QueueLooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_look, "MOST", 5)
    monkeypatch.setattr(queue_look, "PAGE", 2)
    decision = decide(queue, [f"t{number}" for number in range(20)])
    look = await looks.look("push", [decision])
    assert look.more
    assert len(look.tasks) == 5
    assert queue.calls["group"] == 3


async def test_tasks_without_a_group_of_their_own_are_asked_for_in_pieces(
    queue: Direct, looks: QueueLooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_look, "PAGE", 2)
    ids = build(queue._queue, {f"t{number}": () for number in range(5)})
    missing = slug("gone")
    look = await looks.look("push", [*ids.values(), missing])
    assert set(look.tasks) == set(ids.values())
    assert dict(queue.calls) == {"statuses": 1, "tasks": 3}


async def test_a_task_that_the_queue_does_not_know_is_asked_for_no_more_often_than_others(
    queue: Direct, looks: QueueLooks, clock: Clock
) -> None:
    ids = build(queue._queue, {"old": ()})
    missing = slug("expired")
    for _ in range(3):
        await looks.look("push", [*ids.values(), missing])
    assert queue.calls["statuses"] == 1
    await looks.look("push", [*ids.values(), missing, slug("new")])
    assert queue.calls["statuses"] == 2
    clock.at += queue_look.FRESH
    await looks.look("push", [*ids.values(), missing, slug("new")])
    assert queue.calls["statuses"] == 3


async def test_other_groups_than_those_of_the_push_are_not_listed(queue: Direct, looks: QueueLooks) -> None:
    build(queue._queue, {"mine": (), "of another push": ()})
    look = await looks.look("push", [slug("mine")])
    assert list(look.tasks) == [slug("mine")]
    assert queue.calls["group"] == 0


async def test_a_queue_that_does_not_answer_keeps_nobody_waiting(clock: Clock) -> None:
    answering = asyncio.Event()

    class Slow:
        async def statuses(self, _: Any) -> Any:
            await answering.wait()
            return {}

    slow: Any = Slow()
    looks = QueueLooks(lambda: slow, clock)
    look = await looks.look("push", [slug("a")], wait=0.01)
    assert look.problem == "Taskcluster has not answered yet: look again in a moment"
    answering.set()
    assert (await looks.look("push", [slug("a")])).problem is None
    await looks.close()


async def test_what_was_told_before_stays_when_the_queue_fails(queue: Direct, clock: Clock) -> None:
    decision = decide(queue)
    asked: list[str] = []

    class Failing:
        async def statuses(self, _: Any) -> Any:
            asked.append("statuses")
            raise Unavailable("taskcluster", "Taskcluster answers 500")

    failing: Any = Failing()
    current: list[Any] = [queue]
    looks = QueueLooks(lambda: current[0], clock)
    await looks.look("push", [decision])
    current[0] = failing
    clock.at += queue_look.FRESH
    for _ in range(3):
        look = await looks.look("push", [decision])
        assert (look.problem, len(look.tasks)) == ("Taskcluster answers 500", 3)
    assert asked == ["statuses"]
    await looks.close()


async def test_an_answer_that_is_none_is_told(clock: Clock) -> None:
    class Strange:
        async def statuses(self, _: Any) -> Any:
            return {slug("a"): {"state": 7}}

    strange: Any = Strange()
    looks = QueueLooks(lambda: strange, clock)
    assert (await looks.look("push", [slug("a")])).problem is not None
    await looks.close()


async def test_only_some_pushes_are_asked_for_at_a_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_look, "MOST_RUNNING", 2)

    class Hanging:
        async def statuses(self, _: Any) -> Any:
            await asyncio.Event().wait()

    hanging: Any = Hanging()
    looks = QueueLooks(lambda: hanging, clock)
    for number in range(2):
        await looks.look(number, [slug("a")], wait=0)
    assert "too many pushes at once" in str((await looks.look("third", [slug("a")], wait=0)).problem)
    await looks.close()


@pytest.mark.parametrize(
    ("runs", "state", "told"),
    [
        ([], "unscheduled", "unscheduled"),
        ([], "exception", "exception"),
        ([{"runId": 0, "state": "exception", "reasonResolved": "canceled"}], "exception", "canceled"),
        (
            [{"runId": 1, "state": "running", "started": "no date"}, {"runId": 0, "state": "failed"}],
            "running",
            "running",
        ),
    ],
)
def test_a_status_tells_the_state_of_the_newest_run(runs: list[dict[str, Any]], state: str, told: str) -> None:
    assert state_of_status({"state": state, "runs": runs, "taskGroupId": "g"}).state == told


async def test_an_old_answer_that_stands_for_a_newer_one_is_told_to_be_old(queue: Direct, clock: Clock) -> None:
    decision, answers = decide(queue), asyncio.Event()
    answers.set()

    class Slow(Direct):
        async def statuses(self, task_ids: Sequence[str]) -> Any:
            await answers.wait()
            return await super().statuses(task_ids)

    looks = QueueLooks(lambda: Slow(queue._queue), clock)  # type: ignore[arg-type, return-value]  # as above
    assert (await looks.look("push", [decision])).problem is None
    answers.clear()
    clock.at += queue_look.FRESH + 1
    assert (await looks.look("push", [decision], wait=0.01)).problem is None, "it is hardly older than any other"
    clock.at += queue_look.STALE
    look = await looks.look("push", [decision], wait=0.01)
    assert look.problem == "it was asked 36 s ago, and has not answered again: look again in a moment"
    assert look.tasks
    answers.set()
    assert (await looks.look("push", [decision])).problem is None
    await looks.close()


async def test_groups_that_are_not_listed_are_told_of(queue: Direct, looks: QueueLooks) -> None:
    groups = [f"group{number}" for number in range(queue_look.MOST_GROUPS + 1)]
    for name in groups:
        build(queue._queue, {name: ()}, taskGroupId=slug(name))
    look = await looks.look("push", [slug(name) for name in groups])
    assert look.more
    assert len(look.tasks) == len(groups)

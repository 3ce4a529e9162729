"""Pushes and their steps, over the API."""

import hashlib
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from service.api.pushes import TASKS_IN_A_LIST
from service.clock import now
from service.flow.tasks.ids import slugid
from service.store.models import Action, PlannedTask, PushStep, State, StepKind
from tests.service.asgi import (
    READER,
    RETRIER,
    WRITER,
    Api,
    changeset,
    is_problem,
    node,
    push_event,
    running,
    settings_for,
)


async def plan(api: Api, *names: str, attempt: int = 0, label: str = "task", created: bool = True) -> None:
    """Give the first graph step a plan, as the worker stores it."""
    async with api.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).first()
        assert step is not None
        step.plan_attempt = attempt
        for position, name in enumerate(names):
            task_id = f"{name}-{attempt}"
            values: dict[str, Any] = {
                "position": position,
                "label": label,
                "name": name,
                "definition": {"x": 1},
                "created": created,
            }
            session.add(PlannedTask(task_id=task_id, step_id=step.id or 0, plan_attempt=attempt, **values))


async def test_a_push_is_shown_with_each_step(api: Api) -> None:
    await api.add()
    await api.push(push_event(101, date=1_700_000_000, changesets=[changeset("a"), changeset("b", files_count=5_000)]))
    shown = (await api.get("/pushes/mc/101")).json()
    assert shown.pop("noticed_at").endswith("Z")
    due = shown["graph"].pop("next_attempt_at")
    assert due is not None
    for resultset in shown["resultsets"]:
        assert resultset.pop("next_attempt_at") is not None
    expected_hash = "".join(node(name) + "default" for name in ("a", "b"))
    assert shown == {
        "repository": "mc",
        "push_id": 101,
        "generation": 0,
        "user": "pusher@example.com",
        "date": "2023-11-14T22:13:20Z",
        "revision": node("b"),
        "revision_hash": hashlib.sha1(expected_hash.encode()).hexdigest(),
        "changesets_count": 2,
        "changesets": [changeset("a"), changeset("b", files_count=5_000)],
        "resultsets": [
            {"environment": prefix, "state": "pending", "working": False, "attempts": 0, "error": None, "at": None}
            for prefix in ("tc-treeherder", "tc-treeherder-stage")
        ],
        "graph": {
            "state": "pending",
            "working": False,
            "reason": None,
            "attempts": 0,
            "at": None,
            "error_task": None,
            "error_task_refused": None,
            "superseded_by": None,
            "supersedes": [],
            "tasks_planned": 0,
            "tasks_created": 0,
            "tasks": [],
        },
    }


async def test_a_list_shows_the_first_tasks_of_a_graph_and_counts_all(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    names = [f"t{number}" for number in range(TASKS_IN_A_LIST + 5)]
    await plan(api, *names)
    await plan(api, "old", attempt=1)
    await plan(api, attempt=0)  # the present one
    await plan(api, "error", label="error", created=False)
    async with api.database.writing() as session:
        created = update(PlannedTask).where(col(PlannedTask.position) >= 3).values(created=False)
        await session.exec(created)
    (listed,) = (await api.get("/pushes")).json()["items"]
    one = (await api.get("/pushes/mc/101")).json()
    counts = (len(names), 3)
    assert (listed["graph"]["tasks_planned"], listed["graph"]["tasks_created"]) == counts
    assert (one["graph"]["tasks_planned"], one["graph"]["tasks_created"]) == counts
    assert [task["name"] for task in listed["graph"]["tasks"]] == names[:TASKS_IN_A_LIST]
    assert [task["name"] for task in one["graph"]["tasks"]] == names


async def test_a_graph_that_was_created_shows_its_tasks_in_order(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await plan(api, "decision", "build", "test")
    await api.end_steps(State.DONE)
    graph = (await api.get("/pushes/mc/101")).json()["graph"]
    assert graph["state"] == "done"
    assert graph["at"] is not None
    assert graph["tasks"] == [
        {"task_id": f"{name}-0", "name": name, "created": True} for name in ("decision", "build", "test")
    ]
    (listed,) = (await api.get("/pushes")).json()["items"]
    assert listed["graph"] == graph


@pytest.mark.parametrize(("state", "shown"), [(State.SKIPPED, "skipped"), (State.FAILED, "failed")])
async def test_why_there_is_no_graph_is_shown(sqlite_api: Api, state: State, shown: str) -> None:
    await sqlite_api.add()
    await sqlite_api.push(push_event(101))
    await sqlite_api.end_steps(state, "DONTBUILD in the tip's message", error_task="e" * 22)
    push = (await sqlite_api.get("/pushes/mc/101")).json()
    assert push["graph"]["state"] == shown
    assert push["graph"]["reason"] == "DONTBUILD in the tip's message"
    assert push["graph"]["error_task"] == "e" * 22
    assert {r["state"] for r in push["resultsets"]} == {shown}
    assert {r["error"] for r in push["resultsets"]} == {"DONTBUILD in the tip's message"}


async def test_only_the_repositorys_environments_get_a_resultset(sqlite_api: Api) -> None:
    await sqlite_api.add(environments=["tc-treeherder-stage"])
    await sqlite_api.add("none", environments=[])
    await sqlite_api.push(push_event(101), push_event(101, alias="none", repository_id=2))
    for alias, prefixes in {"mc": ["tc-treeherder-stage"], "none": []}.items():
        shown = (await sqlite_api.get(f"/pushes/{alias}/101")).json()["resultsets"]
        assert [resultset["environment"] for resultset in shown] == prefixes


async def test_the_newest_generation_is_shown_unless_another_is_asked_for(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.post("/repositories/mc/reset", {"last_push_id": 100})
    anew = push_event(101, shift=1, changesets=[changeset("anew")])
    await api.push({**anew, "generation": 1})
    assert (await api.get("/pushes/mc/101")).json()["revision"] == node("anew")
    old = (await api.get("/pushes/mc/101", params={"generation": 0})).json()
    assert (old["generation"], old["revision"]) == (0, node(101))
    is_problem(await api.get("/pushes/mc/101", params={"generation": 2}), 404)
    is_problem(await api.get("/pushes/mc/101", params={"generation": -1}), 422, "generation")


async def test_a_push_that_is_not_there_is_a_404(api: Api) -> None:
    await api.add()
    for path in ("mc/1", "nowhere/1", f"mc/{2**31}", f"mc/{10**30}", "mc/-1", "%00/1", "%ED%A0%80/1"):
        is_problem(await api.get(f"/pushes/{path}"), 404, "`tc-treeherder ")
        is_problem(await api.post(f"/pushes/{path}/retry"), 404, "`tc-treeherder ")
    is_problem(await api.get("/pushes/mc/1"), 404, "`tc-treeherder pushes list --repository mc` lists them")
    is_problem(await api.get("/pushes/nowhere/1"), 404, "no repository 'nowhere' is monitored", "lists them: mc")
    for path in ("mc/x", "mc/1.5", "mc/" + "9" * 5_000):
        is_problem(await api.get(f"/pushes/{path}"), 422, "push_id")


async def test_lists_come_in_pages_newest_first_and_can_be_filtered(api: Api) -> None:
    for alias in ("mc", "other"):
        await api.add(alias)
    await api.push(*(push_event(100 + n, since=100) for n in range(1, 6)))
    await api.push(push_event(101, alias="other"))
    await api.end_steps(State.DONE)
    await api.push(push_event(106))

    async def all_of(**params: Any) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        after = None
        while True:
            asked = {"limit": 2, **params, **({"after": after} if after else {})}
            page = (await api.get("/pushes", params=asked)).json()
            assert len(page["items"]) <= 2
            found += [(item["repository"], item["push_id"]) for item in page["items"]]
            after = page["next"]
            if after is None:
                return found

    older = [("mc", n) for n in (105, 104, 103, 102, 101)]
    assert await all_of() == [("mc", 106), ("other", 101), *older]
    assert await all_of(repository="mc") == [("mc", 106), *older]
    assert await all_of(repository="other") == [("other", 101)]
    assert await all_of(state="pending") == [("mc", 106)]
    assert await all_of(state="done", repository="mc") == older
    assert await all_of(state="failed") == []
    for unknown in ("nowhere", "\0"):
        for more in ({"limit": 2}, {"revision": "f" * 40}, {"user": "me"}, {"state": "done"}):
            answer = await api.get("/pushes", params={"repository": unknown, **more})
            is_problem(answer, 404, "is monitored. `tc-treeherder repositories list` lists them: mc, other")
    answer = await api.get("/pushes", params={"repository": "othr"})
    is_problem(answer, 404, "'othr' is monitored; did you mean other? ")
    is_problem(await api.get("/pushes", params={"state": "splendid"}), 422, "state")
    is_problem(await api.get("/pushes", params={"repository": "x" * 51}), 422, "repository")


async def test_a_summary_leaves_the_changesets_out(sqlite_api: Api) -> None:
    await sqlite_api.add()
    await sqlite_api.push(push_event(101))
    (listed,) = (await sqlite_api.get("/pushes")).json()["items"]
    assert "changesets" not in listed
    assert listed["revision"] == node(101)


# --- retry


async def test_what_was_not_refused_goes_on_with_the_stored_plan(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await plan(api, "decision", "build", created=False)
    await api.end_steps(State.FAILED, "given up after 7 attempts", bury=True)
    assert len(await api.letters()) == 3
    answer = await api.post("/pushes/mc/101/retry", token=RETRIER)
    assert answer.status_code == 202
    graph = answer.json()["graph"]
    assert (graph["state"], graph["reason"], graph["attempts"], graph["at"]) == ("pending", None, 0, None)
    assert [(task["task_id"], task["name"]) for task in graph["tasks"]] == [(None, "decision"), (None, "build")]
    for step in await api.steps():
        assert (step.state, step.attempts, step.error, step.done_at) == (State.PENDING, 0, None, None)
        assert step.plan_attempt == 0
        assert step.due_at is not None
        assert step.since > now().replace(year=now().year - 1)
    assert await api.letters() == [], "what is done again is no dead letter"


async def test_a_push_of_a_deleted_repository_is_not_retried(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.delete("/repositories/mc", params={"force": "true"})
    is_problem(await api.post("/pushes/mc/101/retry", token=RETRIER), 409, "deleted", "add it again")
    assert {step.state for step in await api.steps()} == {State.FAILED}
    await api.add()
    assert (await api.post("/pushes/mc/101/retry", token=RETRIER)).status_code == 202


async def test_what_was_refused_is_rendered_anew_as_the_next_attempt(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await plan(api, "decision")
    await api.end_steps(State.FAILED, "no scopes", refused="no scopes", error_task="e" * 22)
    await plan(api, "error", label="error")
    graph = (await api.post("/pushes/mc/101/retry")).json()["graph"]
    assert (graph["state"], graph["reason"], graph["error_task"], graph["tasks"]) == ("pending", None, None, [])
    assert now() - datetime.fromisoformat(graph["next_attempt_at"]) < timedelta(minutes=1)
    (step,) = [step for step in await api.steps() if step.kind == StepKind.GRAPH]
    assert (step.plan_attempt, step.refused, step.error_task) == (1, None, None)


async def test_only_what_failed_is_done_again(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.end_steps(State.DONE)
    async with api.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.environment == "tc-treeherder"))).one()
        step.state, step.error = State.FAILED, "500"
    shown = (await api.post("/pushes/mc/101/retry")).json()
    assert {r["environment"]: r["state"] for r in shown["resultsets"]} == {
        "tc-treeherder": "pending",
        "tc-treeherder-stage": "done",
    }
    assert shown["graph"]["state"] == "done"
    assert [step.due_at is not None for step in await api.steps()].count(True) == 1


async def test_with_nothing_failed_a_retry_is_a_conflict(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    for state in (None, State.DONE, State.SKIPPED):
        if state:
            await api.end_steps(state)
        is_problem(await api.post("/pushes/mc/101/retry"), 409, "push 101 of mc", "nothing to retry")


async def test_a_retry_needs_the_scope_of_the_project(sqlite_api: Api) -> None:
    await sqlite_api.add()
    await sqlite_api.add("other")
    await sqlite_api.push(push_event(101), push_event(101, alias="other"))
    await sqlite_api.end_steps(State.FAILED)
    for token, alias, scope in (
        (READER, "mc", "tc-treeherder:action:retry:mc"),
        (WRITER, "mc", "tc-treeherder:action:retry:mc"),
        (RETRIER, "other", "tc-treeherder:action:retry:other"),
    ):
        answer = await sqlite_api.post(f"/pushes/{alias}/101/retry", token=token)
        assert is_problem(answer, 403, scope)["missing_scope"] == scope
    assert (await sqlite_api.post("/pushes/mc/101/retry", token=RETRIER)).status_code == 202


async def test_a_commit_that_fails_is_no_2xx(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.end_steps(State.FAILED, "x", bury=True)
    with api.commits_fail():
        is_problem(await api.post("/pushes/mc/101/retry"), 500)
    assert (await api.get("/pushes/mc/101")).json()["graph"]["state"] == "failed"
    assert len(await api.letters()) == 3


async def test_reads_need_a_token_unless_they_are_public(sqlite_url: str) -> None:
    paths = ("/repositories", "/repositories/mc", "/pushes", "/pushes/mc/101", "/dead-letters")
    async with running(settings_for(sqlite_url)) as api:
        await api.add()
        await api.push(push_event(101))
        for path in paths:
            answer = await api.get(path, token=None)
            is_problem(answer, 401, "public_reads")
            assert answer.headers["www-authenticate"] == "Bearer"
            is_problem(await api.get(path, token="x" * 20), 401)
            assert (await api.get(path, token=READER)).status_code == 200
    async with running(settings_for(sqlite_url, public_reads=True)) as api:
        for path in paths:
            assert (await api.get(path, token=None)).status_code == 200
            is_problem(await api.get(path, token="x" * 20), 401)
        is_problem(await api.patch("/repositories/mc", {"level": "3"}, token=None), 401)


async def test_a_parameter_that_is_given_twice_is_refused(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.get("/pushes?repository=a&limit=1&repository=b"), 422, "repository", "2 times")


async def test_work_bears_the_share_of_whoever_wants_it(api: Api) -> None:
    await api.add()
    await api.push(push_event(101, user="dev@example.com"))
    assert {step.share for step in await api.steps()} == {"mc/dev@example.com"}
    body = {"action": "cancel", "project": "mc", "task_id": slugid(b"k", "task"), "requester": "sheriff"}
    answer = await api.post("/actions", body)
    assert answer.status_code == 202, answer.text
    async with api.database.reading() as session:
        action = (await session.exec(select(Action))).one()
    assert action.share == "mc/sheriff"

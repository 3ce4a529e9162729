"""The context of a template, and the plan of its rendered tasks."""

from typing import Any

import pytest

from service.clock import now
from service.engine.render import TemplateError
from service.flow.pushes.template import context_of, owner_of, plan_of, scopes_of
from service.flow.tasks.ids import slugid
from service.settings import Settings
from service.store.models import PushStep, StepKind
from tests.sandbox.taskcluster.support import is_valid
from tests.service.flow.pushes.support import KEY, ids, make_push, make_repository, task
from tests.service.harness import node


def test_context(settings: Settings) -> None:
    push = make_push(2, date=now().replace(microsecond=999_999), base_revision=node("parent 0"))
    context = context_of(settings, make_repository(level="nss"), push)
    assert context.pop("now").endswith("Z")
    assert context == {
        "tasks_for": "hg-push",
        "push": {
            "owner": "dev@example.com",
            "revision": node(1),
            "revision_hash": "f" * 40,
            "base_revision": node("parent 0"),
            "comment": " ",
            "pushlog_id": 7,
            "pushdate": int(push.date.timestamp()),
        },
        "repository": {"url": "https://hg.mozilla.org/mc", "project": "mc", "level": "nss", "type": "hg"},
        "taskcluster_root_url": "https://firefox-ci-tc.services.mozilla.com",
    }
    assert isinstance(context["push"]["pushdate"], int)


def test_a_push_without_a_parent_has_zeros_for_a_base(settings: Settings) -> None:
    assert context_of(settings, make_repository(), make_push())["push"]["base_revision"] == "0" * 40


@pytest.mark.parametrize(
    ("message", "comment"),
    [
        ("Bug 1 - a change", " "),
        ("", " "),
        ("try: -b do -p linux", "try: -b do -p linux"),
        ("Bug 1\n\n  please try: -b o\nand more", "try: -b o"),
        ("try: a\r\nb", "try: a"),
        ("try: a\u2028b", "try: a"),
        ("try:", "try:"),
        ("try: one\ntry: two", "try: one"),
        ("Try: not this", " "),
    ],
)
def test_the_comment_is_the_try_line(settings: Settings, message: str, comment: str) -> None:
    push = make_push(2)
    push.changesets[-1]["desc"] = message
    assert context_of(settings, make_repository(), push)["push"]["comment"] == comment


@pytest.mark.parametrize(
    ("user", "added"),
    [
        ("dev@example.com", "dev@example.com"),
        ("Some Dev <dev@example.com>", "Some Dev <dev@example.com>"),
        ("dev@example.com\n", "dev@example.com\n"),
        ("ffxbld", "ffxbld@example.org"),
        ("", "@example.org"),
    ],
)
def test_the_owner_is_the_user_as_it_stands(settings: Settings, user: str, added: str) -> None:
    push = make_push(user=user)
    assert owner_of(settings, push) == user
    assert owner_of(settings.model_copy(update={"owner_domain": "example.org"}), push) == added


@pytest.mark.parametrize(
    ("user", "notified"),
    [
        ("dev@example.com", "dev@example.com"),
        ("ffxbld", None),
        ("dev@example.com\n", None),
        ("a*@b.example", "a*@b.example"),
        ("A B <a@b.example>", None),
        ("", None),
        ("d\u00e9v@example.com", None),
        ("a\tb@example.com", None),
        ("x" * 250 + "@example.com", None),
    ],
)
def test_only_an_address_is_authorised_to_be_notified(settings: Settings, user: str, notified: str | None) -> None:
    more = [] if notified is None else [f"queue:route:notify.email.{notified}.*"]
    assert scopes_of(settings, make_repository(scopes=["a", "b"]), make_push(user=user)) == ["a", "b", *more]


STEP = PushStep(id=5, push_id=1, kind=StepKind.GRAPH, lane="graph x", plan_attempt=2)


def test_plan() -> None:
    one, two = ids(2)
    plan = plan_of([task(0, dependencies=[two]), task(1, taskGroupId=one)], ids(2), STEP)
    assert [(t.task_id, t.position, t.name) for t in plan] == [(two, 0, "t1"), (one, 1, "t0")]
    for planned in plan:
        assert (planned.step_id, planned.plan_attempt, planned.label, planned.created) == (5, 2, "task", False)
        assert planned.definition is not None
        assert "taskId" not in planned.definition
        assert is_valid(planned.definition, "queue/v1/create-task-request.json")
        assert planned.definition["payload"] == {"n": None}
    assert [t.definition["taskGroupId"] for t in plan if t.definition] == [one, one]


def test_the_name_of_a_planned_task_tells_no_id() -> None:
    """Names are shown, also in errors, before the task is created."""
    one, two = ids(2)
    metadata = {**task()["metadata"], "name": f"build {one} x{two}"}
    (planned,) = plan_of([task(0, metadata=metadata)], ids(2), STEP)
    assert planned.name == "build (a task's id) x(a task's id)"
    assert planned.definition is not None
    assert planned.definition["metadata"]["name"] == metadata["name"]


def test_a_quoted_value_of_a_broken_task_tells_no_id() -> None:
    (one,) = ids(1)
    with pytest.raises(TemplateError) as refused:
        plan_of([task(0, workerType=f"worker {one}", priority=one, metadata={"name": one})], ids(2), STEP)
    assert 'workerType "worker (a task\'s id)" is no workerType' in str(refused.value)
    assert one not in str(refused.value)


def test_no_tasks_are_no_plan() -> None:
    assert plan_of([], ids(1), STEP) == []


def test_the_first_task_of_a_group_is_created_before_those_that_name_it() -> None:
    one, two, three = ids(3)
    plan = plan_of([task(0, taskGroupId=three), task(1, taskGroupId=three), task(2)], ids(3), STEP)
    assert plan[0].task_id == three
    # ...where dependencies allow it
    plan = plan_of([task(0, taskGroupId=three), task(1, taskGroupId=three), task(2, dependencies=[one])], ids(3), STEP)
    assert [planned.task_id for planned in plan] == [one, two, three]


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ([1], r"\.taskcluster\.yml: task 1 has no taskId: give it one, such as \{\$eval: as_slugid\('build'\)\}"),
        ([None], "task 1 has no taskId"),
        ([task(), {"taskId": 1}], "task 2 has no taskId"),
        ([task(taskId="build")], "task 1 has the taskId 'build', which as_slugid and ownTaskId .* did not return"),
        ([task(taskId=slugid(KEY, "0") + "\n")], "did not return"),
        ([task(taskId=slugid(b"other", "0"))], "did not return"),
        ([task(2)], "did not return"),
        ([task(), task()], "task 2 has the taskId of an earlier task"),
        ([task(scopes=["x"] * 1001)], "scopes has 1,001 items, at most 1,000 are allowed"),
        ([task(scopes=["x" * 4097])], r"scopes\[0\] has 4,097 characters, at most 4,096 are allowed"),
        ([task(payload=None)], r"task 1 \(t0\) is no task definition: payload is null, and must be an object"),
        ([task(metadata=None)], r"task 1 \(nameless\) is no task definition: metadata is null, and must be an object"),
        ([task(retries="5", priority="normal")], 'priority "normal" is none of highest, .*; retries "5" is no whole'),
        (
            [task(shcedulerId="x", metadata={"name": "a", "owner": "me", "source": "https://x"})],
            r"task 1 \(a\) is no task definition: metadata.description is missing; "
            r"unknown key shcedulerId \(schedulerId\?\)$",
        ),
        ([task(dependencies=["notaslug"])], r'dependencies\[0\] "notaslug" is no taskId \(22 characters of A-Z a-z'),
        ([task(created="tomorrow")], r"definition: 'tomorrow' is no date-time"),
        ([task(routes=["a"] * 2)], "definition: routes names something twice"),
        ([task(extra={"x": "y" * 10_500_000})], "is 10,500,.* bytes: Taskcluster takes 10,485,760 at most"),
        ([task(0, dependencies=[ids(2)[1]]), task(1, dependencies=[ids(2)[0]])], "in a cycle.*: t"),
    ],
)
def test_what_is_no_plan_is_told(tasks: list[Any], why: str) -> None:
    with pytest.raises(TemplateError, match=why) as refused:
        plan_of(tasks, ids(2), STEP)
    assert len(str(refused.value)) < 1000
    assert "errors.pydantic.dev" not in str(refused.value)

"""Marks of what people watch: they differ after each change, and cost a few statements."""

from sqlmodel import select

from service.api.marks import Watched, read_marks
from service.store.models import Action, JobReport, PlannedTask, PushStep, Stage
from tests.service.api.test_tasks import OURS, stored
from tests.service.asgi import Api, push_event
from tests.service.web.support import statements


async def marks_of(api: Api, watched: Watched) -> dict[tuple[str, object], object]:
    async with api.database.reading() as session:
        return await read_marks(session, watched)


async def test_a_mark_differs_after_a_change(api: Api) -> None:
    ids = await stored(api)
    (push,) = await api.pushes()
    watched = Watched(frozenset({push.id or 0}), frozenset({ids["first"]}), frozenset({OURS, "never reported"}))
    first = await marks_of(api, watched)
    assert set(first) == {("push", push.id), ("action", ids["first"]), ("task", OURS)}
    assert await marks_of(api, watched) == first
    async with api.database.writing() as session:
        report = (await session.exec(select(JobReport).where(JobReport.task_id == OURS, JobReport.run_id == 1))).one()
        report.stage = Stage.RESOLVED
    second = await marks_of(api, watched)
    assert {key for key in first if first[key] != second[key]} == {("task", OURS)}
    async with api.database.writing() as session:
        for step in await session.exec(select(PushStep)):
            step.attempts += 1
    third = await marks_of(api, watched)
    assert {key for key in first if second[key] != third[key]} == {("push", push.id)}
    async with api.database.writing() as session:
        planned = (await session.exec(select(PlannedTask).where(PlannedTask.created == False))).one()  # noqa: E712 - SQL
        planned.created = True
    fourth = await marks_of(api, watched)
    assert {key for key in first if third[key] != fourth[key]} == {("action", ids["first"])}
    async with api.database.writing() as session:
        (await session.get_one(Action, ids["first"])).fencing_token += 1
    assert (await marks_of(api, watched))[("action", ids["first"])] != fourth[("action", ids["first"])]


async def test_however_much_is_watched_there_are_four_statements_and_without_anything_none(api: Api) -> None:
    await stored(api)
    with statements(api) as sent:
        assert await marks_of(api, Watched()) == {}
    assert sent == []
    many = frozenset(range(1, 500))
    with statements(api) as sent:
        await marks_of(api, Watched(many, many, frozenset(str(number) for number in many), newest=True))
    assert len([statement for statement in sent if statement.startswith("SELECT")]) == 4


def test_what_several_pages_watch_is_put_together() -> None:
    assert Watched(frozenset({1})) | Watched(frozenset({2}), frozenset({3}), frozenset({"t"})) == Watched(
        frozenset({1, 2}), frozenset({3}), frozenset({"t"})
    )
    assert Watched(frozenset({1}), task_ids=frozenset({"t"}), newest=True).keys == {
        ("push", 1), ("task", "t"), ("newest", 0)
    }  # fmt: skip


async def test_what_is_added_changes_the_mark_of_the_newest(api: Api) -> None:
    await api.add()
    watched = Watched(newest=True)
    assert (await marks_of(api, watched)) == {("newest", 0): (None, None)}
    await api.push(push_event(101))
    assert (await marks_of(api, watched)) == {("newest", 0): (1, None)}

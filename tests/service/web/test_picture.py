"""The timeline of a push: where it begins and ends, what has which colour, and what is grouped."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.api.push_tasks import RunState, state_of_runs
from service.api.push_view import PushTask
from service.api.schemas.pushes import PushRead
from service.web.picture import LEFT, MOST_ROWS, RIGHT, WIDTH, Picture, PictureRow, draw

BEGIN = datetime(2026, 1, 15, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def push(**more: Any) -> PushRead:
    example: dict[str, Any] = PushRead.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, assignment]
    values = {**example, "date": BEGIN, "noticed_at": after(10), **more}
    values["resultsets"] = [{**example["resultsets"][0], "at": after(12)}]
    values["graph"] = {**example["graph"], "at": after(20)}
    return PushRead.model_validate(values)


def run(run_id: int, state: str, *seconds: float | None) -> RunState:
    return RunState(run_id, state, *(None if each is None else after(each) for each in seconds))


def task(name: str, *runs: RunState, kind: str = "test", after_tasks: tuple[str, ...] = ()) -> PushTask:
    state = state_of_runs(runs, "g")
    return PushTask(name, name, kind, after_tasks, state, planned=True)


def row(picture: Picture, name: str) -> PictureRow:
    return next(row for row in picture.rows if row.name == name)


def test_the_picture_reaches_from_the_commit_to_the_last_run() -> None:
    picture = draw(push(), [task("build", run(0, "completed", 20, 30, 110))], after(500))
    assert (picture.begin, picture.end) == (BEGIN, after(110))
    assert row(picture, "commit to notice").bars[0].x == LEFT
    waited, ran = row(picture, "build").bars
    assert (waited.tone, ran.tone) == ("queued", "good")
    assert ran.x + ran.width == pytest.approx(WIDTH - RIGHT, abs=0.2)
    assert waited.x + waited.width == pytest.approx(ran.x, abs=0.2)
    assert row(picture, "task graph").text == "done, 10 s"
    assert [text for _, text in picture.ticks] == ["+0 s", "+30 s", "+1 min", "+1 min 30 s"]


def test_each_run_has_its_colour_and_one_that_runs_reaches_until_now() -> None:
    runs = (run(0, "failed", 20, 21, 30), run(1, "claim-expired", 30, 31, 40), run(2, "running", 40, 41, None))
    picture = draw(push(), [task("build", *runs)], after(100))
    assert [bar.tone for bar in row(picture, "build").bars if bar.tone != "queued"] == ["bad", "mute", "busy"]
    assert picture.end == after(100)
    assert "run 2 running, 59 s" in row(picture, "build").text


def test_what_has_not_begun_stands_at_the_end_without_a_bar() -> None:
    missing = PushTask(None, "planned one", "", (), None, planned=True)
    tasks = [
        missing,
        task("unscheduled one"),
        task("late", run(0, "pending", 50, None, None)),
        task("early", run(0, "x", 20, 20, 30)),
    ]
    picture = draw(push(), tasks, after(60))
    assert [row.name for row in picture.rows[3:]] == ["early", "late", "planned one", "unscheduled one"]
    assert [bar.tone for bar in row(picture, "late").bars] == ["queued"]
    assert row(picture, "planned one").bars == []
    assert row(picture, "planned one").text == "planned"


def test_lines_lead_from_what_a_task_depends_on() -> None:
    tasks = [
        task("build", run(0, "completed", 20, 20, 30)),
        task("test", run(0, "completed", 30, 31, 40), after_tasks=("build", "of somebody else", "test")),
    ]
    picture = draw(push(), tasks, after(60))
    built, tested = row(picture, "build"), row(picture, "test")
    (line,) = tested.lines
    assert line == (built.bars[-1].x + built.bars[-1].width, built.y + 10, tested.bars[0].x, tested.y + 10)


def test_many_tasks_are_grouped_by_kind_in_the_colour_of_the_worst() -> None:
    tasks = [task(f"t{n}", run(0, "completed", 20 + n, 20 + n, 30 + n)) for n in range(MOST_ROWS)]
    assert not draw(push(), tasks, after(600)).grouped
    tasks.append(task("b", run(0, "failed", 20, 20, 900), kind="build"))
    tasks.append(task("t", run(0, "failed", 20, 20, 30)))
    picture = draw(push(), tasks, after(600))
    assert picture.grouped
    assert len(picture.rows) == 5
    grouped = row(picture, f"test ({MOST_ROWS + 1})")
    assert [bar.tone for bar in grouped.bars] == ["bad"]
    assert grouped.text == f"{MOST_ROWS} completed, 1 failed"
    assert grouped.task_id is None


def test_a_commit_of_long_ago_does_not_push_the_rest_aside() -> None:
    picture = draw(push(date=BEGIN - timedelta(days=300)), [], after(30))
    assert picture.begin == after(10)
    assert row(picture, "commit to notice").bars == []
    assert "not drawn" in row(picture, "commit to notice").text


def test_a_clock_that_is_behind_breaks_nothing() -> None:
    picture = draw(push(date=after(99)), [task("t", run(0, "completed", 5, 4, 3))], BEGIN)
    assert all(bar.width > 0 and LEFT <= bar.x <= WIDTH for row in picture.rows for bar in row.bars)

"""The status of a task, and the scope for exactly one task."""

from typing import Any

import pytest

from service.flow.tasks.status import exact_scope, was_cancelled


def test_a_scope_names_scheduler_group_and_task() -> None:
    status = {"schedulerId": "s", "taskGroupId": "g", "taskId": "t"}
    assert exact_scope("cancel-task", status) == "queue:cancel-task:s/g/t"


@pytest.mark.parametrize(
    ("runs", "cancelled"),
    [
        ([], False),
        ([{"reasonResolved": "canceled"}], True),
        ([{"reasonResolved": "canceled"}, {}], False),
        ([{"reasonResolved": "failed"}, {"reasonResolved": "canceled"}], True),
    ],
)
def test_the_latest_run_says_whether_a_task_was_cancelled(runs: list[dict[str, Any]], cancelled: bool) -> None:
    assert was_cancelled({"runs": runs}) is cancelled

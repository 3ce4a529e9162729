"""A fault holds for its method, its probability and its time."""

from typing import Any

import pytest
from taskcluster import slugId

from tests.sandbox.taskcluster.support import Api, Refused


async def test_a_fault_holds_for_its_method_alone_and_until_it_is_removed(api: Api) -> None:
    task_id = slugId()
    await api("createTask", task_id, body=api.define())
    fault = api.tc.faults.add("before", "task")
    for _ in range(3):
        with pytest.raises(Refused):
            await api("task", task_id)
        await api("status", task_id)
    api.tc.faults.remove(fault.fault_id)
    await api("task", task_id)


async def test_a_fault_can_strike_some_calls_only(api: Api) -> None:
    api.tc.faults.add("before", "ping", probability=0.5)
    statuses = [(await api.http.get("/api/queue/v1/ping")).status_code for _ in range(100)]
    assert 20 < statuses.count(500) < 80


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "flood"}, {"kind": "crash"}, {"kind": "before", "stauts": 500}, {"method": "task"}],
)
async def test_a_fault_that_is_none_is_refused(api: Api, wrong: dict[str, Any]) -> None:
    answer = await api.http.post("/__control__/faults", json=wrong)
    assert answer.status_code == 400
    assert "no such fault" in answer.json()["message"]

"""Many cancels at once: in parts, with turns for others between them."""

import pytest

from service.engine.leases import YieldedError
from service.flow.actions import cancels
from service.flow.actions.cancels import cancel_tasks
from tests.service.flow.actions.support import push_with_graph, state_of
from tests.service.flow.actions.test_push_tasks import collect
from tests.service.flow.graph_factory import action_on, claim_work
from tests.service.harness import FlowHarness

NAMES = [f"t{number}" for number in range(7)]


@pytest.mark.parametrize(("wanted", "cancelled"), [(False, 7), (True, 3)])
async def test_long_work_gives_way_between_two_parts(
    monitored: FlowHarness, monkeypatch: pytest.MonkeyPatch, wanted: bool, cancelled: int
) -> None:
    monkeypatch.setattr(cancels, "PART", 3)
    await push_with_graph(monitored, {"group": [], **{name: [] for name in NAMES}})
    collected = await collect(monitored)
    await action_on(monitored, None, "cancel-push", push_id=7, generation=0)
    lease = await claim_work(monitored)
    lease.wanted = wanted
    tasks = [task for task in collected.tasks.values() if task.name in NAMES]
    if wanted:
        with pytest.raises(YieldedError):
            await cancel_tasks(monitored.services, lease, tasks)
    else:
        assert await cancel_tasks(monitored.services, lease, tasks) == {}
        assert all(task.cancelled for task in tasks)
    assert [state_of(monitored, name) for name in NAMES].count("canceled") == cancelled

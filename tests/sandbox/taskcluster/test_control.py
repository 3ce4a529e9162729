"""`/__control__/` sets faults and the clock, shows calls and clears the stand-in."""

import asyncio

import pytest
from taskcluster import slugId

from tests.sandbox.taskcluster.support import Api, Refused


async def test_faults_are_set_listed_and_removed_over_http(api: Api) -> None:
    fields = {"kind": "before", "method": "status", "status": 502, "times": 5, "probability": 1.0}
    first = (await api.http.post("/__control__/faults", json=fields)).json()
    assert {key: first[key] for key in fields} == fields
    await api.http.post("/__control__/faults", json={"kind": "throttle"})
    with pytest.raises(Refused, match="nothing was done"):
        await api("status", slugId())
    listed = (await api.http.get("/__control__/faults")).json()["faults"]
    assert [(fault["kind"], fault["left"]) for fault in listed] == [("before", 4), ("throttle", None)]
    left = (await api.http.delete(f"/__control__/faults/{first['id']}")).json()["faults"]
    assert [fault["kind"] for fault in left] == ["throttle"]
    assert (await api.http.delete("/__control__/faults")).json() == {"faults": []}


async def test_calls_are_counted_and_creations_kept_in_order(api: Api) -> None:
    ids = [slugId() for _ in range(3)]
    for task_id in [*ids, ids[0]]:
        await api("createTask", task_id, body=api.define())
    with pytest.raises(Refused):
        await api("createTask", ids[0], body=api.define(retries=1))
    with pytest.raises(Refused):
        await api("status", slugId())
    journal = (await api.http.get("/__control__/calls")).json()
    assert journal["calls"] == {"createTask": 5, "status": 1}
    assert journal["answers"] == {"createTask": {"200": 4, "409": 1}, "status": {"404": 1}}
    assert [(creation["task_id"], creation["status"]) for creation in journal["creations"]] == [
        *((task_id, 200) for task_id in ids),
        (ids[0], 200),
        (ids[0], 409),
    ]
    assert (await api.http.delete("/__control__/calls")).json() == {"calls": {}, "answers": {}, "creations": []}


async def test_the_clock_is_moved_over_http_and_what_is_due_is_done(api: Api) -> None:
    task_id = slugId()
    await api("createTask", task_id, body=api.define())
    before = (await api.http.get("/__control__/clock")).json()["now"]
    after = (await api.http.post("/__control__/clock", json={"advance": 3600})).json()["now"]
    assert after > before
    (task,) = (await api.http.get("/__control__/tasks")).json()["tasks"]
    assert task["status"] == (await api("status", task_id))["status"]
    assert task["status"]["runs"][0]["reasonResolved"] == "deadline-exceeded"
    assert (await api.http.post("/__control__/clock", json={"reset": True})).json()["now"] < after
    frozen = (await api.http.post("/__control__/clock", json={"freeze": True})).json()["now"]
    await asyncio.sleep(0.01)
    assert (await api.http.get("/__control__/clock")).json()["now"] == frozen


async def test_latency_is_set_over_http(api: Api) -> None:
    await api.http.post("/__control__/latency", json={"seconds": 0.01})
    assert api.tc.latency == 0.01


async def test_clear_forgets_everything(api: Api) -> None:
    await api("createTask", slugId(), body=api.define())
    api.tc.faults.add("before", "status")
    api.tc.clock.advance(86400)
    await api.http.post("/__control__/clear")
    assert (await api.http.get("/__control__/tasks")).json() == {"tasks": []}
    assert (await api.http.get("/__control__/calls")).json()["calls"] == {}
    with pytest.raises(Refused) as why:
        await api("status", slugId())
    assert why.value.status == 404
    assert (await api("claimWork", "prov/w", body={"workerGroup": "g", "workerId": "w", "tasks": 1}))["tasks"] == []
    await api("createTask", slugId(), body=api.define())


async def test_hooks_are_defined_shown_and_removed_over_http(api: Api) -> None:
    hook = {
        "hookGroupId": "project-x",
        "hookId": "in-tree/1",
        "metadata": {"name": "h", "description": "d", "owner": "a@b.example"},
        "task": {"$if": "false", "then": {}},
    }
    answer = await api.http.post("/__control__/hooks", json=hook)
    assert (answer.status_code, answer.json()["triggerSchema"]["type"]) == (201, "object")
    assert await api("triggerHook", "project-x", "in-tree/1", body={}, service="hooks") == {}
    (shown,) = (await api.http.get("/__control__/hooks")).json()["hooks"]
    assert (shown["hook"], shown["lastFires"]) == (answer.json(), [])
    refused = await api.http.post("/__control__/hooks", json={**hook, "task": 5})
    assert (refused.status_code, refused.json()["code"]) == (400, "InputValidationError")
    assert (await api.http.delete("/__control__/hooks/project-x/in-tree/1")).json() == {"hooks": []}

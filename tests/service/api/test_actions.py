"""Actions over the API and from listeners: once each, whatever comes twice."""

import asyncio
import base64
import itertools
import json
import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import event
from sqlmodel import col, select

from service.api.events import job_action
from service.clock import now
from service.flow.actions.receive import JobAction, store
from service.store.models import Action, Delivery, PlannedTask, Source, State
from tests.published_schemas import read_published
from tests.service.asgi import ADMIN, READER, RETRIER, Api, is_problem, push_event, running, settings_for, signature

TASK, RUN = "Vg7hTWNXSTyVNsVjBpOyCQ", "560ee14d-6357-493c-9536-c5630693b209"
WANTED = {"action": "retrigger", "project": "mc", "task_id": TASK}
CANCEL_PUSH = {"action": "cancel-push", "project": "mc", "push": 7}


def channel(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"channel {number}"))


def key(delivery: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"delivery {delivery}"))


def message(
    delivery: int,
    *,
    on: int = 1,
    redelivered: bool = False,
    stamp: float = 1_700_000_000,
    **press: Any,
) -> dict[str, Any]:
    """Return a message as the listener sends it; `press` are fields of its body."""
    body = {
        "version": 1,
        "project": "mc",
        "job_guid": f"{RUN}/0",
        "action": "retrigger",
        "requester": "sheriff@example.com",
        "job_id": 17,
        **press,
    }
    return {
        "delivery": key(delivery),
        "channel": channel(on),
        "redelivered": redelivered,
        "exchange": "exchange/treeherder/v1/job-actions",
        "routing_key": f"taskcluster.mc.{body['action']}",
        "cc": [],
        "body": json.dumps(body),
        "encoding": "utf-8",
        "stamp": stamp,
    }


async def press(api: Api, *messages: Any, acknowledged: Iterable[int] = ()) -> list[str]:
    """Post a batch that must be taken, and what the broker has confirmed; the verdicts."""
    batch = {"events": messages, "acknowledged": [key(each) for each in acknowledged]}
    answer = await api.signed("/events/job-actions", batch)
    assert answer.status_code == 202, answer.text
    verdicts = answer.json()["verdicts"]
    assert len(verdicts) == len(messages)
    return [verdict["verdict"] for verdict in verdicts]


async def listed(api: Api) -> list[int]:
    """Return the number of deliveries that each action lists."""
    return [len((await api.get(f"/actions/{action.id}")).json()["deliveries"]) for action in await actions(api)]


async def actions(api: Api) -> list[Action]:
    async with api.database.reading() as session:
        return list(await session.exec(select(Action).order_by(col(Action.id))))


# --- from Pulse --------------------------------------------------------------------------------------------------


async def test_a_pressed_button_is_an_action(api: Api) -> None:
    assert await press(api, message(1, job_guid=f"{RUN}/3")) == ["accepted"]
    (action,) = (await api.get("/actions")).json()["items"]
    assert action["id"] == 1
    expected = {
        "action": "retrigger",
        "project": "mc",
        "task_id": TASK,
        "run_id": 3,
        "requester": "sheriff@example.com",
        "source": "pulse",
        "state": "received",
        "reason": None,
        "tasks": [],
        "tasks_planned": 0,
        "planned_at": None,
        "done_at": None,
    }
    assert {name: action[name] for name in expected} == expected
    assert action["received_at"].endswith("Z")


async def test_a_batch_posted_again_is_known_and_so_is_a_key_twice_in_one(api: Api) -> None:
    batch = [message(1), message(2, action="cancel"), message(1)]
    assert await press(api, *batch) == ["accepted", "accepted", "duplicate"]
    assert await press(api, *batch) == ["duplicate"] * 3
    assert await press(api, message(3), *batch) == ["accepted", *["duplicate"] * 3]
    assert len(await actions(api)) == 3


async def test_a_press_may_name_what_its_repository_lists(api: Api) -> None:
    await api.add(actions="auto", pulse_actions=["backfill", "cancel"])
    assert await press(api, message(1, action="backfill"), message(2, action="cancel")) == ["accepted", "accepted"]
    assert await press(api, message(3), message(4, action="rerun")) == ["rejected", "rejected"]
    assert await press(api, message(5, project="other", action="backfill"), message(6, project="other")) == [
        "rejected",
        "accepted",
    ]
    stored = await actions(api)
    assert [(action.kind, action.in_tree, action.lane) for action in stored if action.state == State.PENDING] == [
        ("backfill", True, "action in-tree"),
        ("cancel", True, "action in-tree"),
        ("retrigger", False, "action retrigger"),
    ]
    assert (
        stored[2].error
        == "there is no action 'retrigger' for a button: mc takes backfill and cancel (its pulse_actions)"
    )


async def test_whose_action_is_meant_the_repository_says(api: Api) -> None:
    told = {**WANTED, "input": {"downstream": True}}
    await api.add()
    for path in ("/actions", "/actions/plan"):
        is_problem(await api.post(path, told), 422, "input of retrigger: unknown key downstream")
    assert (await api.post("/actions", WANTED)).json()["in_tree"] is None
    assert (await api.patch("/repositories/mc", {"actions": "in-tree"})).status_code == 200
    taken = (await api.post("/actions", told)).json()
    assert taken["input"] == {"downstream": True}
    assert taken["in_tree"] == dict.fromkeys(("decision_task", "hook", "triggered_at", "task_id", "state"))
    offered = (await api.post("/actions", {**WANTED, "action": "backfill"})).json()
    assert offered["in_tree"] is not None


async def test_an_input_is_any_json(api: Api) -> None:
    await api.add()
    for told in (["a", {"b": None}], "text", 0, 1.5, True):
        taken = (await api.post("/actions", {**WANTED, "action": "backfill", "input": told})).json()
        assert (await api.get(f"/actions/{taken['id']}")).json()["input"] == told
    assert (await api.post("/actions", {**WANTED, "action": "backfill", "input": None})).json()["input"] == {}
    is_problem(await api.post("/actions", {**WANTED, "input": []}), 422, "input of retrigger: ")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (r'{"a": ["\u0000"]}', "it holds a NUL"),
        (r'{"a\ud800": 1}', "half of a surrogate pair"),
        ('{"a": NaN}', "it holds NaN"),
        ("[-1e999]", "a number that is too large"),
        ("[" * 101 + "]" * 101, "more than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "more than 100 levels"),
    ],
)
async def test_an_input_that_could_not_be_stored_is_refused(api: Api, told: str, why: str) -> None:
    await api.add()
    wanted = json.dumps({**WANTED, "action": "backfill", "input": 0}).removesuffix("0}")
    for path in ("/actions", "/actions/plan"):
        json_type = {"Content-Type": "application/json"}
        answer = await api.call("POST", f"/api/v1{path}", content=f"{wanted}{told}}}", headers=json_type)
        is_problem(answer, 422, "input: ", why)
    assert await actions(api) == []


async def test_an_input_names_thousands_of_tasks_and_a_list_leaves_it_out(api: Api) -> None:
    await api.add()
    told = {"tasks": [f"test-linux64/opt-xpcshell-{number}" for number in range(7_000)]}
    taken = await api.post("/actions", {**WANTED, "action": "add-new-jobs", "input": told})
    assert taken.status_code == 202, taken.text
    await api.post("/actions", {**WANTED, "action": "add-new-jobs", "input": {"tasks": ["a"]}})
    listed = (await api.get("/actions")).json()["items"]
    assert [action["input"] for action in listed] == [{"tasks": ["a"]}, None]
    assert (await api.get("/actions/1")).json()["input"] == told


async def test_an_action_of_the_tree_needs_its_scope_before_anything_is_looked_up(api: Api) -> None:
    for path in ("/actions", "/actions/plan"):
        answer = await api.post(path, {**WANTED, "action": "backfill"}, token=RETRIER)
        assert is_problem(answer, 403)["missing_scope"] == "tc-treeherder:action:backfill:mc"


async def test_two_presses_are_two_actions(api: Api) -> None:
    assert await press(api, message(1), message(2)) == ["accepted", "accepted"]
    assert len(await actions(api)) == 2


async def test_a_redelivered_message_is_one_action(api: Api) -> None:
    assert await press(api, message(1, on=1)) == ["accepted"]
    answer = await api.signed("/events/job-actions", {"events": [message(2, on=2, redelivered=True)]})
    (verdict,) = answer.json()["verdicts"]
    assert (verdict["verdict"], verdict["reason"]) == ("duplicate", "it came before, as action 1")
    assert await press(api, message(3, on=3, redelivered=True)) == ["duplicate"]  # killed once more
    assert await listed(api) == [3]


async def test_two_presses_that_are_both_redelivered_are_two_actions(api: Api) -> None:
    # both were stored, neither was acknowledged
    assert await press(api, message(1, on=1), message(2, on=1)) == ["accepted", "accepted"]
    again = [message(3, on=2, redelivered=True), message(4, on=2, redelivered=True)]
    assert await press(api, *again) == ["duplicate", "duplicate"]
    assert await press(api, message(5, on=3, redelivered=True)) == ["duplicate"]
    assert await press(api, message(6, on=3, redelivered=True)) == ["duplicate"]
    assert await listed(api) == [3, 3]


async def test_two_presses_that_are_redelivered_to_two_listeners_are_two_actions(api: Api) -> None:
    assert await press(api, message(1, on=1), message(2, on=1)) == ["accepted", "accepted"]
    assert await press(api, message(3, on=2, redelivered=True)) == ["duplicate"]
    assert await press(api, message(4, on=3, redelivered=True)) == ["duplicate"]
    assert await listed(api) == [2, 2]


async def test_what_was_acknowledged_is_not_brought_again_so_an_equal_one_is_another_press(api: Api) -> None:
    assert await press(api, message(1, on=1)) == ["accepted"]
    # the second press was with a listener that was killed; what it reports counts before what it brings
    assert await press(api, message(2, on=2, redelivered=True), acknowledged=[1, 77]) == ["accepted"]
    # and is brought twice more: what counts is the delivery that came last
    assert await press(api, message(3, on=3, redelivered=True)) == ["duplicate"]
    assert await press(api, message(4, on=4, redelivered=True)) == ["duplicate"]
    assert await press(api, message(5, on=5, redelivered=True), acknowledged=[4]) == ["duplicate"]
    assert await press(api, acknowledged=[5]) == []  # neither comes again: one of them is a press of its own
    assert await listed(api) == [1, 3, 1]


async def test_an_acknowledgement_that_is_reported_late_makes_the_press_that_it_hid(api: Api) -> None:
    assert await press(api, message(1, on=1), message(2, on=2, redelivered=True)) == ["accepted", "duplicate"]
    assert await listed(api) == [2]
    assert await press(api, acknowledged=[1]) == []
    (delivery,) = (await api.get("/actions/1")).json()["deliveries"]
    assert (delivery["redelivered"], delivery["acknowledged"]) == (False, True)
    assert await press(api, acknowledged=[1]) == []
    first, second = await actions(api)
    assert (second.kind, second.project, second.task_id, second.run_id) == ("retrigger", "mc", TASK, 0)
    assert (second.requester, second.source, second.state) == (first.requester, Source.PULSE, State.PENDING)
    assert await listed(api) == [1, 1]
    assert await press(api, message(1, on=1), message(2, on=2, redelivered=True)) == ["duplicate", "duplicate"]


async def test_two_presses_that_two_listeners_are_brought_first_after_a_crash_are_two_actions(api: Api) -> None:
    # both were with a listener that was killed before it could post them
    assert await press(api, message(1, on=2, redelivered=True)) == ["accepted"]
    assert await press(api, message(2, on=3, redelivered=True), acknowledged=[1]) == ["duplicate"]
    assert await press(api, acknowledged=[2]) == []
    assert await listed(api) == [1, 1]


async def test_what_is_late_behind_its_own_redelivery_is_the_same_action(api: Api) -> None:
    # listener A posts 1 and loses its channel; the broker brings it to B, which is faster
    assert await press(api, message(2, on=2, redelivered=True)) == ["accepted"]
    assert await press(api, message(1, on=1)) == ["duplicate"]
    assert await press(api, acknowledged=[2]) == []
    assert await listed(api) == [2]


async def test_what_was_read_long_after_the_redelivery_is_another_press(api: Api) -> None:
    at = 1_700_000_000
    assert await press(api, message(1, on=2, redelivered=True, stamp=at)) == ["accepted"]
    # as far as the clocks can be off, it may have been read before
    assert await press(api, message(2, on=1, stamp=at + 599)) == ["duplicate"]
    assert await press(api, message(3, on=3, stamp=at + 600)) == ["accepted"]


async def test_the_largest_matching_counts_not_the_first_that_comes_to_mind(api: Api) -> None:
    # 1 came again as 4, and 2 as 3; who takes 3 for 1 has nothing left for 4, which came on the channel of 2
    assert await press(api, message(1, on=1)) == ["accepted"]
    assert await press(api, message(2, on=2)) == ["accepted"]
    assert await press(api, message(3, on=3, redelivered=True)) == ["duplicate"]
    assert await press(api, message(4, on=2, redelivered=True), acknowledged=[3]) == ["duplicate"]
    assert await press(api, acknowledged=[4]) == []
    deliveries = await listed(api)
    assert (len(deliveries), sum(deliveries)) == (2, 4)


async def test_what_came_on_the_same_channel_is_another_press(api: Api) -> None:
    assert await press(api, message(1, on=1, redelivered=True)) == ["accepted"]
    assert await press(api, message(2, on=1), message(3, on=1, redelivered=True)) == ["accepted", "accepted"]


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
async def test_a_message_that_three_listeners_posted_is_one_action_in_any_order(
    sqlite_api: Api, order: tuple[int, ...]
) -> None:
    posted = {1: message(1, on=1), 2: message(2, on=2, redelivered=True), 3: message(3, on=3, redelivered=True)}
    for number in order:
        await press(sqlite_api, posted[number])
    assert len(await actions(sqlite_api)) == 1


@pytest.mark.parametrize(
    ("acknowledged", "words"),
    [("x", "acknowledged"), (["x"], "acknowledged[0]"), ([key(1)] * 1_001, "acknowledged"), (None, "acknowledged")],
)
async def test_an_acknowledgement_that_is_nonsense_is_refused(sqlite_api: Api, acknowledged: Any, words: str) -> None:
    answer = await sqlite_api.signed("/events/job-actions", {"events": [message(1)], "acknowledged": acknowledged})
    is_problem(answer, 422, words)
    assert await actions(sqlite_api) == []


@pytest.mark.parametrize("stamp", [-1, "x", None, 1e300, float("nan"), float("inf")])
async def test_a_message_with_a_stamp_that_is_no_time_is_a_dead_letter(sqlite_api: Api, stamp: Any) -> None:
    assert await press(sqlite_api, {**message(1), "stamp": stamp}) == ["rejected"]
    assert len(await sqlite_api.letters()) == 1


@pytest.mark.parametrize("first", [{"on": 1}, {"on": 2, "redelivered": True}], ids=["natural", "overtaken"])
async def test_equal_presses_in_transactions_at_once_are_one_action(postgres_url: str, first: dict[str, Any]) -> None:
    second: dict[str, Any] = {"on": 3, "redelivered": True} if first["on"] == 1 else {"on": 1}
    async with running(settings_for(postgres_url)) as api:
        async with api.database.writing() as session:
            (verdict,), _ = await store(session, [job_action(message(1, **first))])
            await session.flush()
            posted = asyncio.create_task(press(api, message(2, **second)))
            done, _ = await asyncio.wait([posted], timeout=0.3)
            assert not done, "it must wait for what is not committed yet"
        assert verdict.verdict == "accepted"
        assert await posted == ["duplicate"]
        assert len(await actions(api)) == 1


async def test_those_that_count_the_same_presses_never_wait_in_a_circle(postgres_url: str) -> None:
    guids = [f"{RUN}/{number}" for number in range(20)]

    def batch(first: int, on: int, **more: Any) -> list[dict[str, Any]]:
        return [message(first + n, on=on, job_guid=guid, **more) for n, guid in enumerate(guids)]

    async with running(settings_for(postgres_url)) as api:
        await press(api, *batch(0, on=1))
        posts = [
            press(api, *batch(100 * on, on=on, redelivered=True)[:: 1 if on % 2 else -1], acknowledged=range(0, on, 2))
            for on in range(2, 10)
        ]
        await asyncio.gather(*posts)
        await press(api, acknowledged=[*range(20), *range(200, 220), *range(900, 920)])
        async with api.database.reading() as session:
            rows = list(await session.exec(select(Delivery)))
        assert len(rows) == 180
        assert {row.action_id for row in rows} == {action.id for action in await actions(api)}


async def test_a_full_batch_asks_the_database_no_more_often_than_a_small_one(api: Api) -> None:
    asked: list[str] = []
    engine = api.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    needed = []
    for size in (2, 40):
        for on in (size, size + 1):  # first delivered, then again
            numbers = range(100 * on, 100 * on + size)
            batch = [message(n, on=on, redelivered=on > size, job_guid=f"{RUN}/{n % 100}") for n in numbers]
            asked.clear()
            await press(api, *batch, acknowledged=[number - 100 for number in numbers] if on > size else [])
            needed.append(sum("INSERT" not in each for each in asked))
    assert needed[2:] == needed[:2], asked
    assert max(needed) < 15


async def test_two_presses_of_which_none_was_stored_before_are_two_actions_too(api: Api) -> None:
    again = [message(1, on=2, redelivered=True), message(2, on=2, redelivered=True)]
    assert await press(api, *again) == ["accepted", "accepted"]
    # and of which only the first was
    assert await press(api, message(3, on=5, job_guid=f"{RUN}/1")) == ["accepted"]
    both = [message(n, on=6, redelivered=True, job_guid=f"{RUN}/1") for n in (4, 5)]
    assert sorted(await press(api, *both)) == ["accepted", "duplicate"]
    assert len(await actions(api)) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"requester": "another@example.com"},
        {"action": "cancel"},
        {"project": "try"},
        {"job_guid": f"{RUN}/1"},
        {"job_guid": "660ee14d-6357-493c-9536-c5630693b209/0"},
    ],
)
async def test_only_an_equal_action_is_matched(sqlite_api: Api, other: dict[str, Any]) -> None:
    assert await press(sqlite_api, message(1, on=1)) == ["accepted"]
    assert await press(sqlite_api, message(2, on=2, redelivered=True, **other)) == ["accepted"]


async def test_only_the_last_two_days_are_matched_and_no_action_of_the_api(api: Api) -> None:
    assert (await api.post("/actions", {**WANTED, "run_id": 0, "requester": "sheriff@example.com"})).status_code == 202
    assert await press(api, message(1, on=2, redelivered=True)) == ["accepted"]
    async with api.database.writing() as session:
        for delivery in await session.exec(select(Delivery)):
            delivery.at = now() - timedelta(hours=49)
    assert await press(api, message(2, on=3, redelivered=True)) == ["accepted"]
    assert len(await actions(api)) == 3


async def test_replicas_that_take_the_same_batches_at_once_make_each_action_once(postgres_url: str) -> None:
    async with running(settings_for(postgres_url)) as one, running(settings_for(postgres_url)) as two:
        first = [message(n, on=1) for n in range(40)]
        posts = [press(api, *batch) for api in (one, two) for batch in (first, first[::-1])]
        verdicts = await asyncio.gather(*posts)
        assert sum(verdict.count("accepted") for verdict in verdicts) == 40
        # redelivered to two listeners at once, half of them each
        again = [message(100 + n, on=2 + n % 2, redelivered=True) for n in range(40)]
        answers = await asyncio.gather(press(one, *again[::2]), press(two, *again[1::2]))
        assert [*answers[0], *answers[1]] == ["duplicate"] * 40
        assert await listed(one) == [2] * 40


async def test_the_202_is_lost_after_the_commit_and_the_batch_comes_again(api: Api) -> None:
    raw = json.dumps({"events": [message(1)]}).encode()
    lost = await api.client.post(
        "/api/v1/events/job-actions", content=raw, headers=signature(raw, path="/events/job-actions")
    )
    assert lost.status_code == 202  # nobody hears it
    assert await press(api, message(1)) == ["duplicate"]
    assert len(await actions(api)) == 1


async def test_nothing_is_promised_before_the_commit(api: Api) -> None:
    with api.commits_fail():
        answer = await api.signed("/events/job-actions", {"events": [message(1)]})
        assert answer.status_code == 500
        assert (await api.post("/actions", WANTED, headers={"Idempotency-Key": "k"})).status_code == 500
    assert await press(api, message(1)) == ["accepted"]
    assert (await api.post("/actions", WANTED, headers={"Idempotency-Key": "k"})).status_code == 202
    assert len(await actions(api)) == 2


@pytest.mark.parametrize("action", ["backfill", "retriggerall", "cancel-push", ""])
async def test_other_actions_are_recorded_as_rejected(api: Api, action: str) -> None:
    assert await press(api, message(1, action=action)) == ["rejected"]
    assert await press(api, message(2, on=2, redelivered=True, action=action)) == ["duplicate"]
    (stored,) = (await api.get("/actions?state=rejected")).json()["items"]
    assert stored["action"] == action
    assert repr(action) in stored["reason"]
    assert "cancel and retrigger" in stored["reason"]
    assert stored["next_attempt_at"] is None
    assert await api.letters() == []


BAD_BODIES = [
    ("{", "not JSON"),
    ("[]", "not understood"),
    ("null", "not understood"),
    (json.dumps({"version": 1}), "job_guid"),
    (message(1, version=2)["body"], "version"),
    (message(1, job_guid="somejob/0")["body"], "somejob"),
    (message(1, job_guid=RUN)["body"], "job_guid"),
    (message(1, job_guid=f"{RUN}/-1")["body"], "job_guid"),
    (message(1, job_guid=5)["body"], "job_guid"),
    (message(1, requester=None)["body"], "requester"),
]


@pytest.mark.parametrize(("body", "words"), BAD_BODIES)
async def test_what_cannot_be_understood_is_a_dead_letter_once(sqlite_api: Api, body: str, words: str) -> None:
    bad = {**message(1), "body": body}
    answer = await sqlite_api.signed("/events/job-actions", {"events": [message(2), bad, message(3)]})
    verdicts = answer.json()["verdicts"]
    assert [verdict["verdict"] for verdict in verdicts] == ["accepted", "rejected", "accepted"]
    assert words in verdicts[1]["reason"]
    assert "dead letter" in verdicts[1]["reason"]
    assert await press(sqlite_api, bad) == ["rejected"]
    (letter,) = await sqlite_api.letters()
    assert letter.kind == "job-action"
    assert json.loads(letter.payload or b"") == bad


async def test_bodies_that_are_no_text_come_as_base64(api: Api) -> None:
    good = message(1)
    coded = {**good, "encoding": "base64", "body": base64.b64encode(good["body"].encode()).decode()}
    bad = {**message(2), "encoding": "base64", "body": base64.b64encode(b"\xff\xfe").decode()}
    worse = {**message(3), "encoding": "base64", "body": "!"}
    assert await press(api, coded, bad, worse) == ["accepted", "rejected", "rejected"]
    assert len(await api.letters()) == 2


async def test_an_event_that_is_no_message_is_a_dead_letter_too(api: Api) -> None:
    assert await press(api, 5, {"delivery": "x"}, message(1)) == ["rejected", "rejected", "accepted"]
    assert await press(api, 5, 5) == ["rejected", "rejected"]
    assert len(await api.letters()) == 2


async def test_equal_messages_that_are_not_understood_are_a_dead_letter_each(api: Api) -> None:
    first, second = {**message(1), "body": "{"}, {**message(2), "body": "{"}
    for _ in range(2):
        assert await press(api, first, second) == ["rejected", "rejected"]
    assert len(await api.letters()) == 2


async def test_what_no_database_takes_is_made_visible(api: Api) -> None:
    strange = message(1, requester="a\0b\ud800c", project="m\0c")
    assert await press(api, strange) == ["accepted"]
    (action,) = await actions(api)
    assert action.requester == "a\\u0000b\\ud800c"
    assert action.project == "m\\u0000c"


async def test_only_what_is_signed_is_believed(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.post("/events/job-actions", {"events": [message(1)]}), 401)
    assert await actions(sqlite_api) == []


async def test_a_dead_letter_is_taken_in_again_or_stays(api: Api) -> None:
    bad = {**message(1), "body": "{"}
    await press(api, bad)
    (letter,) = await api.letters()
    is_problem(await api.post(f"/dead-letters/{letter.id}/replay"), 422, "not JSON")
    async with api.database.writing() as session:
        kept = await session.get_one(type(letter), letter.id)
        kept.payload = json.dumps(message(1)).encode()  # what it would be if this release understood it
    assert (await api.post(f"/dead-letters/{letter.id}/replay")).status_code == 202
    assert await api.letters() == []
    assert [action.task_id for action in await actions(api)] == [TASK]


async def test_a_buried_action_is_taken_up_again(api: Api) -> None:
    await press(api, message(1))
    async with api.database.writing() as session:
        (action,) = await session.exec(select(Action))
        action.state, action.due_at, action.attempts = State.FAILED, None, 9
        session.add(action.dead_letter("given up"))
    (letter,) = (await api.get("/dead-letters")).json()["items"]
    assert letter["kind"] == "action"
    assert TASK in letter["subject"]
    assert (await api.post(f"/dead-letters/{letter['id']}/replay")).status_code == 202
    (action,) = await actions(api)
    assert (action.state, action.attempts) == ("pending", 0)
    assert action.due_at is not None


GUIDS = st.builds(lambda u, r: f"{u}/{r}", st.uuids(), st.integers(0, 9999))
MESSAGES = st.fixed_dictionaries(
    {
        "version": st.sampled_from([1, 2, "1"]),
        "project": st.one_of(st.text(max_size=20), st.none()),
        "job_guid": GUIDS,
        "action": st.sampled_from(["retrigger", "cancel", "backfill", 7]),
        "requester": st.one_of(st.text(max_size=20), st.integers()),
    },
    optional={"job_id": st.one_of(st.integers(), st.floats(allow_nan=False), st.text()), "more": st.integers()},
)


MESSAGE_SCHEMA: dict[str, Any] = {
    "required": ["version", "project", "job_guid", "action", "requester"],
    "properties": {
        "version": {"enum": [1]},
        **{name: {"type": "string"} for name in ("project", "job_guid", "requester")},
        "action": {"enum": ["retrigger", "cancel", "backfill"]},
        "job_id": {"type": "number"},
    },
}
"""Messages about pressed buttons, as Treeherder documents them."""


@given(sent=MESSAGES)
def test_our_model_takes_what_the_schema_takes(sent: dict[str, Any]) -> None:
    takes_what_the_schema_takes(sent, MESSAGE_SCHEMA)


@pytest.mark.published
@given(sent=MESSAGES)
def test_our_model_takes_what_the_published_schema_takes(sent: dict[str, Any]) -> None:
    takes_what_the_schema_takes(sent, read_published("treeherder/job-action-message.json"))


def takes_what_the_schema_takes(sent: dict[str, Any], schema: dict[str, Any]) -> None:
    try:
        JobAction.model_validate(sent)
        taken = True
    except ValidationError:
        taken = False
    assert taken == jsonschema.Draft4Validator(schema).is_valid(sent)


# --- over the API ------------------------------------------------------------------------------------------------


async def test_an_action_is_stored_and_told_where(api: Api) -> None:
    answer = await api.post("/actions", {**WANTED, "run_id": 2, "requester": "sheriff@example.com"})
    assert answer.status_code == 202
    created = answer.json()
    assert answer.headers["location"] == f"/api/v1/actions/{created['id']}"
    expected = {**WANTED, "run_id": 2, "requester": "sheriff@example.com", "source": "api", "state": "received"}
    assert {name: created[name] for name in expected} == expected
    assert (await api.get(f"/actions/{created['id']}")).json() == created
    mine = (await api.post("/actions", WANTED)).json()
    assert (mine["requester"], mine["run_id"]) == ("admin", None)


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ({}, "retrigger needs task_id, to say what it is about; neither is given"),
        ({"push": 7}, "retrigger needs task_id, to say what it is about; push is given"),
        ({"task_id": TASK, "push": 7}, "task_id and push is given"),
        ({"task_id": None, "push": None}, "neither is given"),
        ({"push": -1}, "push -1 is too small"),
        ({"push": "7"}, "push: "),
        (
            {"action": "cancel-push", "task_id": TASK},
            "cancel-push needs push, to say what it is about; task_id is given",
        ),
        ({"action": "cancel-push", "push": 7, "run_id": 0}, "run_id is for a task: leave it out for a push"),
    ],
)
async def test_an_action_is_about_what_it_can_be_about(sqlite_api: Api, subject: dict[str, Any], words: str) -> None:
    for path in ("/actions", "/actions/plan"):
        is_problem(await sqlite_api.post(path, {"action": "retrigger", "project": "mc", **subject}), 422, words)
    assert await actions(sqlite_api) == []


async def test_an_action_on_a_push_is_stored_with_the_newest_generation_that_has_it(api: Api) -> None:
    unknown = (await api.post("/actions", CANCEL_PUSH)).json()
    assert (unknown["push"], unknown["generation"], unknown["task_id"]) == (7, None, None)
    await api.add(last_push_id=6)
    await api.push(push_event(7))
    created = (await api.post("/actions", CANCEL_PUSH)).json()
    assert (created["push"], created["generation"], created["cancels"], created["cancels_count"]) == (7, 0, [], 0)
    listed = (await api.get("/actions?push=7")).json()["items"]
    assert [action["id"] for action in listed] == [created["id"], unknown["id"]]
    assert (await api.get("/actions?push=8")).json()["items"] == []
    plan = (await api.post("/actions/plan", {**CANCEL_PUSH, "push": 8})).json()
    assert (plan["state"], plan["push"]) == ("rejected", 8)


async def test_a_call_repeated_with_its_key_is_the_same_action(api: Api) -> None:
    key = {"Idempotency-Key": "once"}
    first = await api.post("/actions", WANTED, headers=key)
    again = await api.post("/actions", WANTED, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"]
    is_problem(await api.post("/actions", {**WANTED, "action": "cancel"}, headers=key), 422, "once", "another")
    other = await api.post("/actions", WANTED, headers={"Idempotency-Key": "twice"})
    assert other.json()["id"] != first.json()["id"]
    without = [(await api.post("/actions", WANTED)).json()["id"] for _ in range(2)]
    assert len({*without, other.json()["id"], first.json()["id"]}) == 4


async def test_keys_of_two_callers_have_nothing_to_do_with_each_other(sqlite_url: str) -> None:
    tokens = [{"name": name, "value": f"{name}-0123456789abcdef", "scopes": ["*"]} for name in ("one", "two")]
    async with running(settings_for(sqlite_url, tokens=tokens)) as api:
        ids = [
            (await api.post("/actions", WANTED, token=each["value"], headers={"Idempotency-Key": "k"})).json()["id"]
            for each in tokens
        ]
    assert len(set(ids)) == 2


async def test_a_key_that_continues_the_name_of_a_caller_is_no_other_callers(sqlite_url: str) -> None:
    tokens = [{"name": name, "value": f"{name:-<16}", "scopes": ["*"]} for name in ("ci", "ci nightly")]
    async with running(settings_for(sqlite_url, tokens=tokens)) as api:
        ids = [
            (await api.post("/actions", WANTED, token=f"{name:-<16}", headers={"Idempotency-Key": key})).json()["id"]
            for name, key in (("ci", "nightly 7"), ("ci nightly", "7"))
        ]
    assert len(set(ids)) == 2


async def test_calls_with_one_key_at_once_are_one_action(api: Api) -> None:
    key = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(api.post("/actions", WANTED, headers=key) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await actions(api)) == 1


@pytest.mark.parametrize("path", ["/actions", "/actions/plan"])
async def test_it_takes_the_scope_of_the_action_and_the_project(sqlite_url: str, path: str) -> None:
    scopes = ["tc-treeherder:action:retrigger:mc"]
    sheriff = {"name": "sheriff", "value": "sheriff-0123456789", "scopes": scopes}
    reader = {"name": "reader", "value": READER}
    async with running(settings_for(sqlite_url, tokens=[sheriff, reader])) as api:
        for token, body, status, missing in (
            (READER, WANTED, 403, "tc-treeherder:action:retrigger:mc"),
            (sheriff["value"], {**WANTED, "action": "cancel"}, 403, "tc-treeherder:action:cancel:mc"),
            (sheriff["value"], {**WANTED, "project": "try"}, 403, "tc-treeherder:action:retrigger:try"),
            (sheriff["value"], CANCEL_PUSH, 403, "tc-treeherder:action:cancel-push:mc"),
        ):
            problem = is_problem(await api.post(path, body, token=token), status, missing)
            assert problem["missing_scope"] == missing
        is_problem(await api.post(path, WANTED, token=None), 401, "needs credentials")
        is_problem(await api.post(path, {"nonsense": 1}, token=None), 401)
        assert await actions(api) == []
        if path == "/actions":
            assert (await api.post(path, WANTED, token=str(sheriff["value"]))).status_code == 202


async def test_reads_need_credentials_and_no_scope(sqlite_api: Api) -> None:
    await sqlite_api.post("/actions", WANTED)
    for path in ("/actions", "/actions/1"):
        is_problem(await sqlite_api.get(path, token=None), 401)
        assert (await sqlite_api.get(path, token=READER)).status_code == 200
        assert (await sqlite_api.get(path, token=RETRIER)).status_code == 200


BAD_CALLS: list[tuple[Any, str]] = [
    ({**WANTED, "action": "a:b"}, "action"),
    ({**WANTED, "action": "retrigger*"}, "action"),
    ({**WANTED, "action": ""}, "action"),
    ({**WANTED, "action": "x" * 101}, "action"),
    ({**WANTED, "task_id": "x"}, "task_id"),
    ({**WANTED, "task_id": RUN}, "task_id"),
    ({**WANTED, "task_id": TASK + "\n"}, "task_id"),
    ({**WANTED, "project": "a/b"}, "project"),
    ({**WANTED, "project": None}, "project"),
    ({**WANTED, "run_id": -1}, "run_id"),
    ({**WANTED, "run_id": 2**40}, "run_id"),
    ({**WANTED, "requester": "a\0"}, "requester"),
    ({**WANTED, "more": 1}, "more"),
    ({}, "action"),
    ([], "body"),
]


@pytest.mark.parametrize("path", ["/actions", "/actions/plan"])
@pytest.mark.parametrize(("body", "word"), BAD_CALLS)
async def test_nonsense_is_refused_by_name(sqlite_api: Api, path: str, body: Any, word: str) -> None:
    is_problem(await sqlite_api.post(path, body), 422, word)
    assert await actions(sqlite_api) == []


async def test_unknown_actions_are_404(sqlite_api: Api) -> None:
    for number in (0, 1, -1, 2**31, 2**70):
        is_problem(
            await sqlite_api.get(f"/actions/{number}"), 404, str(number), "`tc-treeherder actions list` lists them"
        )
    is_problem(await sqlite_api.get("/actions/x"), 422)


@pytest.fixture
async def several(api: Api) -> Api:
    """Twelve actions, two in each state, on two projects."""
    states = [
        (State.PENDING, None),
        (State.PENDING, now()),
        (State.DONE, now()),
        (State.FAILED, now()),
        (State.REJECTED, None),
        (State.NOTHING_TO_DO, None),
    ]
    async with api.database.writing() as session:
        for number in range(12):
            state, planned_at = states[number // 2]
            action = Action(
                kind="retrigger",
                project=("mc", "try")[number % 2],
                task_id=TASK,
                requester="x",
                source=Source.API,
                lane="none",
                state=state,
                planned_at=planned_at,
                due_at=None,
            )
            session.add(action)
            await session.flush()
    return api


@pytest.mark.parametrize("state", ["received", "planned", "done", "failed", "rejected", "nothing-to-do"])
async def test_lists_are_filtered_by_state_and_project(several: Api, state: str) -> None:
    found = (await several.get(f"/actions?state={state}")).json()["items"]
    assert len(found) == 2
    assert {action["state"] for action in found} == {state}
    (one,) = (await several.get(f"/actions?state={state}&project=try")).json()["items"]
    assert one["project"] == "try"
    assert (await several.get(f"/actions/{one['id']}")).json()["state"] == state


async def test_a_project_that_no_repository_and_no_action_has_is_a_404(several: Api) -> None:
    await several.add("quiet")
    assert (await several.get("/actions?project=quiet")).json()["items"] == []
    assert len((await several.get("/actions?project=try")).json()["items"]) == 6, "which is not monitored"
    for more in ("", "&state=done", f"&task_id={TASK}"):
        answer = await several.get(f"/actions?project=quite{more}")
        is_problem(answer, 404, "no repository 'quite' is monitored; did you mean quiet?", "repositories list")


async def test_lists_come_in_pages_the_newest_first(several: Api) -> None:
    seen: list[int] = []
    path = "/actions?limit=5"
    while True:
        page = (await several.get(path)).json()
        seen += [action["id"] for action in page["items"]]
        if page["next"] is None:
            break
        path = f"/actions?limit=5&after={page['next']}"
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 12
    is_problem(await several.get("/actions?state=sleeping"), 422, "state")
    is_problem(await several.get("/actions?after=x"), 422, "after")


async def test_the_tasks_of_an_action_are_shown_and_in_a_list_the_first_of_them(several: Api) -> None:
    async with several.database.writing() as session:
        for attempt in (0, 1):
            for position in range(30):
                session.add(
                    PlannedTask(
                        task_id=f"new-{attempt}-{position}",
                        action_id=5,
                        copy_of=f"old-{position}",
                        plan_attempt=attempt,
                        position=position,
                        label="copy",
                        name=f"t{position}",
                        definition={},
                        created=position < 7,
                    )
                )
        action = await session.get_one(Action, 5)
        action.plan_attempt = 1
        action.left_out = [{"task_id": "x", "name": "x", "reason": "it is elsewhere"}]
        action.notes = ["a note"]
    read = (await several.get("/actions/5")).json()
    # nobody is to know an id before its task was created: they could create it first
    assert [task["task_id"] for task in read["tasks"]] == [f"new-1-{n}" if n < 7 else None for n in range(30)]
    assert read["tasks"][7] == {"copy_of": "old-7", "task_id": None, "name": "t7", "created": False}
    assert (read["tasks_planned"], read["tasks_created"], read["notes"]) == (30, 7, ["a note"])
    assert read["left_out"] == [{"task_id": "x", "name": "x", "reason": "it is elsewhere"}]
    (listed,) = [each for each in (await several.get("/actions")).json()["items"] if each["id"] == 5]
    assert listed["tasks"] == read["tasks"][:20]
    assert (listed["tasks_planned"], listed["tasks_created"], listed["left_out_count"]) == (30, 7, 1)


async def test_every_answer_is_in_the_description(sqlite_api: Api) -> None:
    described = sqlite_api.app.openapi()["paths"]
    assert set(described["/api/v1/actions"]) == {"get", "post"}
    assert set(described["/api/v1/actions/plan"]) == {"post"}
    header = [each for each in described["/api/v1/actions"]["post"]["parameters"] if each["in"] == "header"]
    assert [each["name"] for each in header] == ["Idempotency-Key"]
    assert described["/api/v1/events/job-actions"]["post"]["tags"] == ["internal"]
    assert ADMIN not in json.dumps(described)

"""Task definitions, held against the queue's published schema and against what the stand-in keeps."""

import copy
import itertools
import json
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.taskcluster import checks
from sandbox.taskcluster.clock import parse
from service.flow.tasks.definition import (
    SLUGID,
    CycleError,
    TaskDefinition,
    authority_differences,
    complete,
    format_date,
    move_dates,
    parse_date,
    sort_by_dependencies,
)
from service.flow.tasks.ids import slugid
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.models import CREATE_TASK
from tests.sandbox.taskcluster.support import is_valid
from tests.task_event_examples import EVENTS

SCHEMA = "queue/v1/create-task-request.json"
TASK = "abcdefghRAC-0123456789"[:21] + "Q"
OTHER = "VAD5PL3ZTaq4b8iuQOXxBA"
BASE: dict[str, Any] = {
    "taskQueueId": "prov/w",
    "created": "2030-01-30T12:00:00.000Z",
    "deadline": "2030-01-31T12:00:00.000Z",
    "payload": {},
    "metadata": {"name": "n", "description": "d", "owner": "o@example.com", "source": "https://example.com"},
}


def accepts(definition: Any) -> bool:
    try:
        complete(TASK, definition)
    except ValidationError:
        return False
    return True


# In hypothesis' hands: valid fields, and now and then something else

names = st.text("abcXYZ019-_", min_size=1, max_size=38)
types = st.from_regex(r"[a-z]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
slugs = st.from_regex(SLUGID.strip("^$"), fullmatch=True)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1)).map(lambda at: format_date(at.replace(tzinfo=UTC)))  # noqa: DTZ001 - hypothesis wants naive bounds
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=5), anything, max_size=3)
fields: dict[str, st.SearchStrategy[Any]] = {
    "taskQueueId": st.builds(lambda p, w: f"{p}/{w}", names, types),
    "provisionerId": names,
    "workerType": types,
    "schedulerId": names,
    "projectId": st.text("azAZ09._/-", min_size=1, max_size=20),
    "taskGroupId": slugs,
    "dependencies": st.lists(slugs, max_size=3),
    "requires": st.sampled_from(["all-completed", "all-resolved"]),
    "routes": st.lists(st.text(min_size=1, max_size=10), max_size=3),
    "priority": st.sampled_from(checks.PRIORITIES),
    "retries": st.integers(0, 49),
    "created": moments,
    "deadline": moments,
    "expires": moments,
    "scopes": st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10), max_size=3),
    "payload": objects,
    "metadata": st.fixed_dictionaries(
        {
            "name": st.text(max_size=10),
            "description": st.text(max_size=10),
            "owner": st.text(max_size=10),
            "source": st.sampled_from(["http://x", "https://x", "ssh://x", "git@x"]),
        }
    ),
    "tags": st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3),
    "extra": objects,
}


@st.composite
def definitions(draw: st.DrawFn, spoil: bool = False) -> dict[str, Any]:
    chosen = draw(st.sets(st.sampled_from(sorted(fields))))
    definition = {**copy.deepcopy(BASE), **{name: draw(fields[name]) for name in chosen}}
    if "expires" in chosen or "deadline" in chosen or "created" in chosen:
        start = draw(st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1))).replace(tzinfo=UTC)  # noqa: DTZ001 - likewise
        life = draw(st.timedeltas(timedelta(), timedelta(days=5)))
        definition["created"], definition["deadline"] = format_date(start), format_date(start + life)
        if "expires" in chosen:
            definition["expires"] = format_date(start + life + draw(st.timedeltas(timedelta(), timedelta(days=400))))
    if "taskQueueId" in chosen:
        provisioner, worker_type = definition["taskQueueId"].split("/")
        definition |= {"provisionerId": provisioner} if "provisionerId" in chosen else {}
        definition |= {"workerType": worker_type} if "workerType" in chosen else {}
    elif "provisionerId" in chosen and "workerType" in chosen:
        del definition["taskQueueId"]
    else:
        definition.pop("provisionerId", None)
        definition.pop("workerType", None)
    if spoil:
        name = draw(st.sampled_from([*sorted(fields), "unknown"]))
        definition[name] = draw(
            anything
            | st.lists(anything, max_size=2)
            | st.text("aZ/-9*\n", max_size=5)
            | st.sampled_from([5.5, 50, -1, "Q" * 22, TASK + "\n", "a/b\n", [TASK, TASK], "2030-01-31", "1900000000"])
        )
    return definition


@settings(max_examples=60, deadline=None)
@given(definitions())
def test_what_is_fine_is_accepted_and_completed_as_the_queue_does(definition: dict[str, Any]) -> None:
    assume(len(set(definition.get("routes", []))) == len(definition.get("routes", [])))
    assume(len(set(definition.get("dependencies", []))) == len(definition.get("dependencies", [])))
    assume(not any(scope.endswith("**") for scope in definition.get("scopes", [])))
    assert is_valid(definition, SCHEMA)
    before = copy.deepcopy(definition)
    completed = complete(TASK, definition)
    assert definition == before
    now = parse(definition["created"])
    assert now is not None
    assert completed == checks.complete(TASK, definition, now)
    assert is_valid(completed, SCHEMA)
    assert complete(TASK, completed) == completed


@settings(max_examples=100, deadline=None)
@given(definitions(spoil=True))
def test_what_we_accept_the_schema_accepts(definition: dict[str, Any]) -> None:
    if accepts(definition):
        assert is_valid(definition, SCHEMA)
        now = parse(definition["created"])
        assert now is not None
        checks.complete(TASK, definition, now)


# By hand

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"unknown": 1}, "unknown"),
    ({"payload": None}, "payload"),
    ({"metadata": {}}, r"metadata\.name|name"),
    ({"metadata": {**BASE["metadata"], "source": "ftp://x"}}, "source"),
    ({"metadata": {**BASE["metadata"], "name": "x" * 256}}, "name"),
    ({"metadata": {**BASE["metadata"], "more": 1}}, "more"),
    ({"taskQueueId": None}, "null: leave it out"),
    ({"expires": None}, "expires is null: leave it out"),
    ({"taskQueueId": "prov"}, "taskQueueId"),
    ({"taskQueueId": "prov/W"}, "taskQueueId"),
    ({"workerType": "x"}, "workerType x is not that of taskQueueId prov/w"),
    ({"provisionerId": "x"}, "provisionerId x is not that of taskQueueId prov/w"),
    ({"schedulerId": ""}, "schedulerId"),
    ({"projectId": "a b"}, "projectId"),
    ({"taskGroupId": "short"}, "taskGroupId"),
    ({"dependencies": [OTHER, OTHER]}, "dependencies names something twice"),
    ({"dependencies": [OTHER + "\n"]}, "dependencies"),
    ({"routes": ["a", "a"]}, "routes names something twice"),
    ({"routes": ["a" * 250]}, "routes"),
    ({"routes": [str(n) for n in range(65)]}, "routes"),
    ({"routes": [""]}, "routes"),
    ({"scopes": ["ä"]}, "scopes"),
    ({"scopes": ["a**"]}, r"scope a\*\* ends in more than one \*"),
    ({"retries": 50}, "retries"),
    ({"retries": "5"}, "retries"),
    ({"retries": True}, "retries"),
    ({"priority": "normal"}, "priority"),
    ({"tags": {"a": 1}}, "tags"),
    ({"created": "2030-01-30"}, "'2030-01-30' is no date-time"),
    ({"created": "1900000000"}, "'1900000000' is no date-time"),
    ({"created": 1_900_000_000}, "created"),
    ({"created": "2030-01-30T12:00:00"}, "is no date-time"),
    ({"created": "2030-02-30T12:00:00Z"}, "is no date-time"),
    ({"created": f"2030-01-30T12:00:00.{'0' * 31}Z"}, "is no date-time"),
    ({"created": "0001-01-01T00:00:00+05:00"}, "is no date-time"),
    ({"expires": "9999-12-31T00:00:00Z"}, "'9999-12-31T00:00:00Z' is no date-time"),
    ({"deadline": "2030-01-30T11:59:59.999Z"}, "must be within 5 days after created"),
    ({"deadline": "2030-02-04T12:00:00.001Z"}, "must be within 5 days after created"),
    ({"expires": "2030-01-31T11:00:00Z"}, "is before deadline"),
]


@pytest.mark.parametrize(("change", "named"), WRONG)
def test_what_is_wrong_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        complete(TASK, {**BASE, **change})


@pytest.mark.parametrize("missing", ["created", "deadline", "payload", "metadata", "taskQueueId"])
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        complete(TASK, {key: value for key, value in BASE.items() if key != missing})


def keys_of_a_definition() -> set[str | None]:
    return {field.alias for field in TaskDefinition.model_fields.values()}


def test_every_field_of_the_schema_is_known() -> None:
    assert keys_of_a_definition() == set(CREATE_TASK["properties"])
    assert keys_of_a_definition() == set(fields)


@pytest.mark.published
def test_every_field_of_the_published_schema_is_known() -> None:
    assert keys_of_a_definition() == set(read_published(f"taskcluster/schemas/{SCHEMA}")["properties"])


def test_definitions_of_a_queue_are_complete_already() -> None:
    complete_already(EVENTS)


@pytest.mark.published
def test_real_definitions_are_complete_already() -> None:
    complete_already(read_published("pulse/task-events.json"))


def complete_already(events: list[dict[str, Any]]) -> None:
    """Check this but for two keys that the queue of 2019, when they were recorded, did not have."""
    for event in events:
        definition = event["task"]
        whole = complete(TASK, definition)
        assert {key: whole[key] for key in definition} == definition
        assert authority_differences(definition, whole) == ["projectId", "taskQueueId"]


def test_nulls_inside_the_payload_survive() -> None:
    payload = {"env": {"A": None}, "list": [None, {}], "n": 1.0}
    whole = complete(TASK, {**BASE, "payload": payload, "extra": {"treeherder": None}})
    assert whole["payload"] == payload
    assert whole["extra"] == {"treeherder": None}


def test_a_leap_day_expires_on_the_first_of_march() -> None:
    dates = {"created": "2028-02-28T12:00:00.000Z", "deadline": "2028-02-29T12:00:00.000Z"}
    assert complete(TASK, {**BASE, **dates})["expires"] == "2029-03-01T12:00:00.000Z"


@given(st.datetimes(datetime(1970, 1, 1), datetime(9997, 1, 1)))  # noqa: DTZ001 - hypothesis wants naive bounds
def test_stamps_are_dates_in_milliseconds(at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    assert timedelta() <= at - parse_date(format_date(at)) < timedelta(milliseconds=1)
    assert len(format_date(at)) == 24


def test_dates_with_an_offset() -> None:
    assert format_date(parse_date("2030-01-30T12:00:00.1239+05:30")) == "2030-01-30T06:30:00.123Z"


# What stands there, and moving on


WHOLE = complete(TASK, BASE)


def test_what_an_earlier_attempt_made_otherwise_is_no_difference() -> None:
    others = {"priority": "high", "tags": {"a": "b"}, "payload": {}, "metadata": {}, "extra": {"x": 1}, "retries": 9}
    existing = {**WHOLE, **others, **dict.fromkeys(("created", "deadline", "expires"), "2031-01-01T00:00:00Z")}
    assert authority_differences(WHOLE, existing) == []


@pytest.mark.parametrize("key", ["schedulerId", "taskGroupId", "projectId", "taskQueueId", "routes", "scopes"])
def test_what_stands_for_authority_is(key: str) -> None:
    value = ["else"] if isinstance(WHOLE[key], list) else "else"
    assert authority_differences(WHOLE, {**WHOLE, key: value}) == [key]
    assert authority_differences(WHOLE, {k: v for k, v in WHOLE.items() if k != key}) == [key]


def test_the_order_of_routes_and_scopes_means_nothing() -> None:
    plan = {**WHOLE, "routes": ["a", "b"], "scopes": ["c", "d"]}
    assert authority_differences(plan, {**plan, "routes": ["b", "a"], "scopes": ["d", "c"]}) == []
    assert authority_differences(plan, {**plan, "routes": ["a", "b", "b"]}) == ["routes"]


def test_move_moves_every_date_and_nothing_else() -> None:
    payload = {
        "artifacts": {
            "public/a": {"path": "a", "expires": "2030-03-01T00:00:00.000Z"},
            "public/b": {"path": "b"},
            "public/c": {"expires": "when it is over"},
            "public/d": "odd",
        },
        "expires": "2030-03-01T00:00:00.000Z",
        "none": None,
    }
    plan = complete(TASK, {**BASE, "payload": payload})
    before = json.dumps(plan)
    moved = move_dates(plan, timedelta(minutes=20))
    assert json.dumps(plan) == before
    assert moved["created"] == "2030-01-30T12:20:00.000Z"
    assert moved["deadline"] == "2030-01-31T12:20:00.000Z"
    assert moved["expires"] == "2031-01-31T12:20:00.000Z"
    artifacts = moved["payload"]["artifacts"]
    assert artifacts["public/a"] == {"path": "a", "expires": "2030-03-01T00:20:00.000Z"}
    assert {k: artifacts[k] for k in ("public/b", "public/c", "public/d")} == {
        "public/b": {"path": "b"},
        "public/c": {"expires": "when it is over"},
        "public/d": "odd",
    }
    assert moved["payload"]["expires"] == payload["expires"]
    assert authority_differences(plan, moved) == []
    assert is_valid(moved, SCHEMA)


@given(delta=st.timedeltas(timedelta(), timedelta(days=30)))
def test_what_was_moved_is_still_a_definition(delta: timedelta) -> None:
    assert complete(TASK, move_dates(WHOLE, delta))["schedulerId"] == "-"


# The order of creation


def ids(count: int) -> list[str]:
    return [slugid(b"k" * 32, str(number)) for number in range(count)]


@settings(max_examples=40)
@given(st.integers(0, 30), st.randoms(use_true_random=False))
def test_each_task_comes_after_its_dependencies(count: int, chance: random.Random) -> None:
    order = ids(count)
    chance.shuffle(order)
    definitions = {
        order[number]: {"dependencies": chance.sample(order[:number], chance.randint(0, min(number, 4)))}
        for number in chance.sample(range(count), count)
    }
    for definition in definitions.values():
        definition["dependencies"].append(OTHER)
    order_found = sort_by_dependencies(definitions)
    assert sorted(order_found) == sorted(definitions)
    place = {task_id: position for position, task_id in enumerate(order_found)}
    for task_id, definition in definitions.items():
        assert all(place[d] < place[task_id] for d in definition["dependencies"] if d in place)


def test_otherwise_as_they_stood() -> None:
    order = ids(20)
    assert sort_by_dependencies({task_id: {"dependencies": []} for task_id in order}) == order
    assert (
        sort_by_dependencies(
            {task_id: {"dependencies": [order[0]] if task_id != order[0] else []} for task_id in order}
        )
        == order
    )


@given(st.integers(2, 10), st.randoms(use_true_random=False))
def test_a_cycle_is_named(count: int, chance: random.Random) -> None:
    order = ids(count + 5)
    definitions: dict[str, dict[str, Any]] = {task_id: {"dependencies": []} for task_id in order}
    cycle = chance.sample(order, count)
    for one, other in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        definitions[one]["dependencies"] = [other]
    with pytest.raises(CycleError, match="depend on each other in a cycle") as refused:
        sort_by_dependencies(definitions, allow_self=chance.random() < 0.5)
    named = refused.value.cycle
    assert set(named) == set(cycle)
    assert all(definitions[one]["dependencies"] == [other] for one, other in itertools.pairwise(named))


def test_a_task_may_wait_for_itself_where_that_is_wanted() -> None:
    """Until it is scheduled by hand; the queue takes it."""
    (one,) = ids(1)
    waiting = {one: {"dependencies": [one]}}
    assert sort_by_dependencies(waiting, allow_self=True) == [one]
    with pytest.raises(CycleError) as refused:
        sort_by_dependencies(waiting)
    assert refused.value.cycle == [one]


def test_long_chains_and_wide_graphs_are_ordered_at_once() -> None:
    order = ids(5_000)
    chain = {one: {"dependencies": [other]} for one, other in itertools.pairwise(order)}
    chain[order[-1]] = {"dependencies": []}
    wide = {task_id: {"dependencies": order[:1]} for task_id in order[1:]} | {order[0]: {"dependencies": []}}
    began = time.thread_time()
    assert sort_by_dependencies(chain) == order[::-1]
    assert sort_by_dependencies(wide)[0] == order[0]
    assert time.thread_time() - began < 3

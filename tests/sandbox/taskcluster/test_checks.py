"""Checks of requests, compared with our own schemas and, where they are available, with the published ones."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.taskcluster import checks
from sandbox.taskcluster.clock import DAY, HOUR, MINUTE, iso, parse
from sandbox.taskcluster.errors import ApiError
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.models import CREATE_TASK
from tests.sandbox.taskcluster.support import is_valid, validate

NOW = parse("2026-11-24T12:00:00.000Z") or 0
SLUG = "VGQ1aNKBRaGLWb_o_S9cQA"
DEFINITION: dict[str, Any] = {
    "provisionerId": "prov",
    "workerType": "w",
    "created": iso(NOW),
    "deadline": iso(NOW + HOUR),
    "payload": {},
    "metadata": {"name": "n", "description": "d", "owner": "o", "source": "https://x"},
}
ODD: list[Any] = [
    *(None, True, 0, -1, 1.0, 1.5, 49, 50, "", "a", "A", "-", "a-", "0a", "a" * 38, "a" * 39, "a/b", "a/B", "a" * 249),
    *("a" * 250, "a" * 255, "a" * 256, "a" * 500, "a" * 501, "a" * 4096, "a" * 4097, "é", "a b", "\na", "a**", "\x7f"),
    *(SLUG, SLUG[:-1], SLUG[:-1] + "B", "all-completed", "all-resolved", "lowest", "highest", "normal", "low"),
    *("2026-11-24T12:00:00Z", "2026-11-24", "2026-13-24T12:00:00Z", "http://x", "git@x", "ssh://x", "ftp://x"),
    *([], ["a"], ["a", "a"], [1], [""], [SLUG], [SLUG, SLUG], ["é"], [None], [str(n) for n in range(64)]),
    *([str(n) for n in range(65)], {}, {"a": "b"}, {"a": 1}, {"a": "b" * 4097}, DEFINITION["metadata"]),
]


def accepts(schema: checks.Schema, value: Any) -> bool:
    try:
        schema.check(value)
    except ApiError as error:
        return error.code != "InputValidationError"
    return True


PROPERTIES = sorted(checks.CREATE_TASK.properties)


def test_the_properties_of_a_definition_are_those_of_the_schema() -> None:
    assert sorted(CREATE_TASK["properties"]) == PROPERTIES


@pytest.mark.published
def test_the_properties_of_a_definition_are_the_published_ones() -> None:
    assert sorted(read_published("taskcluster/schemas/queue/v1/create-task-request.json")["properties"]) == PROPERTIES


@pytest.mark.parametrize("name", ["provisionerId", "workerType", "schedulerId", "projectId"])
def test_a_line_feed_at_the_end_is_no_part_of_a_name(name: str) -> None:
    assert not accepts(
        checks.CREATE_TASK, {**DEFINITION, name: "a\n"}
    )  # as in JavaScript; Python's `$` would let it pass


@given(
    changes=st.dictionaries(st.sampled_from([*PROPERTIES, "unknown"]), st.sampled_from(ODD), min_size=1, max_size=2),
    without=st.sets(st.sampled_from(sorted(DEFINITION)), max_size=1),
)
def test_definitions_are_valid_when_the_schema_says_so(changes: dict[str, Any], without: set[str]) -> None:
    definition = {key: value for key, value in {**DEFINITION, **changes}.items() if key not in without}
    assert accepts(checks.CREATE_TASK, definition) == is_valid(definition, "queue/v1/create-task-request.json")


@given(changes=st.dictionaries(st.sampled_from(["name", "description", "owner", "source", "x"]), st.sampled_from(ODD)))
def test_metadata_is_valid_when_the_schema_says_so(changes: dict[str, Any]) -> None:
    definition = {**DEFINITION, "metadata": {**DEFINITION["metadata"], **changes}}
    assert accepts(checks.CREATE_TASK, definition) == is_valid(definition, "queue/v1/create-task-request.json")


@pytest.mark.parametrize("prop", PROPERTIES)
def test_each_property_is_checked_with_each_odd_value(prop: str) -> None:
    outcomes = set()
    for value in ODD:
        definition = {**DEFINITION, prop: value}
        expected = is_valid(definition, "queue/v1/create-task-request.json")
        assert accepts(checks.CREATE_TASK, definition) == expected, value
        outcomes.add(expected)
    assert outcomes == {True, False}


@pytest.mark.parametrize("count", [10_000, 10_001])
def test_a_task_has_at_most_10000_dependencies(count: int) -> None:
    dependencies = [f"{n:08d}RaGLWb_o_S9cQA"[:22] for n in range(count)]
    assert len(set(dependencies)) == count
    assert accepts(checks.CREATE_TASK, {**DEFINITION, "dependencies": dependencies}) is (count == 10_000)


SMALL = [
    (checks.TASKS, "queue/v1/tasks-request.json", {"taskIds": ["x"]}),
    (checks.CLAIM_TASK, "queue/v1/task-claim-request.json", {"workerGroup": "g", "workerId": "w"}),
    (checks.CLAIM_WORK, "queue/v1/claim-work-request.json", {"workerGroup": "g", "workerId": "w", "tasks": 32}),
    (checks.EXCEPTION, "queue/v1/task-exception-request.json", {"reason": "worker-shutdown"}),
    (checks.CHANGE_PRIORITY, "queue/v1/change-task-priority-request.json", {"newPriority": "low"}),
    (checks.FINISH_ARTIFACT, "queue/v1/finish-artifact-request.json", {"uploadId": SLUG}),
    (
        checks.AUTHENTICATE_HAWK,
        "auth/v1/authenticate-hawk-request.json",
        {"method": "get", "resource": "/", "host": "h", "port": 80, "sourceIp": "::1", "authorization": "x"},
    ),
]


@pytest.mark.parametrize(("schema", "name", "good"), SMALL, ids=[name for _, name, _ in SMALL])
def test_small_requests_are_valid_when_the_schema_says_so(
    schema: checks.Schema, name: str, good: dict[str, Any]
) -> None:
    validate(good, name)
    assert accepts(schema, good)
    assert not accepts(schema, [])
    assert not accepts(schema, {**good, "unknown": 1})
    for prop in good:
        for value in [*ODD, "127.0.0.1", 33, 65535, 65536, "superseded", "claim-expired", "internal-error"]:
            if (prop, value) == ("host", ""):
                continue  # the schema asks for a host name, which the validator here does not know
            changed = {**good, prop: value}
            assert accepts(schema, changed) == is_valid(changed, name), (prop, value)
        missing = {key: value for key, value in good.items() if key != prop}
        if prop != "tasks":  # has a default, which the real queue fills in first
            assert accepts(schema, missing) == is_valid(missing, name), prop


ARTIFACTS: list[dict[str, Any]] = [
    {"storageType": "s3", "expires": iso(NOW), "contentType": "text/plain", "contentLength": 5},
    {"storageType": "object", "expires": iso(NOW), "contentType": "text/plain"},
    {"storageType": "reference", "expires": iso(NOW), "contentType": "text/plain", "url": "https://x"},
    {"storageType": "link", "expires": iso(NOW), "artifact": "public/x"},
    {"storageType": "error", "expires": iso(NOW), "reason": "file-missing-on-worker", "message": "gone"},
]


@pytest.mark.parametrize("good", ARTIFACTS, ids=lambda good: good["storageType"])
def test_artifact_requests_are_valid_when_the_schema_says_so(good: dict[str, Any]) -> None:
    name = "queue/v1/post-artifact-request.json"
    changes: list[dict[str, Any]] = [
        {},
        {"unknown": 1},
        *({prop: value} for prop in good for value in (None, 5, "x", "a" * 4097)),
    ]
    changes += [{"storageType": "s3"}, {"storageType": "link"}, {"storageType": []}]
    for change in changes:
        changed = {**good, **change}
        try:
            checks.check_artifact(changed)
        except ApiError:
            assert not is_valid(changed, name), change
        else:
            assert is_valid(changed, name), change


# --- completing ---


def test_a_definition_is_completed_as_the_queue_does() -> None:
    completed = checks.complete(SLUG, DEFINITION, NOW)
    validate(completed, "queue/v1/task.json")
    assert completed == {
        **DEFINITION,
        "taskQueueId": "prov/w",
        "schedulerId": "-",
        "projectId": "none",
        "taskGroupId": SLUG,
        "dependencies": [],
        "requires": "all-completed",
        "routes": [],
        "priority": "lowest",
        "retries": 5,
        "scopes": [],
        "tags": {},
        "extra": {},
        "expires": "2027-11-24T13:00:00.000Z",
    }


@pytest.mark.published
def test_defaults_are_the_published_ones() -> None:
    completed = checks.complete(SLUG, DEFINITION, NOW)
    defaults = read_published("taskcluster/schemas/queue/v1/create-task-request.json")["properties"]
    for name, prop in defaults.items():
        if "default" in prop and name != "payload":
            assert completed[name] == prop["default"]


def test_dates_are_kept_in_the_queues_form() -> None:
    dates = {
        "created": "2026-11-24T12:00:00Z",
        "deadline": "2026-11-24T14:00:00+01:00",
        "expires": "2026-12-01T00:00:00.1Z",
    }
    completed = checks.complete(SLUG, {**DEFINITION, **dates}, NOW)
    assert [completed[name] for name in dates] == [
        "2026-11-24T12:00:00.000Z",
        "2026-11-24T13:00:00.000Z",
        "2026-12-01T00:00:00.100Z",
    ]


@pytest.mark.parametrize(
    ("given_", "queue"),
    [
        ({"provisionerId": "p", "workerType": "w"}, ("p", "w", "p/w")),
        ({"taskQueueId": "p/w"}, ("p", "w", "p/w")),
        ({"taskQueueId": "p/w", "provisionerId": "p"}, ("p", "w", "p/w")),
        ({"taskQueueId": "p/w", "provisionerId": "p", "workerType": "w"}, ("p", "w", "p/w")),
        ({"taskQueueId": "p/w", "workerType": "x"}, None),
        ({"taskQueueId": "p/w", "provisionerId": "x"}, None),
        ({"provisionerId": "p"}, None),
        ({"workerType": "w"}, None),
        ({}, None),
    ],
)
def test_the_task_queue_is_named_in_one_of_two_ways(given_: dict[str, str], queue: tuple[str, ...] | None) -> None:
    rest = {key: value for key, value in DEFINITION.items() if key not in ("provisionerId", "workerType")}
    if queue is None:
        with pytest.raises(ApiError) as refused:
            checks.complete(SLUG, {**rest, **given_}, NOW)
        assert refused.value.code == "InputError"
        return
    completed = checks.complete(SLUG, {**rest, **given_}, NOW)
    assert tuple(completed[name] for name in ("provisionerId", "workerType", "taskQueueId")) == queue


@pytest.mark.parametrize(
    ("created", "deadline", "expires", "problem"),
    [
        (0, HOUR, 2 * HOUR, None),
        (-15 * MINUTE, HOUR, HOUR, None),
        (-15 * MINUTE - 1, HOUR, None, "cannot be in the past"),
        (15 * MINUTE, HOUR, None, None),
        (15 * MINUTE + 1, HOUR, None, "cannot be in the future"),
        (0, 5 * DAY, None, None),
        (0, 5 * DAY + 1, None, "5 days"),
        (-MINUTE, 5 * DAY, None, "5 days"),
        (-MINUTE, 0, None, None),
        (-MINUTE, -1, None, "`deadline` .* in the past"),
        (10 * MINUTE, 9 * MINUTE, None, "before `created`"),
        (0, HOUR, HOUR - 1, "before `deadline`"),
    ],
)
def test_dates_keep_their_order(created: int, deadline: int, expires: int | None, problem: str | None) -> None:
    definition = {**DEFINITION, "created": iso(NOW + created), "deadline": iso(NOW + deadline)}
    if expires is not None:
        definition["expires"] = iso(NOW + expires)
    if problem is None:
        checks.complete(SLUG, definition, NOW)
        return
    with pytest.raises(ApiError, match=problem) as refused:
        checks.complete(SLUG, definition, NOW)
    assert refused.value.code == "InputError"


def test_a_scope_ends_in_one_star_at_most() -> None:
    checks.complete(SLUG, {**DEFINITION, "scopes": ["a:*"]}, NOW)
    with pytest.raises(ApiError, match=r"a:\*\*"):
        checks.complete(SLUG, {**DEFINITION, "scopes": ["a:**"]}, NOW)


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\0b", False), ("\\u0000", True), ("\\\0", False), ("\udce9", False), ("😀", True), ("\x01", True)],
)
def test_what_jsonb_cannot_hold_is_an_internal_error(text: str, stored: bool) -> None:
    for where in ({"payload": {"x": [text]}}, {"extra": {text: 1}}, {"metadata": {"name": text}}):
        if stored:
            checks.check_storable(where)
            continue
        with pytest.raises(ApiError) as refused:
            checks.check_storable(where)
        assert refused.value.status == 500


@pytest.mark.parametrize(
    ("parameters", "good"),
    [
        ({"taskId": SLUG, "runId": "0"}, True),
        ({"taskId": SLUG[:-1] + "B"}, False),
        ({"taskId": SLUG + "A"}, False),
        ({"taskGroupId": "x"}, False),
        ({"runId": "01"}, False),
        ({"runId": "1000"}, True),
        ({"runId": "1001"}, False),
        ({"taskQueueId": "a/b"}, True),
        ({"taskQueueId": "a"}, False),
        ({"name": "public/é"}, False),
    ],
)
def test_path_parameters_have_their_form(parameters: dict[str, str], good: bool) -> None:
    if good:
        checks.check_parameters(parameters)
        return
    with pytest.raises(ApiError, match="must match regular expression") as refused:
        checks.check_parameters(parameters)
    assert refused.value.code == "InvalidRequestArguments"


@pytest.mark.parametrize(("limit", "size"), [(None, 1000), ("0", 1), ("7", 7), ("5000", 1000)])
def test_a_page_has_at_most_1000_entries(limit: str | None, size: int) -> None:
    assert checks.page_size(limit) == size


def test_a_limit_is_a_number() -> None:
    with pytest.raises(ApiError, match="limit"):
        checks.page_size("-1")


def test_not_a_number_is_no_integer() -> None:
    assert not accepts(checks.CREATE_TASK, {**DEFINITION, "retries": math.nan})

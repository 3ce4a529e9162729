"""Our schemas, compared with the published ones and with recorded messages, and by examples."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from sandbox.taskcluster.tasks import Message
from tests.published_schemas import published_folder, read_published
from tests.sandbox.taskcluster.models import ANSWERS, MESSAGES, REQUESTS, SCHEMAS
from tests.sandbox.taskcluster.support import is_published, is_valid, spoiled, validate_message

SLUG = "VGQ1aNKBRaGLWb_o_S9cQA"
AT = "2031-05-06T07:08:09.123Z"
VALUES = {"date-time": AT, "ipv4": "192.0.2.1"}
WORDS = ("w", "a/w", SLUG, "https://x.example", "")

UNPUBLISHED = {"auth/v1/scopeset.json", "auth/v1/get-client-response.json"}
"""Schemas that there is nothing to compare with."""

OPEN = {"hooks/v1/trigger-hook.json"}
"""Schemas that any object fits."""


def example(schema: dict[str, Any], whole: bool) -> Any:
    """Return a valid value of the schema; `whole` with all optional properties."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        names = schema.get("properties", {}) if whole else schema.get("required", ())
        return {name: example(schema["properties"][name], whole) for name in names}
    if schema.get("type") == "array":
        return [example(schema["items"], whole)]
    if schema.get("type") in {"boolean", "integer"}:
        return schema.get("minimum", False)
    kind = schema.get("format") or schema.get("anyOf", [{}])[0].get("format")
    if kind is not None:
        return VALUES[kind]
    return next(word for word in WORDS if jsonschema.Draft7Validator(schema).is_valid(word))


def variants(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield valid values: whole and bare, of each alternative."""
    for alternative in schema.get("oneOf", [schema]):
        for whole in (True, False):
            yield example(alternative, whole)


def test_every_method_and_message_names_a_schema() -> None:
    assert {*REQUESTS.values(), *ANSWERS.values(), *MESSAGES.values()} | {"queue/v1/task-status.json"} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_examples_are_valid_and_others_are_not(name: str) -> None:
    for value in variants(SCHEMAS[name]):
        assert is_valid(value, name)
        assert is_valid({**value, "unknown": 1}, name) == (name in OPEN)
        assert not is_valid([value], name)


@pytest.mark.published
@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in UNPUBLISHED])
def test_ours_and_the_published_schema_take_the_same(name: str) -> None:
    assert is_published(name)
    outcomes = set()
    for value in variants(SCHEMAS[name]):
        for changed in (*spoiled(value), [value]):
            outcomes.add(is_valid(changed, name))  # compares
    assert False in outcomes


@pytest.mark.published
def test_exchanges_and_their_schemas_are_the_published_ones() -> None:
    entries = read_published("taskcluster/references/queue/v1/exchanges.json")["entries"]
    assert {entry["exchange"]: f"queue/{entry['schema'].removesuffix('#')}" for entry in entries} == MESSAGES


@pytest.mark.published
def test_recorded_messages_are_valid() -> None:
    paths = sorted((published_folder() / "pulse" / "queue-messages").glob("*.json"))
    assert paths
    for path in paths:
        recorded = read_published(f"pulse/queue-messages/{path.name}")
        validate_message(Message(recorded["exchange"], recorded["routingKey"], (), recorded["payload"]))
        assert {key: recorded["properties"][key] for key in ("content_type", "content_encoding", "delivery_mode")} == {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        }

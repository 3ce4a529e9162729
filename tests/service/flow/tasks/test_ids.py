"""Derived task ids."""

import base64
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from service.clock import now
from service.flow.tasks.definition import SLUGID
from service.flow.tasks.ids import copy_ids, graph_ids, slugid
from service.services import make_secret
from service.store.database import Database
from service.store.models import Action, Push, Repository, Secret, Source
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.models import TASK

NICE = re.compile(r"[A-Za-f][A-Za-z0-9_-]{7}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]")

keys = st.binary(min_size=32, max_size=32)
labels = st.text(st.characters(exclude_categories=()))


def test_the_pattern_is_that_of_the_schema() -> None:
    assert TASK["properties"]["taskGroupId"]["pattern"] == SLUGID


@pytest.mark.published
def test_the_pattern_is_the_published_one() -> None:
    assert read_published("taskcluster/schemas/queue/v1/task.json")["properties"]["taskGroupId"]["pattern"] == SLUGID


@given(keys, labels)
def test_always_a_nice_slugid(key: bytes, label: str) -> None:
    derived = slugid(key, label)
    assert re.fullmatch(SLUGID, derived)
    assert NICE.fullmatch(derived)
    decoded = uuid.UUID(bytes=base64.urlsafe_b64decode(derived + "=="))
    assert (decoded.version, decoded.variant) == (4, uuid.RFC_4122)
    assert slugid(key, label) == derived


@given(keys, labels, keys, labels)
def test_other_keys_and_labels_give_other_ids(key: bytes, label: str, other_key: bytes, other_label: str) -> None:
    same = (key, label) == (other_key, other_label)
    assert (slugid(key, label) == slugid(other_key, other_label)) == same


def test_all_bits_but_those_of_the_form_are_used() -> None:
    ids = [uuid.UUID(bytes=base64.urlsafe_b64decode(slugid(b"k", str(n)) + "==")).int for n in range(2_000)]
    ones, zeros = 0, 0
    for task_id in ids:
        ones |= task_id
        zeros |= ~task_id & (2**128 - 1)
    assert bin(ones & zeros).count("1") == 128 - 1 - 4 - 2


def test_an_id_stays_what_it_is() -> None:
    """A plan that is made again after an upgrade must have the same ids."""
    assert slugid(bytes(32), "a", 1) == "f45YuVf5Tj-h9yb2grmcCg"
    derive = graph_ids(bytes(32), "tc-treeherder", *subject(), 0, "graph")
    assert derive("decision") == "BPWdY9FvQQ-qp-ORnTw3qQ"
    action = Action(key="4f1c", kind="retrigger", project="mc", task_id="x", requester="", source=Source.API, lane="")
    assert copy_ids(bytes(32), action, 0)("old") == "NWbWJNgVSwOZWllU_Fy0gw"


def subject(
    url: str = "https://hg.mozilla.org/mc", generation: int = 0, push_id: int = 7, tip: str | None = None
) -> tuple[Repository, Push]:
    repository = Repository(alias="mc", url=url, host="hg.mozilla.org", level="1", last_push_id=0)
    values: dict[str, Any] = {"user": "", "date": now(), "revision": tip, "revision_hash": "", "changesets": []}
    push = Push(repository_id=1, generation=generation, push_id=push_id, nodes=[], **values)
    return repository, push


def test_every_part_of_a_push_makes_another_id() -> None:
    variants = [
        graph_ids(secret, deployment, *subject(url, generation, push_id, tip), attempt, kind)("label")
        for secret in (b"a" * 32, b"b" * 32)
        for deployment in ("production", "staging")
        for url in ("https://hg.mozilla.org/mc", "https://hg.mozilla.org/mc2")
        for generation in (0, 1, 11)
        for push_id in (1, 11)
        for tip in (None, "a" * 40, "b" * 40)
        for attempt in (0, 1, 11)
        for kind in ("graph", "error")
    ]
    assert len(set(variants)) == len(variants)


def test_every_part_of_an_action_makes_another_id() -> None:
    def action(**fields: Any) -> Action:
        values = {
            "kind": "retrigger",
            "project": "mc",
            "task_id": "x",
            "requester": "",
            "source": Source.API,
            "lane": "",
        }
        return Action(**{**values, **fields})

    one, other = action(id=1), action(id=1)  # a restored database gives numbers out again
    ids = {copy_ids(b"k", action, attempt)(old) for action in (one, other) for attempt in (0, 1) for old in ("a", "b")}
    assert len(ids) == 8


async def test_a_secret_is_made_once(database: Database) -> None:
    for _ in range(2):
        async with database.writing() as session:
            await make_secret(session, "a")
            await make_secret(session, "b")
    async with database.reading() as session:
        secrets = {secret.name: secret for secret in await session.exec(select(Secret))}
    assert set(secrets) == {"a", "b"}
    assert secrets["a"].value != secrets["b"].value
    assert len(secrets["a"].value) == 32
    for shown in (repr(secrets["a"]), str(secrets["a"])):
        assert repr(secrets["a"].value) not in shown
        assert "a" in shown

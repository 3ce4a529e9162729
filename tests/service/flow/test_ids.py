"""Derived task ids."""

import base64
import re
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from service.database import Database, now
from service.flow.definition import SLUGID
from service.flow.ids import make_secret, push_key, slugid
from service.models import Push, Repository, Secret
from tests.facts import fact

NICE = re.compile(r"[A-Za-f][A-Za-z0-9_-]{7}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]")

keys = st.binary(min_size=32, max_size=32)
labels = st.text(st.characters(exclude_categories=()))


def test_the_pattern_is_the_published_one() -> None:
    assert fact("taskcluster/schemas/queue/v1/task.json")["properties"]["taskGroupId"]["pattern"] == SLUGID


@given(keys, labels)
def test_always_a_nice_slugid(key: bytes, label: str) -> None:
    made = slugid(key, label)
    assert re.fullmatch(SLUGID, made)
    assert NICE.fullmatch(made)
    decoded = uuid.UUID(bytes=base64.urlsafe_b64decode(made + "=="))
    assert (decoded.version, decoded.variant) == (4, uuid.RFC_4122)
    assert slugid(key, label) == made


@given(keys, labels, keys, labels)
def test_other_keys_and_labels_give_other_ids(key: bytes, label: str, other_key: bytes, other_label: str) -> None:
    same = (key, label) == (other_key, other_label)
    assert (slugid(key, label) == slugid(other_key, other_label)) == same


def test_all_bits_but_those_of_the_form_are_used() -> None:
    ids = [uuid.UUID(bytes=base64.urlsafe_b64decode(slugid(b"k", str(n)) + "==")).int for n in range(2_000)]
    ones, zeros = 0, 0
    for each in ids:
        ones |= each
        zeros |= ~each & (2**128 - 1)
    assert bin(ones & zeros).count("1") == 128 - 1 - 4 - 2


def test_an_id_stays_what_it_is() -> None:
    """Ids of plans that are stored must come out again after an upgrade."""
    assert slugid(bytes(32), "decision") == "JmoOsZekTX-ZWyelvchQvA"
    assert (
        push_key(bytes(32), *subject(), 0).hex() == "301b84e9526a46bb1d121dbb2b0a27dffb19862f6eb27e93dd89b08fcf1b43ed"
    )


def subject(url: str = "https://hg.mozilla.org/mc", generation: int = 0, push_id: int = 7) -> tuple[Repository, Push]:
    repository = Repository(alias="mc", url=url, host="hg.mozilla.org", level="1", last_push_id=0)
    values: dict[str, Any] = {"user": "", "date": now(), "revision": None, "revision_hash": "", "changesets": []}
    push = Push(repository_id=1, generation=generation, push_id=push_id, nodes=[], **values)
    return repository, push


def test_every_part_of_a_push_makes_another_key() -> None:
    variants = [
        push_key(secret, *subject(url, generation, push_id), attempt)
        for secret in (b"a" * 32, b"b" * 32)
        for url in ("https://hg.mozilla.org/mc", "https://hg.mozilla.org/mc2")
        for generation in (0, 1, 11)
        for push_id in (1, 11)
        for attempt in (0, 1, 11)
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(key) == 32 for key in variants)


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

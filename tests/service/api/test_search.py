"""A text is understood, and what it names is found."""

from typing import Any

import pytest

from service.api.search import Match, search, understand
from tests.service.api.test_tasks import COPY, OURS, PLANNED, stored
from tests.service.asgi import Api, node, push_event

HG = "https://hg.mozilla.org/integration/autoland"
NODE = "3d0f1c5b2a4e6978869504132231405f6e7d8c9b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3D0F1C5B", {"revision": "3d0f1c5b", "user": "3D0F1C5B"}),
        ("3d0f1c5", {"revision": None, "alias": "3d0f1c5"}),
        (f" {OURS} ", {"task_id": OURS}),
        ("mc/101", {"push": ("mc", 101)}),
        ("mc/99999999999", {"push": None}),
        ("dev@example.com", {"user": "dev@example.com", "alias": "dev@example.com"}),
        (f"https://treeherder.mozilla.org/jobs?repo=mc&revision={NODE}", {"revision": NODE, "alias": "mc"}),
        (f"https://treeherder.mozilla.org/#/jobs?repo=mc&revision={NODE[:12]}", {"revision": NODE[:12]}),
        (f"https://treeherder.mozilla.org/jobs?repo=mc&selectedTaskRun={OURS}.0", {"task_id": OURS}),
        ("https://treeherder.mozilla.org/jobs?repo=mc&author=d%40e", {"user": "d@e", "alias": "mc"}),
        (f"https://tc.example.com/tasks/{OURS}/runs/0/logs/live.log", {"task_id": OURS}),
        (f"https://tc.example.com/tasks/groups/{OURS}", {"task_id": OURS}),
        (f"https://tc.example.com/api/queue/v1/task/{OURS}", {"task_id": OURS}),
        (f"{HG}/rev/{NODE}", {"revision": NODE, "url": HG}),
        (f"{HG}/pushloghtml?changeset={NODE}", {"revision": NODE, "url": HG}),
        (f"{HG}/json-pushes?startID=4&endID=5", {"push": (HG, 5)}),
        (f"{HG}/", {"url": HG}),
        ("https://ci.example.com/pushes/mc/7", {"push": ("mc", 7)}),
        (f"{HG}/json-pushes?endID=²", {"push": None, "url": HG}),
        ("https://x/jobs?repo=a%00b&author=c%00", {"alias": "a\\u0000b", "user": "c\\u0000"}),
        ("https://x/pushes/a%00b/7", {"push": ("a\\u0000b", 7)}),
        ("https://x/a%00b/rev/x", {"url": "https://x/a\\u0000b"}),
        ("https://[", {"understood": []}),
        ("http://", {"task_id": None}),
        ("", {"understood": []}),
        ("\0\udce9", {"user": "\\u0000\\udce9"}),
    ],
)
def test_what_a_text_can_mean(text: str, expected: dict[str, Any]) -> None:
    wanted = understand(text)
    assert {name: getattr(wanted, name) for name in expected} == expected


async def found(api: Api, text: str) -> list[Match]:
    async with api.database.reading() as session:
        return await search(session, understand(text))


async def test_each_thing_is_found_by_what_people_have(api: Api) -> None:
    await stored(api)
    push = Match("push", "mc", 101, 0, node(101))
    for text in (
        node(101),
        node(101)[:8],
        "mc/101",
        f"https://hg.mozilla.org/mc/rev/{node(101)[:12]}",
        "https://hg.mozilla.org/mc/json-pushes?startID=100&endID=101",
        f"https://treeherder.mozilla.org/jobs?repo=mc&revision={node(101)}",
    ):
        assert await found(api, text) == [push], text
    assert [match.name for match in await found(api, OURS)] == [OURS]
    assert [match.name for match in await found(api, f"https://tc.example.com/tasks/{COPY}")] == [COPY]
    assert await found(api, PLANNED) == []
    assert [match.kind for match in await found(api, "dev@example.com")] == ["user"]
    assert [match.kind for match in await found(api, "sheriff@example.com")] == ["requester"]
    assert [match.kind for match in await found(api, "mc")] == ["repository"]
    assert [match.kind for match in await found(api, "https://hg.mozilla.org/mc")] == ["repository"]
    for text in ("nobody", "nowhere/1", "mc/1", "0" * 40, "mc/%", "a' OR 1=1", "\0"):
        assert await found(api, text) == [], text


async def test_a_word_that_is_several_things_finds_all(api: Api) -> None:
    await api.add()
    await api.add("other")
    same = [{**push_event(101)["push"]["changesets"][0]}]
    await api.push(push_event(101, user="mc", changesets=same), push_event(101, alias="other", changesets=same))
    assert [match.kind for match in await found(api, "mc")] == ["user", "repository"]
    assert [match.name for match in await found(api, node(101)[:10])] == ["mc", "other"]
    assert [match.name for match in await found(api, f"https://th/jobs?repo=other&revision={node(101)}")] == ["other"]

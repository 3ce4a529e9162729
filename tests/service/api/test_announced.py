"""Leases of repositories that a push was announced of."""

from datetime import timedelta
from typing import Any

from service.database import now
from tests.service.asgi import Api

URL = "https://hg.mozilla.org/mc"


async def announced(api: Api, *urls: str, **more: Any) -> list[str]:
    answer = await api.signed("/polls/lease", {"results": [], "max": 10, "wait": 0, "urls": urls, **more})
    assert answer.status_code == 200, answer.text
    return sorted(lease["repository"] for lease in answer.json()["leases"])


async def not_due(api: Api, *aliases: str) -> None:
    for alias in aliases:
        await api.add(alias)
        await api.change_repository(alias, due_at=now() + timedelta(hours=1))


async def test_a_repository_is_leased_as_soon_as_a_push_is_announced(api: Api) -> None:
    await not_due(api, "mc", "other")
    assert (await api.lease(maximum=10))["leases"] == []
    assert await announced(api, URL) == ["mc"]
    assert await announced(api, URL) == [], "one listener at a time has it"


async def test_only_those_are_leased_though_others_are_due(api: Api) -> None:
    await api.add("waiting")
    await not_due(api, "mc", "other")
    assert await announced(api, URL, "https://hg.mozilla.org/other", "https://elsewhere/mc") == ["mc", "other"]


async def test_what_another_listener_holds_is_due_when_that_has_ended(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    assert (await api.repository()).due_at > now()
    assert await announced(api, URL) == []
    result = {"repository": "mc", "lease": lease["lease"], "outcome": "unchanged"}
    assert [lease["repository"] for lease in (await api.lease([result]))["leases"]] == ["mc"]


async def test_an_unknown_a_disabled_and_a_deleted_repository_are_left_alone(api: Api) -> None:
    await not_due(api, "mc", "gone")
    await api.change_repository("mc", enabled=False)
    assert (await api.delete("/repositories/gone")).status_code == 204
    assert await announced(api, URL, "https://hg.mozilla.org/gone", "https://hg.mozilla.org/unknown", "\ud800") == []
    assert (await api.repository()).due_at > now()


async def test_a_lease_of_none_makes_due_and_leaves_it_to_others(api: Api) -> None:
    await not_due(api, "mc")
    assert await announced(api, URL, max=0) == []
    assert [lease["repository"] for lease in (await api.lease())["leases"]] == ["mc"]

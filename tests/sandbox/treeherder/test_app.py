"""Faults of the server as a whole, and which calls a Treeherder of each year has."""

import asyncio

import httpx
import pytest

from tests.sandbox.treeherder.support import (
    JOBS,
    PUSH,
    RESULTSET,
    REVISION,
    Treeherder,
    resultset,
)


async def test_what_each_year_has(th: Treeherder) -> None:
    calls = {}
    for year in (2015, 2016, 2017, "today"):
        await th.behave(year=year)
        answers = {
            "POST resultset": await th.submit(RESULTSET, []),
            "POST jobs": await th.submit(JOBS, []),
            "GET resultset": await th.get(RESULTSET, params={"revision": REVISION}),
            "GET push": await th.get(PUSH, params={"revision": REVISION}),
        }
        calls[year] = {call for call, answer in answers.items() if answer.status_code != 404}
    submission = {"POST resultset", "POST jobs", "GET resultset"}
    assert calls == {2015: submission, 2016: submission, 2017: submission, "today": {"GET push"}}


async def test_down_for_some_requests(th: Treeherder) -> None:
    await th.behave(down=2)
    statuses = [(await th.get("/api/repository/")).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


async def test_down_until_it_is_cleared(th: Treeherder) -> None:
    await th.behave(down=-1, down_how="drop")
    for _ in range(3):
        with pytest.raises(httpx.TransportError):
            await th.get("/api/repository/")
    assert (await th.delete("/__control__/behaviour")).json()["down"] == 0
    assert (await th.get("/api/repository/")).status_code == 200
    assert (await th.inside())["requests"]["GET repository dropped"] == 3


async def test_a_delay_comes_before_the_work(th: Treeherder) -> None:
    await th.behave(delay=30)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(th.submit(RESULTSET, [resultset()]), 0.05)
    assert (await th.inside())["resultsets"] == []

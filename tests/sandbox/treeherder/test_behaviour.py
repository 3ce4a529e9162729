"""Faults and limits are configured over `/__control__/behaviour`."""

from tests.sandbox.treeherder.support import GUID, JOBS, RESULTSET, Treeherder, entry, resultset


async def test_the_limits_are_treeherders_and_off_at_first(th: Treeherder) -> None:
    behaviour = (await th.get("/__control__/behaviour")).json()
    assert (behaviour["jobs_per_minute"], behaviour["resultsets_per_minute"]) == (220, 400)
    assert behaviour["throttle"] is False


async def test_429_and_500_on_request(th: Treeherder) -> None:
    await th.behave(too_many=1, fail_after=1)
    statuses = [(await th.submit(RESULTSET, [resultset()])).status_code for _ in range(3)]
    assert statuses == [429, 500, 200]
    assert (await th.inside())["resultsets"][0]["posts"] == 2


async def test_a_given_job_is_always_refused(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.behave(refuse_jobs=[GUID])
    other = entry(job_guid=GUID.replace("/0", "/1"))
    assert (await th.submit(JOBS, [other, entry()])).status_code == 400
    assert (await th.submit(JOBS, [other])).status_code == 200


async def test_an_unknown_fault_is_refused(th: Treeherder) -> None:
    answer = await th.patch("/__control__/behaviour", json={"downn": 1})
    assert (answer.status_code, "downn" in answer.text) == (400, True)

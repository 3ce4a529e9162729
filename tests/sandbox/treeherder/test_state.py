"""Rate limits are counted for each credential and each kind of submission."""

from tests.sandbox.treeherder.support import JOBS, RESULTSET, Treeherder, entry, resultset


async def test_the_limits_hold_for_each_credential_and_kind(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.behave(throttle=True, jobs_per_minute=2)
    statuses = [(await th.submit(JOBS, [entry()])).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await th.submit(JOBS, [entry()], client_id="other")).status_code == 200
    assert (await th.submit(RESULTSET, [resultset()])).status_code == 200
    without = await th.submit(JOBS, [entry()])
    await th.behave(retry_after=True)
    named = await th.submit(JOBS, [entry()])
    assert "retry-after" not in without.headers
    assert 50 <= int(named.headers["retry-after"]) <= 60

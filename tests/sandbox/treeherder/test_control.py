"""`/__control__/` adds projects, clears the stand-in, and shows what it holds."""

from tests.sandbox.treeherder.support import GUID, JOBS, RESULTSET, REVISION, Treeherder, entry, resultset


async def test_a_project_can_be_added(th: Treeherder) -> None:
    assert (await th.post("/__control__/repositories", json={"name": "a/b"})).status_code == 400
    added = await th.post("/__control__/repositories", json={"name": "new", "url": "https://hg.example/new"})
    assert added.status_code == 201
    names = {repository["name"]: repository for repository in (await th.get("/api/repository/")).json()}
    assert set(names) == {"autoland", "try", "new"}
    assert names["new"] == {
        "name": "new",
        "url": "https://hg.example/new",
        "dvcs_type": "hg",
        "active_status": "active",
    }


async def test_a_behaviour_that_there_is_not_is_told_in_a_sentence(th: Treeherder) -> None:
    refused = await th.patch("/__control__/behaviour", json={"yaer": 2015})
    assert refused.status_code == 400
    assert "unknown key yaer (year?)" in refused.text


async def test_clearing_forgets_data_and_keeps_projects(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry()])
    before = await th.inside()
    assert before["requests"] == {"POST resultset 200": 1, "POST jobs 200": 1, "jobs received": 1}
    await th.delete("/__control__/data")
    after = await th.inside()
    assert (after["resultsets"], after["jobs"], after["requests"]) == ([], [], {})
    assert after["repositories"] == before["repositories"]


async def test_the_inside_can_be_asked_for_one_push_or_job(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry(), entry(job_guid="another/0")])
    assert len((await th.inside(project="autoland", revision=REVISION))["jobs"]) == 2
    assert len((await th.inside(job_guid=GUID))["jobs"]) == 1
    for query in ({"project": "try"}, {"revision": "0" * 40}):
        inside = await th.inside(**query)
        assert (inside["resultsets"], inside["jobs"]) == ([], [])

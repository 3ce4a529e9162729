"""Pushes and jobs on the page."""

from tests.sandbox.treeherder.support import COMPLETED, GUID, JOBS, RESULTSET, Treeherder, entry, resultset


async def test_the_page_shows_pushes_and_jobs_and_escapes(th: Treeherder) -> None:
    assert "No pushes yet" in (await th.get("/")).text
    await th.submit(RESULTSET, [resultset(author="<script>alert(1)</script>")])
    await th.submit(JOBS, [entry(name='"><script>', **COMPLETED | {"result": "busted"})])
    page = await th.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("<script>") == 1  # its own
    assert "Bug 1 - &lt;b&gt;count" in page.text
    assert f'data-guid="{GUID}">B</button>' in page.text
    assert page.text.count("#c3001c") == 2  # the legend and the job

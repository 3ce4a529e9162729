"""Bodies that are no JSON list are refused."""

from tests.sandbox.treeherder.support import JOBS, Treeherder


async def test_bodies_that_are_no_list_of_json(th: Treeherder) -> None:
    for body, status in (("{", 400), ("[NaN", 400), ("{}", 400)):
        answer = await th.post(JOBS, content=body, headers=th.sign(JOBS, body))
        assert answer.status_code == status
    untyped = th.sign(JOBS, "[]") | {"Content-Type": "text/plain"}
    assert (await th.post(JOBS, content="[]", headers=untyped)).status_code == 403

"""One dead letter by its id."""

from tests.service.asgi import READER, Api, is_problem


async def test_it_is_what_the_list_has(api: Api) -> None:
    await api.push("first", "second")
    for item in (await api.get("/dead-letters")).json()["items"]:
        answer = await api.get(f"/dead-letters/{item['id']}", token=READER)
        assert answer.status_code == 200
        assert answer.json().items() >= item.items()


async def test_there_is_none_such(sqlite_api: Api) -> None:
    for number in (1, 0, -1, 2**31):
        is_problem(await sqlite_api.get(f"/dead-letters/{number}"), 404, str(number))
    is_problem(await sqlite_api.get("/dead-letters/1", token=None), 401)

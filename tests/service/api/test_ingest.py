"""Events that cannot be parsed become dead letters, once and as they came."""

import json
import random

import pytest

from service.contract.events import MAX_INDEXED
from tests.service.api.test_actions import message, press
from tests.service.asgi import Api, push_event


async def test_a_bad_event_is_kept_as_it_came_and_spoils_nothing(api: Api) -> None:
    await api.add()
    good = [json.dumps(push_event(n, since=100)).encode() for n in (101, 103)]
    bad = b'{ "repository":"mc", "push" :{"id":102.0,\t"user": "\\udce9\\u0000", "date": NaN, "x":[1E2, -0.0 ]} }'
    answer = await api.signed("/events/pushes", b'{"events": [' + good[0] + b" , " + bad + b"," + good[1] + b"]}")
    verdicts = answer.json()["verdicts"]
    assert [v["verdict"] for v in verdicts] == ["accepted", "rejected", "accepted"]
    assert "dead letter" in verdicts[1]["reason"]
    assert "generation" in verdicts[1]["reason"], "it says what is wrong"
    (letter,) = await api.letters()
    assert (letter.payload, letter.kind, letter.subject) == (bad, "push-event", "push 102.0 of mc")
    assert [push.push_id for push in await api.pushes()] == [101, 103]


async def test_the_same_bad_event_again_is_kept_once(api: Api) -> None:
    bad = {"repository": "mc", "push": {"id": 7}}
    for _ in range(3):
        verdicts = await api.push(bad, bad, {"repository": "mc", "push": {"id": 8}})
        assert {v["verdict"] for v in verdicts} == {"rejected"}
    # polls that list it from another cursor, or when more pushes have come
    for more in ({"since": 6, "lastpushid": 7}, {"since": 6, "lastpushid": 9}, {"since": 5, "lastpushid": 9}):
        await api.push({**bad, **more})
    await api.push({**bad, "generation": 1})
    subjects = sorted(letter.subject for letter in await api.letters())
    assert subjects == ["push 7 of mc", "push 7 of mc", "push 8 of mc"]


async def test_a_bad_event_without_a_name_is_listed_with_question_marks(sqlite_api: Api) -> None:
    await sqlite_api.push({"push": {}})
    (letter,) = await sqlite_api.letters()
    assert letter.subject == "push ? of ?"


def letters_of_four_bytes(count: int) -> str:
    """Return a text that a database cannot make shorter by compressing it."""
    chance = random.Random(7)
    return "".join(chr(chance.randrange(0x20000, 0x2A000)) for _ in range(count))


async def test_a_name_that_no_index_takes_is_refused_and_spoils_nothing(api: Api) -> None:
    await api.add()
    long, longest = letters_of_four_bytes(1_000), letters_of_four_bytes(MAX_INDEXED // 4)
    presses = [message(1, requester=long), message(2, project=long), message(3, requester=longest, project=longest)]
    assert await press(api, *presses) == ["rejected", "rejected", "accepted"]
    pushes = await api.push(push_event(101, user=long), push_event(102, user=longest))
    assert [verdict["verdict"] for verdict in pushes] == ["rejected", "accepted"]
    assert len(await api.letters()) == 3
    assert all("4,000 bytes, and at most 1,000" in letter.reason for letter in await api.letters())
    body = {"action": "cancel", "project": "mc", "task_id": "fN1SbArXTPSVFNUvaOlinQ"}
    assert (await api.post("/actions", {**body, "requester": long})).status_code == 422
    assert (await api.post("/actions", {**body, "requester": longest})).status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        b'{"events": 5, "events": [%s, 1]}',
        b'{"events": [], "events": [%s, 1]}',
        b'{"events": {"a": "]"}, "\\u0065vents": [%s, 1], "more": {"events": [2]}}',
        b' \n{ "x" : "}]," , "events"\t: [ %s ,\r\n 1 ] , "y":-1.5e3}\n',
        b'{"events": "[1]", "events": null, "events": [%s,1]}',
    ],
)
async def test_the_original_bytes_are_found_whatever_surrounds_them(sqlite_api: Api, body: bytes) -> None:
    bad = '{"push": ["\u00e9 , ] }", {}, [], "\\"" ]}'.encode()
    answer = await sqlite_api.signed("/events/pushes", body % bad)
    assert answer.status_code == 202, answer.text
    assert {letter.payload for letter in await sqlite_api.letters()} == {bad, b"1"}

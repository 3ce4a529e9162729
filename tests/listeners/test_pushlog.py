import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from listeners import pushlog as pushlog_module
from listeners.pushlog import PushlogListener
from listeners.shift import POLL_STILL_RUNNING
from sandbox.hg import NewChangeset
from service.contract.events import OversizedPush, PushEvent
from tests.listeners.fakes import (
    Answer,
    Request,
    problem,
    quick_settings,
    serving,
)
from tests.listeners.pushlog_harness import PushlogHarness, push_entry, push_ids, serving_pushes

# Forwarding


def test_pushes_are_forwarded_in_order_and_once(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r", last_push_id=88)
    repository = pushlog_harness.monitor(cursor=88)
    with pushlog_harness.listening():
        for number in range(15):  # across 91..103: string order is another
            pushlog_harness.pushlog.push(
                "r", [NewChangeset(message=f"Bug {number}", files={"latin-\udce9": "x"})], user="joe"
            )
        pushlog_harness.service.wait_for(lambda: len(repository.stored) == 15)
        pushlog_harness.pushlog.push("r", [NewChangeset(message="later")])
        pushlog_harness.service.wait_for(lambda: len(repository.stored) == 16)
    events = [event for batch in pushlog_harness.service.batches for event in batch]
    assert push_ids(events) == list(range(89, 105))
    assert events[0]["since"] == 88
    assert events[0]["generation"] == 0
    assert events[0]["lastpushid"] >= 89
    push = events[0]["push"]
    assert push["user"] == "joe"
    assert push["changesets"][0]["files"] == ["latin-\udce9"]
    assert push["changesets"][0]["files_count"] == 1
    assert repository.cursor == 104


def test_a_poll_with_nothing_new_is_one_conditional_request(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    push = pushlog_harness.pushlog.push("r")
    pushlog_harness.now += 3
    repository = pushlog_harness.monitor(cursor=1, last_changeset=push.nodes[-1])
    with pushlog_harness.listening():
        pushlog_harness.service.wait_for_polls("r", 5)
    (first,) = repository.news
    assert (first.outcome, first.lastpushid, first.at_cursor, first.moved) == ("listed", 1, push.nodes[-1], False)
    assert (first.since, first.cursor) == (1, 1)
    assert first.etag is not None
    report = pushlog_harness.app.state.requests.report()["kinds"]["json-pushes"]
    assert report["conditional"] == report["not_modified"] == report["requests"] - 1
    assert pushlog_harness.service.batches == []
    assert sum(renewal.polls for renewal in pushlog_harness.service.renewals) == report["requests"]
    assert sum(renewal.requests for renewal in pushlog_harness.service.renewals) == report["requests"]


def test_a_push_of_5000_changesets_is_forwarded(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    files = {f"{'deep/' * 10}{number}": "x" for number in range(1_100)}
    pushlog_harness.pushlog.push(
        "r", [NewChangeset(message=f"Bug {n} - {'why ' * 50}", files=files if n == 4_999 else {}) for n in range(5_000)]
    )
    repository = pushlog_harness.monitor()
    assert pushlog_harness.poll().outcome == "listed"
    event = repository.stored[1]
    assert isinstance(event, PushEvent)
    changesets = event.push.changesets
    assert len(changesets) == 5_000
    assert (changesets[4_799].desc, changesets[4_799].files) == (None, None)
    assert changesets[4_800].desc
    assert changesets[4_999].files is not None
    assert (len(changesets[4_999].files), changesets[4_999].files_count) == (1_000, 1_100)
    assert repository.cursor == 1


def test_a_backlog_is_forwarded_window_by_window(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({i: push_entry(i) for i in range(1, 36)}) as (url, queries):
        repository = pushlog_harness.monitor(url=url, cursor=4, last_changeset=f"{4:040x}")
        result = pushlog_harness.poll(poll_window=10)
    assert [(query["startID"], query["endID"]) for query in queries[:4]] == [(3, 14), (14, 24), (24, 34), (34, 44)]
    assert [push_ids(batch) for batch in pushlog_harness.service.batches[:2]] == [
        list(range(5, 15)),
        list(range(15, 25)),
    ]
    assert [batch[0]["since"] for batch in pushlog_harness.service.batches] == [4, 14, 24, 34]
    assert (result.outcome, result.requests, result.news.lastpushid, result.news.cursor) == ("listed", 4, 35, 35)
    assert result.etag == 'W/"7"'
    assert repository.cursor == 35


def test_a_backlog_may_outlast_a_shift_that_is_renewed(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.shift_seconds = 0.5
    pushes = {i: push_entry(i) for i in range(1, 41)}

    def slow(request: Request) -> Answer | None:
        time.sleep(0.06 if "events" in request.path else 0)
        return None

    pushlog_harness.service.override = slow
    with serving_pushes(pushes) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        with pushlog_harness.listening(poll_window=2):
            (news,) = pushlog_harness.service.wait_for_news("r")
    assert (news.outcome, news.etag, news.cursor) == ("listed", 'W/"7"', 40)
    assert repository.shift == 1
    assert push_ids([event for batch in pushlog_harness.service.batches for event in batch]) == list(range(1, 41))


def test_large_pushes_are_sent_in_chunks(pushlog_harness: PushlogHarness) -> None:
    pushes = {i: push_entry(i, user="x" * 400) for i in range(1, 10)}
    with serving_pushes(pushes) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        assert pushlog_harness.poll(chunk_bytes=1_300).outcome == "listed"
    assert [push_ids(batch) for batch in pushlog_harness.service.batches] == [[1, 2], [3, 4], [5, 6], [7, 8], [9]]
    assert [batch[0]["since"] for batch in pushlog_harness.service.batches] == [0, 2, 4, 6, 8]
    assert repository.cursor == 9


def test_a_request_has_at_most_1000_events(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({i: push_entry(i) for i in range(1, 1_003)}) as (url, _):
        pushlog_harness.monitor(url=url)
        pushlog_harness.poll(poll_window=2_000)
    assert [len(batch) for batch in pushlog_harness.service.batches] == [1_000, 2]


def test_a_chunk_that_is_too_large_for_a_proxy_is_split(pushlog_harness: PushlogHarness) -> None:
    def proxy(request: Request) -> Answer | None:
        return problem(413, "proxy: 1,500 bytes") if len(request.body) > 1_500 else None

    pushlog_harness.service.override = proxy
    pushes = {i: push_entry(i, user="x" * (2_000 if i == 3 else 100)) for i in range(1, 8)}
    with serving_pushes(pushes) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        assert pushlog_harness.poll().outcome == "listed"
    assert list(repository.stored) == [1, 2, 3, 4, 5, 6, 7]
    large = repository.stored[3]
    assert isinstance(large, OversizedPush)
    assert "push 3 is too large to send: the service accepts no request of" in large.reason
    assert "proxy: 1,500 bytes" in large.reason
    assert isinstance(repository.stored[4], PushEvent)
    assert repository.cursor == 7


def test_a_poll_fails_if_the_service_rejects_every_size(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.override = lambda request: problem(413, "no") if "events" in request.path else None
    with serving_pushes({1: push_entry(1)}) as (url, _):
        pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert (result.outcome, result.etag) == ("failed", None)
    assert "accepts no request of" in (result.error or "")


def test_an_oversized_push_is_reported_and_passed(
    pushlog_harness: PushlogHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushlog_module, "MAX_BYTES", 5_000)
    with serving_pushes({1: push_entry(1), 2: push_entry(*range(100)), 3: push_entry(3)}) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        assert pushlog_harness.poll().outcome == "listed"
    large = repository.stored[2]
    assert isinstance(large, OversizedPush)
    assert (large.push_id, large.since, large.lastpushid) == (2, 0, 3)
    assert large.reason.startswith("push 2 is too large to send: it has ")
    assert repository.cursor == 3


def test_a_listing_that_is_too_large_is_requested_in_smaller_parts(pushlog_harness: PushlogHarness) -> None:
    pushes = {i: push_entry(i, user="x" * 900) for i in range(1, 20)}
    pushes[7] = push_entry(6, 7, user="x" * 3_000)
    with serving_pushes(pushes) as (url, _):
        repository = pushlog_harness.monitor(url=url, cursor=2, last_changeset=f"{2:040x}")
        result = pushlog_harness.poll(max_listing=2_600, poll_window=8)
    assert (result.outcome, result.news.at_cursor, result.news.moved) == ("listed", f"{2:040x}", False)
    assert list(repository.stored) == list(range(3, 20))
    large = repository.stored[7]
    assert isinstance(large, OversizedPush)
    assert "more than 2,600 bytes, the limit max_listing" in large.reason
    assert {i for i, event in repository.stored.items() if isinstance(event, OversizedPush)} == {7}


def test_a_huge_push_at_the_cursor_is_compared_by_its_tip(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({5: push_entry(4, 5, user="x" * 3_000), 6: push_entry(6)}) as (url, _):
        repository = pushlog_harness.monitor(url=url, cursor=5, last_changeset=f"{5:040x}")
        result = pushlog_harness.poll(max_listing=2_000)
    assert (result.outcome, result.news.at_cursor, result.news.moved) == ("listed", f"{5:040x}", False)
    assert list(repository.stored) == [6]


# Odd pushlogs


def test_gaps_and_pushes_without_changesets_are_passed(pushlog_harness: PushlogHarness) -> None:
    obsolete = {**push_entry(), "obsoletechangesets": [{"node": "a" * 40}]}
    with serving_pushes({2: push_entry(2), 5: obsolete, 9: push_entry(9)}, last=12) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert list(repository.stored) == [2, 5, 9]
    assert (result.outcome, result.news.lastpushid, result.requests) == ("listed", 12, 1)
    assert repository.cursor == 9


def test_a_long_gap_takes_few_requests(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({1: push_entry(1), 136_597: push_entry(2), 136_598: push_entry(3)}) as (url, queries):
        repository = pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert list(repository.stored) == [1, 136_597, 136_598]
    assert result.outcome == "listed"
    assert result.requests < 20
    assert "full" not in queries[3]
    assert repository.cursor == 136_598


def test_empty_windows_after_a_strip_take_few_requests(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({}, last=1_000) as (url, _):
        pushlog_harness.monitor(url=url, cursor=3)
        result = pushlog_harness.poll()
    assert (result.outcome, result.news.lastpushid, result.etag, result.news.moved) == ("listed", 1_000, 'W/"7"', False)
    assert result.requests < 10
    assert pushlog_harness.service.batches == []


def test_a_push_that_a_mirror_does_not_list_yet_is_no_error(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.push("r", [NewChangeset(message="one")])
    pushlog_harness.pushlog.push("r", [NewChangeset(message="two")])
    pushlog_harness.fault("r", "lag", upto=1, ahead=True, times=1)
    repository = pushlog_harness.monitor()
    with pushlog_harness.listening():
        pushlog_harness.service.wait_for(lambda: 2 in repository.stored)
    assert repository.news == []
    assert [push_ids(batch) for batch in pushlog_harness.service.batches] == [[1], [2]]
    assert pushlog_harness.service.batches[1][0]["since"] == 1


def test_another_changeset_at_the_cursor_is_reported_and_nothing_forwarded(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({5: push_entry(4, 5), 6: push_entry(6)}) as (url, _):
        pushlog_harness.monitor(url=url, cursor=5, last_changeset="f" * 40)
        result = pushlog_harness.poll()
    assert result.outcome == "suspicious"
    news = result.news
    assert (news.moved, news.at_cursor, news.since, news.lastpushid) == (True, f"{5:040x}", 5, 6)
    assert news.etag is None, "an ETag would turn the next poll, which is to look again, into a 304"
    assert pushlog_harness.service.batches == []


@pytest.mark.parametrize(
    ("at_cursor", "last_changeset"),
    [
        (push_entry(4, 5), f"{5:040x}"),
        (push_entry(4, 5), f"{4:040x}"),  # the tip is another: amended or stripped, but a part of the push is there
        (push_entry(4, obsoletechangesets=[{"node": "f" * 40}]), "f" * 40),
        (push_entry(obsoletechangesets=[{"node": "f" * 40}]), "e" * 40),  # nothing is left that could be compared
        (push_entry(5), None),
        (None, f"{5:040x}"),
    ],
)
def test_a_changed_push_at_the_cursor_is_no_reset(
    pushlog_harness: PushlogHarness, at_cursor: Any, last_changeset: str | None
) -> None:
    with serving_pushes({**({5: at_cursor} if at_cursor else {}), 6: push_entry(6)}) as (url, _):
        repository = pushlog_harness.monitor(url=url, cursor=5, last_changeset=last_changeset)
        result = pushlog_harness.poll()
    assert result.outcome == "listed"
    assert list(repository.stored) == [6]


def test_a_lastpushid_below_the_cursor_is_reported(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({2: push_entry(2)}) as (url, _):
        pushlog_harness.monitor(url=url, cursor=5, last_changeset="f" * 40)
        result = pushlog_harness.poll()
    assert (result.outcome, result.news.lastpushid, result.news.cursor, result.news.etag) == ("suspicious", 2, 5, None)
    assert pushlog_harness.service.batches == []


def test_a_reset_in_the_middle_of_a_backlog_ends_the_poll(pushlog_harness: PushlogHarness) -> None:
    pushes = {i: push_entry(i) for i in range(1, 31)}

    def reset(request: Request) -> None:
        if "events" in request.path:
            for push_id in range(2, 31):
                pushes.pop(push_id, None)

    pushlog_harness.service.override = reset
    with serving_pushes(pushes) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll(poll_window=10)
    assert (result.outcome, result.news.lastpushid, result.news.cursor) == ("suspicious", 1, 10)
    assert list(repository.stored) == list(range(1, 11))


def test_a_malformed_entry_is_sent_unchanged_and_passed(
    pushlog_harness: PushlogHarness,
) -> None:
    bad = {"user": 5, "date": "soon", "odd": ["\udce9"], "changesets": "none"}
    with serving_pushes({1: push_entry(1), 2: bad, 3: push_entry(3)}) as (url, _), capture_logs() as logs:
        repository = pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert (result.outcome, result.etag) == ("listed", 'W/"7"')
    assert list(repository.stored) == [1, 3]
    assert repository.cursor == 3
    (letter,) = pushlog_harness.service.dead_letters
    head = {"repository": "r", "repository_id": 1, "shift": 0, "generation": 0, "since": 0, "lastpushid": 3}
    assert letter == {**head, "push": {**bad, "id": 2}}
    assert [line["push"] for line in logs if line["event"] == "push-not-understood"] == [2]


def test_a_malformed_entry_at_the_end_of_a_window_is_passed(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({1: push_entry(1), 2: {"changesets": 0}, 3: push_entry(3), 4: push_entry(4)}) as (url, _):
        repository = pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll(poll_window=2)
    assert list(repository.stored) == [1, 3, 4]
    assert [batch[0]["since"] for batch in pushlog_harness.service.batches] == [0, 1]
    assert (result.outcome, repository.cursor) == ("listed", 4)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("status", {"status": 500}, 'answers 500: "500: a fault that was asked for'),
        ("garbage", {}, 'the answer is not JSON (Expecting value: line 1 column 1 (char 0)); it begins with "<html>'),
        ("truncated", {}, "the answer is not JSON"),
        ("hangup", {}, "RemoteProtocolError"),
        ("delay", {"seconds": 0.5}, "no answer within 0.2 s"),
    ],
)
def test_a_failed_poll_is_reported_and_repeated(
    pushlog_harness: PushlogHarness, kind: str, options: dict[str, Any], expected: str
) -> None:
    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.push("r")
    pushlog_harness.fault("r", kind, times=1, **options)
    repository = pushlog_harness.monitor()
    with pushlog_harness.listening(hg_timeout=0.2):
        pushlog_harness.service.wait_for(lambda: 1 in repository.stored)
    failed = repository.news[0]
    assert expected in (failed.error or "")
    assert (failed.outcome, failed.lastpushid, failed.etag) == ("failed", None, None)


def test_a_missing_repository_is_reported(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.monitor("gone")
    result = pushlog_harness.poll("gone")
    expected = f"404: no repository exists at {pushlog_harness.hg}/gone, or it is being reset just now"
    assert (result.outcome, result.error) == ("failed", expected)


def test_a_malformed_entry_at_the_cursor_is_reported(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({5: {"changesets": [{"node": "HEAD"}]}}) as (url, _):
        pushlog_harness.monitor(url=url, cursor=5)
        result = pushlog_harness.poll()
    assert (result.outcome, result.error) == ("failed", "the tip of push 5 is 'HEAD': expected 40 hex digits")


# Verdicts and renewals


def test_an_ended_shift_ends_the_poll_without_news(pushlog_harness: PushlogHarness) -> None:
    """A PATCH, a reset, or another listener ended it."""
    with serving_pushes({i: push_entry(i) for i in range(1, 21)}) as (url, _):
        repository = pushlog_harness.monitor(url=url)

        def end(request: Request) -> None:
            if "events" in request.path:
                pushlog_harness.service.end_shift("r")

        pushlog_harness.service.override = end
        result = pushlog_harness.poll(poll_window=5)
    assert len(pushlog_harness.service.batches) == 1
    assert repository.stored == {}
    assert (result.outcome, result.requests) == ("gone", 1)


def test_no_etag_is_reported_for_pushes_that_were_not_stored(pushlog_harness: PushlogHarness) -> None:
    def broken(request: Request) -> Answer | None:
        return problem(500, "a poisoned push") if "events" in request.path else None

    pushlog_harness.service.override = broken
    pushlog_harness.service.shift_seconds = 0.3
    with serving_pushes({1: push_entry(1)}) as (url, _):
        pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert (result.outcome, result.etag) == ("failed", None)
    assert "did not accept the request in time: 500: a poisoned push" in (result.error or "")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "the service gave 0 verdicts for 1 pushes"),
        (
            [{"verdict": "rejected", "repository": "r", "shift": 0, "cursor": 0, "reason": "known with another"}],
            "the service rejected push 1: known with another",
        ),
    ],
)
def test_unusable_verdicts_fail_the_poll(pushlog_harness: PushlogHarness, verdicts: list[Any], expected: str) -> None:
    body = json.dumps({"verdicts": verdicts}).encode()
    pushlog_harness.service.override = lambda request: Answer(202, body) if "events" in request.path else None
    with serving_pushes({1: push_entry(1)}) as (url, _):
        pushlog_harness.monitor(url=url)
        result = pushlog_harness.poll()
    assert result.outcome == "failed"
    assert expected in (result.error or "")


def test_the_poll_continues_from_a_cursor_that_another_listener_moved(pushlog_harness: PushlogHarness) -> None:
    with serving_pushes({i: push_entry(i) for i in range(1, 8)}) as (url, queries):
        repository = pushlog_harness.monitor(url=url)

        def other(request: Request) -> None:
            if "events" in request.path:
                repository.cursor = max(repository.cursor, 5)

        pushlog_harness.service.override = other
        pushlog_harness.poll(poll_window=2)
    assert [query["startID"] for query in queries[:2]] == [0, 5]
    assert [push_ids(batch) for batch in pushlog_harness.service.batches] == [[1, 2], [6, 7]]
    assert pushlog_harness.service.batches[1][0]["since"] == 5


NOTHING = {"answer": 1, "seconds": 10, "renew": 0.1, "full_every": 600, "hosts": {}, "renewed": [], "leases": []}


def test_news_that_the_service_does_not_understand_are_logged(pushlog_harness: PushlogHarness) -> None:
    body = json.dumps({**NOTHING, "renew": 0.01, "problems": ["lastpushid: too odd"]}).encode()
    pushlog_harness.service.override = lambda request: Answer(200, body)
    with capture_logs() as logs, pushlog_harness.listening():
        pushlog_harness.service.wait_for(lambda: len(pushlog_harness.service.requests) >= 2)
    assert [line["problem"] for line in logs if line["event"] == "news-not-understood"][:1] == ["lastpushid: too odd"]


def test_rejected_renewals_are_repeated_slowly(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.push("r")
    repository = pushlog_harness.monitor()
    times: list[float] = []

    def reject(request: Request) -> Answer | None:
        times.append(time.monotonic())
        return problem(422, "polls: too much") if len(times) <= 2 else None

    pushlog_harness.service.override = reject
    with capture_logs() as logs, pushlog_harness.listening(refused_retry=0.1):
        pushlog_harness.service.wait_for(lambda: 1 in repository.stored)
    assert times[1] - times[0] >= 0.1
    assert "422: polls: too much" in next(line["error"] for line in logs if line["event"] == "shift-rejected")


def test_a_listener_without_repositories_renews_at_the_given_interval(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.override = lambda request: Answer(200, json.dumps(NOTHING).encode())
    with pushlog_harness.listening():
        time.sleep(0.35)
    assert 2 <= len(pushlog_harness.service.requests) <= 6


def test_renewals_report_polls_and_failures(pushlog_harness: PushlogHarness) -> None:
    """A poll without changes is only counted."""
    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.create("broken")
    pushlog_harness.fault("broken", "status", status=500, times=1)
    pushlog_harness.monitor()
    pushlog_harness.monitor("broken")
    with pushlog_harness.listening():
        pushlog_harness.service.wait_for_polls("r", 3)
        (news,) = pushlog_harness.service.wait_for_news("broken")
        pushlog_harness.service.wait_for_polls("broken")
    assert (news.outcome, news.good_ago) == ("failed", None)
    renewals = pushlog_harness.service.renewals
    assert len({renewal.listener for renewal in renewals}) == 1
    assert [renewal.answer for renewal in renewals] == list(range(len(renewals)))
    assert sum(len(renewal.news) for renewal in renewals) == 1
    assert (
        sum(renewal.polls for renewal in renewals)
        == pushlog_harness.app.state.requests.report()["kinds"]["json-pushes"]["requests"]
    )
    assert [renewal.ends for renewal in renewals] == [False] * (len(renewals) - 1) + [True]


# Many repositories


def test_a_silent_pushlog_delays_no_other(pushlog_harness: PushlogHarness) -> None:
    names = [f"quick{n}" for n in range(5)]
    silent = threading.Event()

    def hang(request: Request) -> Answer:
        silent.wait(20)
        return Answer(500)

    with serving(hang) as url:
        slow = pushlog_harness.monitor("slow", url=url)
        for name in names:
            pushlog_harness.pushlog.create(name)
            pushlog_harness.monitor(name)
        with pushlog_harness.listening(poll_workers=3):
            for name in names:
                pushlog_harness.service.wait_for_polls(name, 3)
            assert (slow.polled, slow.news) == (0, [])
            pushlog_harness.pushlog.push("quick3")
            pushlog_harness.service.wait_for(lambda: 1 in pushlog_harness.service.repositories["quick3"].stored)
            silent.set()


def test_concurrent_requests_are_limited_by_the_service(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.at_a_time = 2
    for number in range(6):
        pushlog_harness.pushlog.create(f"r{number}")
        pushlog_harness.monitor(f"r{number}")
        pushlog_harness.fault(f"r{number}", "delay", seconds=0.05, times=3)
    with pushlog_harness.listening():
        for number in range(6):
            pushlog_harness.service.wait_for_polls(f"r{number}", 3)
    assert pushlog_harness.app.state.requests.report()["max_concurrent"] == 2


def test_concurrent_requests_are_limited_by_the_threads(pushlog_harness: PushlogHarness) -> None:
    for number in range(6):
        pushlog_harness.pushlog.create(f"r{number}")
        pushlog_harness.monitor(f"r{number}")
        pushlog_harness.fault(f"r{number}", "delay", seconds=0.05, times=3)
    with pushlog_harness.listening(poll_workers=3):
        for number in range(6):
            pushlog_harness.service.wait_for_polls(f"r{number}", 3)
    assert pushlog_harness.app.state.requests.report()["max_concurrent"] == 3


def test_a_poll_that_outlasts_its_shift_blocks_only_one_thread(pushlog_harness: PushlogHarness) -> None:
    silent = threading.Event()

    def hang(request: Request) -> Answer:
        silent.wait(10)
        return Answer(500)

    with serving(hang) as url:
        repository = pushlog_harness.monitor("hangs", url=url)
        pushlog_harness.pushlog.create("well")
        pushlog_harness.monitor("well")
        with pushlog_harness.listening(poll_workers=2):
            pushlog_harness.service.wait_for(lambda: repository.holder)
            pushlog_harness.service.wait_for_polls("well")
            pushlog_harness.service.end_shift("hangs")
            (news, *_) = pushlog_harness.service.wait_for_news("hangs")
            pushlog_harness.service.wait_for_polls("well", 3)
            silent.set()
    assert news.outcome == "failed"
    assert "the previous poll has not ended" in (news.error or "")


def test_polls_stop_at_the_end_of_a_shift_that_is_not_renewed(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.shift_seconds = 0.4
    pushlog_harness.pushlog.create("r")
    pushlog_harness.monitor()
    away = threading.Event()
    pushlog_harness.service.override = lambda request: problem(503, "away") if away.is_set() else None
    with pushlog_harness.listening():
        pushlog_harness.service.wait_for_polls("r", 2)
        away.set()
        time.sleep(0.6)
        before = pushlog_harness.app.state.requests.report()["kinds"]["json-pushes"]["requests"]
        time.sleep(0.4)
        assert pushlog_harness.app.state.requests.report()["kinds"]["json-pushes"]["requests"] == before
        away.clear()
        pushlog_harness.service.wait_for_polls("r", 2)


def test_a_suspected_repository_is_polled_over_new_connections(pushlog_harness: PushlogHarness) -> None:
    """A kept connection may lead to one mirror that lags."""
    ports: dict[str, list[int]] = {"2": [], "4": []}  # by startID, one less than the cursor

    def answer(request: Request) -> Answer:
        (start,) = parse_qs(urlsplit(request.path).query)["startID"]
        ports[start].append(request.port)
        return Answer(200, b'{"lastpushid": 3, "pushes": {}}')

    with serving(answer) as url:
        repository = pushlog_harness.monitor(url=url, cursor=3)
        with pushlog_harness.listening():
            pushlog_harness.service.wait_for_polls("r", 4)
            repository.cursor, repository.suspected = 5, True
            pushlog_harness.service.end_shift("r")
            pushlog_harness.service.wait_for(lambda: len(ports["4"]) >= 4)
            news = pushlog_harness.service.wait_for_news("r", 4)
    # the repository may have been leased again before the last poll of its first shift had ended
    polled = [item for item in news if item.error != POLL_STILL_RUNNING]
    assert {item.outcome for item in polled} == {"suspicious"}
    assert len(set(ports["2"])) == 1 < len(ports["2"])
    assert len(set(ports["4"])) == len(ports["4"]) >= 4


def test_a_bug_in_a_poll_is_reported_and_ends_no_thread(
    pushlog_harness: PushlogHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*arguments: Any) -> None:
        raise ZeroDivisionError

    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.push("r")
    repository = pushlog_harness.monitor()
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(pushlog_module, "trim_entry", bug)
        with pushlog_harness.listening(poll_workers=1):
            (news, *_) = pushlog_harness.service.wait_for_news("r")
            patch.undo()
            pushlog_harness.service.wait_for(lambda: 1 in repository.stored)
    assert (news.outcome, news.error) == ("failed", "bug in the listener (ZeroDivisionError): see its log")
    assert "poll-broke" in [line["event"] for line in logs]


# Outages and stopping


def test_pushes_are_forwarded_after_an_outage_of_the_service(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    repository = pushlog_harness.monitor()
    away = threading.Event()
    pushlog_harness.service.override = lambda request: Answer(hang_up=True) if away.is_set() else None
    with capture_logs() as logs, pushlog_harness.listening():
        pushlog_harness.service.wait_for_polls("r", 2)
        away.set()
        pushlog_harness.pushlog.push("r")
        pushlog_harness.pushlog.push("r")
        time.sleep(0.2)
        away.clear()
        pushlog_harness.service.wait_for(lambda: 2 in repository.stored)
        pushlog_harness.service.wait_for(lambda: any(line["event"] == "service-back" for line in logs))
    events = [line["event"] for line in logs if line["event"].startswith("service-")]
    assert events == ["service-away", "service-back"]
    assert push_ids([event for batch in pushlog_harness.service.batches for event in batch]) == [1, 2]


def test_a_stop_waits_for_running_polls_and_gives_the_repositories_back(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.pushlog.create("r")
    pushlog_harness.pushlog.push("r")
    pushlog_harness.fault("r", "delay", seconds=0.3, times=1)
    repository = pushlog_harness.monitor()
    with pushlog_harness.listening():
        pushlog_harness.service.wait_for(lambda: pushlog_harness.app.state.requests.report()["kinds"])
    last = pushlog_harness.service.renewals[-1]
    assert last.ends
    assert [entry[0] for entry in last.polled] == [1]
    assert repository.holder is None
    assert 1 in repository.stored


def test_a_stop_in_a_backlog_gives_the_repository_back(pushlog_harness: PushlogHarness) -> None:
    listener: PushlogListener
    with serving_pushes({i: push_entry(i) for i in range(1, 31)}) as (url, _):
        repository = pushlog_harness.monitor(url=url)

        def stop(request: Request) -> None:
            if "events" in request.path:
                listener.stop()

        pushlog_harness.service.override = stop
        with pushlog_harness.listening(poll_window=10) as listener:
            pushlog_harness.service.wait_for(lambda: repository.cursor)
    assert repository.news == []
    assert repository.holder is None
    assert repository.cursor == 10


def test_a_stop_while_the_service_is_away_reports_nothing(pushlog_harness: PushlogHarness) -> None:
    pushlog_harness.service.override = lambda request: problem(503, "away") if "events" in request.path else None
    with serving_pushes({1: push_entry(1)}) as (url, _), capture_logs() as logs:
        repository = pushlog_harness.monitor(url=url)
        with pushlog_harness.listening(max_retry=10, first_retry=10):
            pushlog_harness.service.wait_for(
                lambda: any("events" in request.path for request in pushlog_harness.service.requests)
            )
            pushlog_harness.service.override = lambda request: problem(503, "away")
    assert (repository.polled, repository.news) == (0, [])
    events = [line["event"] for line in logs]
    assert "stopped" in events
    assert "shift-not-given-back" in events


def test_a_bug_in_the_renewal_is_raised(pushlog_harness: PushlogHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PushlogListener, "_renew", bug)
    with pytest.raises(ZeroDivisionError):
        PushlogListener(quick_settings(pushlog_harness.url)).run()

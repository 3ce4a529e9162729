import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listeners.forward import encode_json
from listeners.listing import (
    Listing,
    ListingError,
    ListingTooLargeError,
    PushlogClient,
    PushlogUnchanged,
    parse_listing,
    reliable_etag,
    tip_and_nodes,
)
from service.contract.events import PushlogEntry
from service.contract.pushlog import trim_entry
from tests.listeners.fakes import Answer, Request, serving
from tests.published_schemas import read_published
from tests.pushlog_examples import EXAMPLES

A, B, C = "a" * 40, "b" * 40, "c" * 40
EMPTY = b'{"lastpushid": 0, "pushes": {}}'


def parse(body: bytes, **headers: str) -> Listing:
    return parse_listing(body, httpx.Headers(headers))


@contextmanager
def open_client(*, timeout: float = 5, max_listing: int = 10_000) -> Iterator[PushlogClient]:
    pushlogs = PushlogClient(timeout, max_listing, connections=2)
    try:
        yield pushlogs
    finally:
        pushlogs.close()


def list_pushes(answer: Answer, *, etag: str | None = None, **options: Any) -> Listing:
    with serving(lambda request: answer) as url, open_client(**options) as pushlogs:
        return pushlogs.list_pushes(f"{url}/r", 1, 101, etag=etag)


def test_pushes_are_in_numerical_order() -> None:
    listing = parse(b'{"lastpushid": 1000, "pushes": {"100": 1, "1000": 2, "91": 3, "9": 4}}')
    assert list(listing.pushes) == [9, 91, 100, 1000]
    assert listing.between(9, 100) == [(91, 3), (100, 1)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_answers_are_parsed(name: str) -> None:
    _, _, answer = EXAMPLES[name]
    parses(answer)


@pytest.mark.published
@pytest.mark.parametrize(
    "name",
    [
        "range-full",
        "latest-full",
        "obsolete-changesets-full",
        "odd-commit-messages-full",
        "after-strip",
        "after-reset",
        "empty-repository",
        "start-beyond-last",
        "json-pushes-ten-full",
    ],
)
def test_recorded_answers_are_parsed(name: str) -> None:
    parses(read_published(f"hg/{name}.json"))


def parses(answer: dict[str, Any]) -> None:
    listing = parse(encode_json(answer))
    assert (listing.lastpushid, set(listing.pushes)) == (answer["lastpushid"], {int(key) for key in answer["pushes"]})
    for push_id, entry in listing.pushes.items():
        tip, _ = tip_and_nodes(push_id, entry)
        changesets = answer["pushes"][str(push_id)]["changesets"]
        if not changesets or isinstance(changesets[0], dict):
            sent = PushlogEntry.model_validate(trim_entry(push_id, entry))
            assert sent.id == push_id
            assert [c.node for c in sent.changesets] == [c["node"] for c in changesets]
            assert tip == (changesets[-1]["node"] if changesets else None)


def test_lone_surrogates_and_invalid_utf_8_are_kept() -> None:
    listing = parse(rb'{"lastpushid": 1, "pushes": {"1": "escaped-\udce9"}}')
    assert listing.pushes[1] == "escaped-\udce9"
    assert parse(b'{"lastpushid": 1, "pushes": {"1": "raw-\xe9"}}').pushes[1] == "raw-\udce9"


@pytest.mark.parametrize(
    ("date", "read_as"),
    [
        ("Tue, 24 Nov 2026 08:51:54 GMT", datetime(2026, 11, 24, 8, 51, 54, tzinfo=UTC)),
        ("Tue, 24 Nov 2026 08:51:54 -0000", datetime(2026, 11, 24, 8, 51, 54, tzinfo=UTC)),
        ("yesterday", None),
    ],
)
def test_etag_and_date_are_parsed(date: str, read_as: datetime | None) -> None:
    listing = parse(EMPTY, etag='W/"1"', date=date)
    assert (listing.etag, listing.date) == ('W/"1"', read_as)


def test_etag_and_date_may_be_missing() -> None:
    listing = parse(EMPTY)
    assert (listing.etag, listing.date) == (None, None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<html>\xff", 'not JSON (Expecting value: line 1 column 1 (char 0)); it begins with "<html>\ufffd"'),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "the answer is []: expected an object"),
        (b'{"1": {}}', "lastpushid is None: expected an integer from 0 to 2147483647"),
        (b'{"lastpushid": true, "pushes": {}}', "lastpushid is True"),
        (b'{"lastpushid": "5", "pushes": {}}', "lastpushid is '5'"),
        (b'{"lastpushid": -1, "pushes": {}}', "lastpushid is -1"),
        (b'{"lastpushid": 2147483648, "pushes": {}}', "lastpushid is 2147483648"),
        (b'{"lastpushid": 5, "pushes": []}', "pushes is []: expected an object of push ids"),
        (b'{"lastpushid": 5}', "pushes is None"),
        (rb'{"lastpushid": 5, "pushes": {"\udce9": 1}}', r"a key of pushes is '\udce9': expected a push id"),
        (b'{"lastpushid": 5, "pushes": {"1_0": 1}}', "a key of pushes is '1_0'"),
        (b'{"lastpushid": 5, "pushes": {"99999999999": 1}}', "a key of pushes is '99999999999'"),
    ],
)
def test_an_invalid_answer_raises_an_error_with_the_value(body: bytes, expected: str) -> None:
    with pytest.raises(ListingError) as raised:
        parse(body)
    assert expected in str(raised.value)


def test_tip_and_nodes_include_obsolete_changesets() -> None:
    entry = {"changesets": [{"node": A}, {"node": B}], "obsoletechangesets": [{"node": C}]}
    assert tip_and_nodes(1, entry) == (B, {A, B, C})
    assert tip_and_nodes(1, {"changesets": [A, B]}) == (B, {A, B})
    assert tip_and_nodes(1, {"changesets": [], "obsoletechangesets": [C]}) == (None, {C})
    with pytest.raises(ListingError, match="push 1 is 7: expected an object"):
        tip_and_nodes(1, 7)
    with pytest.raises(ListingError, match="the tip of push 1 is 'XX': expected 40 hex digits"):
        tip_and_nodes(1, {"changesets": ["XX"]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=["L", "Cs", "Cc"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["node", "files", "changesets", "user", "obsoletechangesets"]), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_no_entry_raises_an_unexpected_error(entry: Any) -> None:
    encode_json(trim_entry(1, entry))
    try:
        tip_and_nodes(1, entry)
    except ListingError as error:
        assert str(error).isascii()  # noqa: PT017 - most values raise, some do not


# HTTP


def test_requests_have_range_form_and_etag() -> None:
    requests: list[Request] = []

    def answer(request: Request) -> Answer:
        requests.append(request)
        return Answer(200, EMPTY)

    with serving(answer) as url, open_client() as pushlogs:
        pushlogs.list_pushes(f"{url}/integration/autoland", 4, 105, etag='W/"12"')
        pushlogs.list_pushes(f"{url}/r", 4, 5, full=False)
    assert requests[0].path == "/integration/autoland/json-pushes?version=2&full=1&startID=4&endID=105"
    assert (requests[0].headers["if-none-match"], requests[0].headers["user-agent"]) == ('W/"12"', "tc-treeherder")
    assert requests[1].path == "/r/json-pushes?version=2&tipsonly=1&startID=4&endID=5"
    assert "if-none-match" not in requests[1].headers


def test_304_raises_pushlog_unchanged() -> None:
    with pytest.raises(PushlogUnchanged):
        list_pushes(Answer(304), etag='W/"1"')


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(404, b"<html>unknown"), "404: no repository exists at http://127.0.0.1"),
        (
            Answer(301, b"", {"Location": "http://other.example/r"}),
            "redirects to http://other.example/r, and redirects are not followed: set the repository's url",
        ),
        (Answer(302, b"", {"Location": "http://[bad"}), "/r/json-pushes"),
        (Answer(503, b"x" * 300), 'answers 503: "' + "x" * 100 + '"'),
        (Answer(500, b"x" * 70_000), 'answers 500: "a long body"'),
        (Answer(304), "answers 304"),
        (Answer(200, b"\x1f\x8bjunk", {"Content-Encoding": "gzip"}), "DecodingError"),
        (Answer(hang_up=True), "RemoteProtocolError"),
    ],
)
def test_refusals_are_described(answer: Answer, expected: str) -> None:
    with pytest.raises(ListingError) as raised:
        list_pushes(answer)
    assert expected in str(raised.value)


def test_a_closed_port_raises_a_listing_error() -> None:
    with open_client() as pushlogs, pytest.raises(ListingError, match=r"no answer from http://127\.0\.0\.1:9/r"):
        pushlogs.list_pushes("http://127.0.0.1:9/r", 0, 1)


def test_answers_are_read_up_to_the_limit() -> None:
    assert list_pushes(Answer(200, EMPTY.ljust(1_000)), max_listing=1_000).lastpushid == 0
    with pytest.raises(ListingTooLargeError, match="more than 1,000 bytes, the limit max_listing"):
        list_pushes(Answer(200, EMPTY.ljust(1_001)), max_listing=1_000)


def test_silent_and_slow_servers_time_out() -> None:
    given_up = threading.Event()

    def silent(request: Request) -> Answer:
        given_up.wait(30)
        return Answer(200, EMPTY)

    began = time.monotonic()
    with serving(silent) as url, open_client(timeout=0.1) as pushlogs:
        with pytest.raises(ListingError, match=r"no answer within 0\.1 s"):
            pushlogs.list_pushes(f"{url}/r", 0, 1)
        assert time.monotonic() - began < 10
        given_up.set()
    with pytest.raises(ListingError, match=r"within 0\.2 s"):
        list_pushes(Answer(200, EMPTY, trickle=0.02), timeout=0.2)


def test_the_proxy_variables_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []

    def answer(request: Request) -> Answer:
        requests.append(request)
        return Answer(200, EMPTY)

    with serving(answer) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with open_client() as pushlogs:
            pushlogs.list_pushes("http://hg.example/r", 0, 1)
            pushlogs.list_pushes("http://hg.example/r", 0, 1, new_connection=True)
            pushlogs.list_pushes(f"{url}/r", 0, 1)
    assert requests[0].path == requests[1].path == "http://hg.example/r/json-pushes?version=2&full=1&startID=0&endID=1"
    assert requests[2].path == "/r/json-pushes?version=2&full=1&startID=0&endID=1"


def test_compressed_answers_count_uncompressed() -> None:
    import gzip

    packed = Answer(200, gzip.compress(EMPTY.ljust(100_000)), {"Content-Encoding": "gzip"})
    assert list_pushes(packed, max_listing=100_000).lastpushid == 0
    with pytest.raises(ListingTooLargeError):
        list_pushes(packed, max_listing=99_999)


def test_connections_are_reused_unless_a_new_one_is_requested() -> None:
    ports: list[int] = []

    def answer(request: Request) -> Answer:
        ports.append(request.port)
        return Answer(200, EMPTY)

    with serving(answer) as url, open_client() as pushlogs:
        for anew in (False, False, True, True, False):
            pushlogs.list_pushes(f"{url}/r", 0, 1, new_connection=anew)
    assert len(set(ports)) == 3
    assert ports[0] == ports[1] == ports[4]


def test_a_connection_closed_by_the_server_is_not_reused() -> None:
    answers = iter([Answer(200, EMPTY, {"Connection": "close"}), Answer(200, EMPTY)])
    with serving(lambda request: next(answers)) as url, open_client() as pushlogs:
        for _ in range(2):
            pushlogs.list_pushes(f"{url}/r", 0, 1)


def test_a_request_that_cannot_be_sent_in_time_is_not_sent() -> None:
    """The connection is established too late, after the end of the shift."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        for _ in range(3):  # the backlog is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        pushlogs = stack.enter_context(open_client(timeout=20))
        began = time.monotonic()
        with pytest.raises(ListingError, match="no answer within 20 s"):
            pushlogs.list_pushes(f"http://127.0.0.1:{server.getsockname()[1]}/r", 0, 1, send_within=0.05)
        assert time.monotonic() - began < 19


START = datetime(2030, 1, 30, 12, 0, 0, tzinfo=UTC)


def make_etag(at: datetime) -> str:
    return f'W/"{int(at.timestamp())}"'


@pytest.mark.parametrize(
    ("etag", "reliable"),
    [
        (make_etag(START - timedelta(seconds=10)), True),
        (make_etag(START - timedelta(seconds=3)), True),
        (make_etag(START - timedelta(seconds=2)), False),
        (make_etag(START), False),
        (make_etag(START + timedelta(seconds=10)), False),
        (make_etag(START - timedelta(seconds=10)).removeprefix("W/"), True),
        ('W/"abc"', False),
        ('W/""', False),
        ('W/"-5"', False),
        ('W/"\u0663\u0663"', False),
        (f'W/"{"9" * 400}"', False),
        (f'W/"{"0" * 600}1"', False),
        (None, False),
    ],
)
def test_only_an_etag_older_than_three_seconds_is_reliable(etag: str | None, reliable: bool) -> None:
    """An ETag is the change time in whole seconds, so it could hide a second push in the same second for ever."""
    assert reliable_etag(etag, START) == (etag if reliable else None)
    assert reliable_etag(etag, None) is None

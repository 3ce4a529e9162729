"""Authentication and authorization of callers, and the errors that they get."""

import hmac
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from service.auth import ANYBODY, LOCAL, Caller, caller_of, check_local, may_read, require
from service.errors import Problem
from service.settings import Settings
from tests.service.asgi import ADMIN, READER, WRITER, is_problem, running, settings_for

DATABASE = "sqlite+aiosqlite:///x.sqlite"


def request(*authorization: bytes) -> Request:
    return Request({"type": "http", "headers": [(b"authorization", value) for value in authorization]})


def settings_with(**more: Any) -> Settings:
    return settings_for(DATABASE, **more)


@pytest.mark.parametrize(
    ("held", "scope", "has"),
    [
        ("a:b", "a:b", True),
        ("a:b", "a:b:c", False),
        ("a:b", "a", False),
        ("a:*", "a:b", True),
        ("a:*", "a:", True),
        ("a:*", "a", False),
        ("a*", "a", True),
        ("*", "anything at all", True),
        ("*", "", True),
        ("a:*:c", "a:b:c", False),
        ("a:b", "a:*", False),
        ("", "a", False),
    ],
)
def test_a_star_at_the_end_satisfies_all_that_begin_so(held: str, scope: str, has: bool) -> None:
    assert Caller("x", (held,)).has(scope) is has
    assert Caller("x", ("z", held)).has(scope) is has


@settings(max_examples=50)
@given(st.lists(st.text(max_size=5), max_size=4), st.text(max_size=6))
def test_scopes_follow_taskclusters_rule(held: list[str], scope: str) -> None:
    expected = any(scope.startswith(h[:-1]) if h.endswith("*") else scope == h for h in held)
    assert Caller("x", tuple(held)).has(scope) is expected


@pytest.mark.parametrize("header", [f"Bearer {WRITER}", f"bearer {WRITER}", f"BEARER   {WRITER} "])
def test_a_token_is_its_owner(header: str) -> None:
    assert caller_of(settings_with(), request(header.encode())) == Caller(
        "writer", ("tc-treeherder:repositories:write",)
    )


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer x",
        WRITER.encode(),
        b"Bearer " + WRITER[:-1].encode(),
        b"Bearer " + WRITER.encode() + b"x",
        b"Bearer " + WRITER.upper().encode(),
        b"Bearer " + WRITER.encode() + b"\x00",
        b"Bearer " + WRITER.encode() + b" " + ADMIN.encode(),
        b"Basic " + WRITER.encode(),
        b"Hawk id=x",
        b"Bearer \xff\xfe\x00",
        b"Bearer " + b"x" * 100_000,
    ],
)
def test_anything_else_is_a_401_that_says_what_to_send(header: bytes) -> None:
    for public in (False, True):
        with pytest.raises(Problem) as refused:
            caller_of(settings_with(public_reads=public), request(header))
        assert refused.value.status == 401
        assert "Authorization: Bearer <token>" in refused.value.detail
        assert refused.value.headers == {"WWW-Authenticate": "Bearer"}
        assert WRITER not in refused.value.detail


def test_a_token_may_have_any_characters() -> None:
    token = "schl\u00fcssel-\u20ac-0123456789"
    those = settings_with(tokens=[{"name": "x", "value": token}])
    assert caller_of(those, request(b"Bearer " + token.encode())).name == "x"


def test_every_token_is_compared_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def count(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", count)
    those = settings_with()
    caller_of(those, request(f"Bearer {ADMIN}".encode()))
    assert len(compared) == len(those.tokens), "the first one's match took as long as any"
    with pytest.raises(Problem):
        caller_of(those, request(b"Bearer x"))
    assert len(compared) == 2 * len(those.tokens)


def test_without_a_header_one_is_anybody_and_without_tokens_all_are_local() -> None:
    assert caller_of(settings_with(), request()) is ANYBODY
    assert caller_of(settings_with(tokens=[]), request()) is LOCAL
    assert caller_of(settings_with(tokens=[]), request(b"Bearer whatever")) is LOCAL
    assert LOCAL.has("anything")
    assert not ANYBODY.has("")


def called(host: str) -> Request:
    return Request({"type": "http", "method": "GET", "headers": [(b"host", host.encode("latin-1"))]})


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1", "[::1]", "[::1]:8080", "LocalHost"],
)
def test_who_calls_this_machine_by_its_own_name_is_local(host: str) -> None:
    check_local("POST", called(host).headers)
    assert caller_of(settings_with(tokens=[]), called(host)) is LOCAL


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example.com",
        "localhost.evil.example.com",
        "127.0.0.1.evil.example.com:8080",
        "evil.example.com:8080",
        "10.0.0.1",
        "0.0.0.0",
        "[::]:8080",
        "[nonsense",
        "localhost@evil.example.com",
        "\xff",
    ],
)
def test_a_page_of_elsewhere_that_leads_here_is_not_local(host: str) -> None:
    """In DNS rebinding, a browser sends the host name of the foreign page."""
    with pytest.raises(Problem, match="loopback only") as refused:
        check_local("GET", called(host).headers)
    assert refused.value.status == 403
    assert "TC_TREEHERDER_TOKENS" in refused.value.detail
    assert caller_of(settings_with(), called(host)) is ANYBODY, "where callers are told apart, the name does not matter"


HERE = {"host": "127.0.0.1:8080"}


@pytest.mark.parametrize(
    "more",
    [
        {"origin": "https://evil.example.com"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost:8080"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_elsewhere_changes_nothing_here(more: dict[str, str]) -> None:
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        with pytest.raises(Problem, match="web page") as refused:
            check_local(method, {**HERE, **more})
        assert refused.value.status == 403
        assert "TC_TREEHERDER_TOKENS" in refused.value.detail
    check_local("GET", {**HERE, **more})  # a link, whose answer that page cannot read


@pytest.mark.parametrize(
    "more", [{}, {"origin": "http://127.0.0.1:8080"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_a_program_or_a_page_of_ours_may(more: dict[str, str]) -> None:
    check_local("POST", {**HERE, **more})


async def test_without_credentials_every_path_is_for_this_machine_alone(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, tokens=[])) as api:
        for path in ("/api/v1/repositories", "/metrics", "/docs", "/openapi.json", "/__heartbeat__", "/nowhere"):
            is_problem(await api.call("GET", path, token=None), 403, "'service'")
            answer = await api.call("GET", path, token=None, headers={"Host": "localhost:8080"})
            assert answer.status_code == (404 if path == "/nowhere" else 200), path
        page = {"Host": "localhost:8080", "Origin": "https://evil.example.com"}
        body = {"alias": "x", "url": "https://hg.mozilla.org/x", "level": "1", "last_push_id": 1}
        is_problem(await api.post("/repositories", body, token=None, headers=page), 403, "evil.example.com")
        del page["Origin"]
        assert (await api.post("/repositories", body, token=None, headers=page)).status_code == 201


def test_logins_with_taskcluster_credentials_make_nobody_local() -> None:
    those = settings_with(tokens=[], taskcluster_logins=True, public_url="https://us.example.com")
    assert those.has_credentials
    assert caller_of(those, called("localhost")) is ANYBODY
    with pytest.raises(ValueError, match="taskcluster_logins needs public_url"):
        settings_with(taskcluster_logins=True)


def test_what_is_missing_is_named() -> None:
    require(settings_with(), Caller("x", ("a",)), "a")
    with pytest.raises(Problem, match="x needs the scope b") as refused:
        require(settings_with(), Caller("x", ("a",)), "b")
    assert (refused.value.status, refused.value.more) == (403, {"missing_scope": "b"})
    with pytest.raises(Problem, match="the scope b") as refused:
        require(settings_with(), ANYBODY, "b")
    assert (refused.value.status, refused.value.more) == (401, {"missing_scope": "b"})


def test_reads_are_closed_unless_public() -> None:
    may_read(settings_with(), caller_of(settings_with(), request(f"Bearer {READER}".encode())))
    may_read(settings_with(public_reads=True), ANYBODY)
    with pytest.raises(Problem, match="public_reads") as refused:
        may_read(settings_with(), ANYBODY)
    assert refused.value.status == 401

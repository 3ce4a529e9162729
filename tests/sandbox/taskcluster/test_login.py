"""The authorization server: as strict as the real one."""

from typing import Any

import pytest

from sandbox.taskcluster.auth import Auth
from sandbox.taskcluster.clock import DAY, HOUR, Clock, iso
from sandbox.taskcluster.errors import ApiError
from sandbox.taskcluster.login import CODE_LIFE, EARLIER, Login, LoginError, RegisteredClient, challenge_of

REDIRECT, VERIFIER = "http://us.example.com/done", "v" * 43
PAGE = RegisteredClient("page", (REDIRECT, "http://other/"), ("ours:*", "more:x"), "1 day")
QUERY = {
    "client_id": "page",
    "redirect_uri": REDIRECT,
    "response_type": "code",
    "scope": "more:x ours:*",
    "state": "s",
    "expires": "2 hours",
    "code_challenge": challenge_of(VERIFIER),
    "code_challenge_method": "S256",
}
FORM = {
    "grant_type": "authorization_code",
    "redirect_uri": REDIRECT,
    "client_id": "page",
    "code_verifier": VERIFIER,
}


@pytest.fixture
def login() -> Login:
    clock = Clock()
    clock.freeze()
    auth = Auth(clock, roles={"team": ("ours:a", "ours:b:*", "other:*")})
    return Login(auth, {"idp/ann": ("assume:team",), "idp/bob": ()}, [PAGE])


def code_of(login: Login, identity: str = "idp/ann", scopes: tuple[str, ...] = PAGE.scopes, **query: str) -> str:
    return login.grant(login.wanted({**QUERY, **query}, identity), identity, scopes)


def credentials_of(login: Login, expires: str = "2 hours") -> Any:
    return login.credentials(f"Bearer {login.redeem({**FORM, 'code': code_of(login, expires=expires)})}")


def test_a_person_gets_a_client_with_what_they_have_of_what_is_registered(login: Login) -> None:
    answer = credentials_of(login)
    client = login._auth.clients[answer["credentials"]["clientId"]]
    assert client.client_id.startswith("idp/ann/page-")
    assert len(client.client_id) == len("idp/ann/page-") + 6
    assert client.scopes == ("ours:a", "ours:b:*")
    assert client.access_token == answer["credentials"]["accessToken"]
    now = login._auth.clock.now()
    assert client.expires == now + 2 * HOUR
    assert answer["expires"] == iso(now + 2 * HOUR - EARLIER)


@pytest.mark.parametrize("expires", ["2 days", "", "soon", "1 day 1 second"])
def test_credentials_never_last_longer_than_registered(login: Login, expires: str) -> None:
    client_id = credentials_of(login, expires=expires)["credentials"]["clientId"]
    assert login._auth.clients[client_id].expires == login._auth.clock.now() + DAY


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client_id": "other"}, "unauthorized_client"),
        ({"redirect_uri": REDIRECT + "/"}, "unauthorized_client"),
        ({"redirect_uri": REDIRECT + "?x"}, "unauthorized_client"),
        ({"redirect_uri": ""}, "unauthorized_client"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
    ],
)
def test_a_request_that_does_not_fit_leads_nowhere(login: Login, change: dict[str, str], code: str) -> None:
    with pytest.raises(LoginError) as refused:
        login.wanted({**QUERY, **change}, "idp/ann")
    assert refused.value.code == code


@pytest.mark.parametrize("scope", ["ours:*", "ours:* more:x third:y", "ours:a more:x", ""])
def test_scopes_must_be_exactly_the_registered_ones(login: Login, scope: str) -> None:
    with pytest.raises(LoginError, match="exactly"):
        code_of(login, scope=scope)


def test_nobody_grants_more_than_is_registered(login: Login) -> None:
    with pytest.raises(LoginError, match="more was granted"):
        code_of(login, scopes=("other:*",))
    assert code_of(login, scopes=("ours:a",))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"code": ""}, "invalid_request"),
        ({"code": "unknown"}, "invalid_grant"),
        ({"client_id": "other"}, "invalid_grant"),
        ({"redirect_uri": "http://other/"}, "invalid_grant"),
        ({"code_verifier": "w" * 43}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
    ],
)
def test_a_code_is_good_for_the_request_that_it_was_made_for(login: Login, change: dict[str, str], code: str) -> None:
    form = {**FORM, "code": code_of(login), **change}
    with pytest.raises(LoginError) as refused:
        login.redeem(form)
    assert refused.value.code == code


def test_codes_and_tokens_are_good_once(login: Login) -> None:
    form = {**FORM, "code": code_of(login)}
    token = login.redeem(form)
    with pytest.raises(LoginError, match="Invalid authorization code"):
        login.redeem(form)
    login.credentials(f"bearer {token}")
    for authorization in (f"Bearer {token}", f"Basic {token}", "Bearer", None):
        with pytest.raises(ApiError, match="Could not generate credentials"):
            login.credentials(authorization)


def test_codes_and_tokens_are_good_for_ten_minutes(login: Login) -> None:
    form = {**FORM, "code": code_of(login)}
    token = login.redeem({**FORM, "code": code_of(login)})
    login._auth.clock.advance(CODE_LIFE / 1000 + 1)
    with pytest.raises(LoginError):
        login.redeem(form)
    with pytest.raises(ApiError):
        login.credentials(f"Bearer {token}")


def test_pkce_is_needed_where_it_is_registered(login: Login) -> None:
    login.clients["page"] = RegisteredClient("page", (REDIRECT,), PAGE.scopes, require_pkce=True)
    query = {name: value for name, value in QUERY.items() if not name.startswith("code_challenge")}
    with pytest.raises(LoginError, match="code_challenge is required"):
        login.wanted(query, "idp/ann")

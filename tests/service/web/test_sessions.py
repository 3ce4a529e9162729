"""Sessions: signed, bounded, and of a token that is still there."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from service.clock import now
from service.settings import Settings
from service.web.sessions import Sessions

KEY = b"k" * 32
VALUE = "a-token-0123456789"


def sessions(key: bytes = KEY, **more: Any) -> Sessions:
    tokens = [{"name": "ann", "value": VALUE}, {"name": "bob", "value": "b-token-0123456789"}]
    return Sessions(Settings(**{"tokens": tokens, **more}), key)


def cookie_of(made: Sessions, name: str = "ann") -> str:
    return made.cookie(made.new(made._tokens[name]))


def test_a_cookie_names_the_token_and_does_not_hold_it() -> None:
    cookie = cookie_of(sessions())
    body = cookie.partition(".")[0]
    name, _, ends, client_id = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert (name, client_id) == ("ann", None)
    assert 0 < ends - now().timestamp() <= timedelta(hours=12).total_seconds() + 1
    assert VALUE not in cookie
    assert base64.urlsafe_b64encode(VALUE.encode()).decode().rstrip("=") not in cookie
    read = sessions().read(cookie)
    assert read is not None
    assert read.token is not None
    assert read.token.name == "ann"


def test_two_replicas_take_each_others_cookies_and_another_deployment_does_not() -> None:
    cookie = cookie_of(sessions())
    assert sessions().read(cookie) is not None
    assert sessions(b"x" * 32).read(cookie) is None


@pytest.mark.parametrize("tokens", [[], [{"name": "ann", "value": "another-0123456789"}]], ids=["gone", "replaced"])
def test_a_session_ends_with_its_token(tokens: list[Any]) -> None:
    assert sessions(tokens=tokens).read(cookie_of(sessions())) is None


def test_a_session_ends_with_its_time() -> None:
    assert sessions().read(cookie_of(sessions(web_session=0))) is None
    assert sessions().read(cookie_of(sessions(web_session=60))) is not None


def test_nobody_makes_a_cookie_without_the_key() -> None:
    good = cookie_of(sessions())
    body, _, signature = good.partition(".")
    as_bob = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"ann", b"bob")).decode()
    longer = base64.urlsafe_b64encode(json.dumps(["ann", "x", 2**40]).encode()).decode()
    forged = [f"{as_bob}.{signature}", f"{longer}.{signature}", f"{body}.", f"{body}.{signature[:-1]}", body, "", "."]
    forged += [f"{body}.\udce9", "é.é", "e30.x", "bnVsbA.x", "WzEsMiwzXQ.x", f"{'W' * 1_900}.x", good + "x" * 2_000]
    for cookie in forged:
        assert sessions().read(cookie) is None, cookie


def test_a_form_token_is_of_one_session() -> None:
    made = sessions()
    one, two = made.new(None), made.new(None)
    assert made.is_form_token(one, made.form_token(one))
    for wrong in (made.form_token(two), "", "é\udce9", made.form_token(one)[:-1]):
        assert not made.is_form_token(one, wrong)


def with_taskcluster(**more: Any) -> Sessions:
    return sessions(web_sign_in={"client_id": "page"}, public_url="https://us.example.com", **more)


def test_a_session_of_a_client_ends_with_the_client_and_with_the_setting() -> None:
    made, soon = with_taskcluster(), now() + timedelta(minutes=5)
    cookie = made.cookie(made.new_of_client("idp/ann/page-1", soon))
    read = made.read(cookie)
    assert read is not None
    assert (read.client_id, read.token, read.name, read.signed_in) == ("idp/ann/page-1", None, "idp/ann/page-1", True)
    assert read.ends == int(soon.timestamp())
    assert sessions().read(cookie) is None
    late = made.new_of_client("idp/ann/page-1", now() + timedelta(days=30))
    assert late.ends <= (now() + timedelta(hours=12)).timestamp()
    gone = made.new_of_client("idp/ann/page-1", now() - timedelta(seconds=2))
    assert made.read(made.cookie(gone)) is None

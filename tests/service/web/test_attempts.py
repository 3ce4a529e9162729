"""Attempts to sign in: tied to one browser, for ten minutes."""

import base64
import re
from datetime import timedelta

import pytest

from service.clock import now
from service.web import attempts
from service.web.attempts import MAX_COOKIE, MAX_WANTED, Attempts

KEY = b"k" * 32


def test_the_cookie_of_an_attempt_has_its_state_and_verifier() -> None:
    attempt = Attempts(KEY).new("/actions?x=1")
    read = Attempts(KEY).read(attempt.cookie)
    assert read == attempt
    assert read.wanted == "/actions?x=1"
    state, verifier = Attempts(KEY).state(attempt), Attempts(KEY).verifier(read)
    assert Attempts(KEY).is_state(read, state)
    assert not any(Attempts(KEY).is_state(read, wrong) for wrong in ("", verifier, state + "0", "\ud800"))
    assert re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier)
    body = base64.urlsafe_b64decode(attempt.cookie.partition(".")[0] + "==").decode(errors="replace")
    assert state != verifier
    assert not {state, verifier} & {body, attempt.cookie}


def test_no_path_makes_a_cookie_that_is_too_long() -> None:
    for wanted in ("/" + "x" * 3_999, "/" + "x" * (MAX_WANTED - 1), "/" + '"' * (MAX_WANTED - 1)):
        attempt = Attempts(KEY).new(wanted)
        assert len(attempt.cookie) <= MAX_COOKIE
        assert Attempts(KEY).read(attempt.cookie) == attempt


def test_each_attempt_has_its_own() -> None:
    one, other = Attempts(KEY).new("/"), Attempts(KEY).new("/")
    assert not Attempts(KEY).is_state(one, Attempts(KEY).state(other))
    assert Attempts(KEY).verifier(one) != Attempts(KEY).verifier(other)


def test_what_is_not_ours_or_too_old_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempts(KEY).new("/")
    body, _, signature = attempt.cookie.partition(".")
    for wrong in (
        "",
        ".",
        body,
        f"{body}.",
        f"{body}.{signature[:-1]}",
        f"{body}x.{signature}",
        "é.é",
        "x" * MAX_COOKIE,
    ):
        assert Attempts(KEY).read(wrong) is None
    assert Attempts(b"x" * 32).read(attempt.cookie) is None
    later = now() + timedelta(minutes=10)
    monkeypatch.setattr(attempts, "now", lambda: later)
    assert Attempts(KEY).read(attempt.cookie) is None


def test_a_cookie_is_never_larger_than_browsers_keep() -> None:
    longest = Attempts(KEY).new("/" + "x" * (MAX_WANTED - 1))
    assert Attempts(KEY).read(longest.cookie) == longest
    assert len(longest.cookie) <= MAX_COOKIE
    assert Attempts(KEY).new("/" + "x" * MAX_WANTED).wanted == "/"

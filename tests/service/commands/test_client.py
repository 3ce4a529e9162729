"""Calls of the service by commands: errors if it cannot be reached or refuses, waiting, and exit codes."""

import httpx
import pytest

from sandbox.stack import free_port
from service.commands import client
from tests.service.commands.conftest import Pretended, Run
from tests.system.conftest import System

TOKEN = "a-token-that-must-not-be-shown"


def test_nobody_answers(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ran = run("pushes", "list", "--url", url)
    assert ran.code == 3
    assert url in ran.err
    assert "check that it is running" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"Content-Type": "text/html"}, b"<h1>nginx</h1>"),
        (502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"),
        (301, {"Location": "https://example.com/login"}, b""),
        (200, {"Content-Type": "text/html"}, b"<h1>Welcome</h1>"),
    ],
)
def test_something_else_answers(run: Run, pretend: Pretended, answer: tuple[int, dict[str, str], bytes]) -> None:
    pretend.answers["/api/v1/repositories"] = [answer]
    ran = run("repositories", "list", "--url", pretend.url)
    assert ran.code == 3
    assert f"not tc-treeherder ({answer[0]}" in ran.err
    assert answer[1].get("Location", "") in ran.err


def test_a_call_that_is_not_answered_may_have_been_done(
    run: Run, pretend: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIME_LIMIT", httpx.Timeout(0.2))
    pretend.hang("/api/v1/repositories/mc/reset")
    pretend.hang("/api/v1/repositories/mc")
    ran = run("repositories", "reset", "mc", "--yes", "--url", pretend.url)
    assert ran.code == 3
    assert "check whether the request had an effect" in ran.err
    ran = run("repositories", "show", "mc", "--url", pretend.url)
    assert ran.code == 3
    assert "not known" not in ran.err


def test_over_the_limit_of_writes_it_waits(run: Run, pretend: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    pretend.json("/api/v1/repositories/mc", {"title": "Too many writes", "detail": "x"}, 429, {"Retry-After": "7"})
    pretend.answers["/api/v1/repositories/mc"].append((204, {}, b""))
    ran = run("repositories", "remove", "mc", "--yes", "--url", pretend.url)
    assert ran.code == 0
    assert pauses == [7]
    assert [method for method, _, _ in pretend.asked] == ["DELETE", "DELETE"]


def test_without_a_token_it_says_which_variable(run: Run, system: System) -> None:
    ran = run("pushes", "list", SERVICE_URL=system.stack.service_url)
    assert ran.code == 1
    assert "Credentials needed: set TC_TREEHERDER_TOKEN to one of the service's tokens" in ran.err


def test_a_wrong_token_is_not_shown(run: Run, system: System) -> None:
    ran = run("pushes", "list", SERVICE_URL=system.stack.service_url, TOKEN=TOKEN)
    assert ran.code == 1
    assert "the service does not know the token in TC_TREEHERDER_TOKEN: set it to one of" in ran.err
    assert TOKEN not in ran.err


def test_a_token_with_its_line_end_is_a_token(run: Run, system: System) -> None:
    ran = run("pushes", "list", SERVICE_URL=system.stack.service_url, TOKEN=f"{system.stack.token}\n")
    assert ran.code == 0


@pytest.mark.parametrize("token", [f"{TOKEN}\nX-Evil: 1", f"{TOKEN}\u20ac", f"{TOKEN} {TOKEN}"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(run: Run, token: str) -> None:
    ran = run("pushes", "list", TOKEN=token)
    assert ran.code == 2
    assert "TC_TREEHERDER_TOKEN" in ran.err
    assert TOKEN not in ran.err


@pytest.mark.parametrize("url", ["ftp://host", "host:8080", "", "http://", "http://host:99999", "http://ho st"])
def test_a_url_that_is_none(run: Run, url: str) -> None:
    ran = run("pushes", "list", "--url", url)
    assert ran.code == 2
    assert "not an http or https URL" in ran.err


def test_a_password_in_the_url_is_refused_and_not_shown(run: Run) -> None:
    ran = run("pushes", "list", "--url", f"http://user:{TOKEN}@127.0.0.1:1")
    assert ran.code == 2
    assert TOKEN not in ran.err


def test_names_are_quoted(run: Run, pretend: Pretended) -> None:
    pretend.json("/api/v1/repositories/a%2Fb%3Fc", {"title": "Unknown repository", "detail": "none"}, 404)
    ran = run("repositories", "show", "a/b?c", "--url", pretend.url)
    assert ran.code == 4
    assert "Unknown repository: none" in ran.err
    assert run("repositories", "show", "..", "--url", pretend.url).code == 2
    assert len(pretend.asked) == 1


def test_an_answer_of_a_stranger_cannot_steer_the_terminal(run: Run, pretend: Pretended) -> None:
    pretend.json("/api/v1/repositories/mc", {"title": "x\x1b[2J", "detail": "y\u202e"}, 404)
    ran = run("repositories", "show", "mc", "--url", pretend.url)
    assert ran.code == 4
    assert "\\x1b[2J" in ran.err
    assert "\x1b" not in ran.err
    assert "\u202e" not in ran.err

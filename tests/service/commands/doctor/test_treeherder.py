"""Checks of each Treeherder."""

import json
from email.utils import formatdate
from typing import Any

import pytest

from sandbox.stack import free_port
from tests.service.commands.conftest import Pretended
from tests.service.commands.doctor.conftest import TREEHERDER, Doctor, repository, store
from tests.system.conftest import System


def environment(variables: dict[str, str], **changed: Any) -> str:
    given = json.loads(variables["ENVIRONMENTS"])["tc-treeherder"]
    return json.dumps({"tc-treeherder": {**given, **changed}})


def test_proving_the_credentials_stores_nothing(doctor: Doctor, system: System) -> None:
    before = system.treeherder.get("/state").json()
    assert doctor().status(TREEHERDER, "credentials") == "ok"
    after = system.treeherder.get("/state").json()
    assert after["resultsets"] == before["resultsets"]
    asked = "POST resultset 200"
    assert after["requests"][asked] == before["requests"].get(asked, 0) + 1


def test_a_treeherder_is_away(doctor: Doctor, variables: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    report = doctor(ENVIRONMENTS=environment(variables, url=url))
    assert url in report.finding(TREEHERDER, "answer")["detail"]
    assert report.status(TREEHERDER, "answer") == "error"


def test_wrong_hawk_credentials(doctor: Doctor, variables: dict[str, str]) -> None:
    for wrong in ({"secret": "wrong-secret"}, {"client_id": "nobody"}):
        finding = doctor(ENVIRONMENTS=environment(variables, **wrong)).finding(TREEHERDER, "credentials")
        assert finding["status"] == "error"
        assert "403" in finding["detail"]
        assert "environments.tc-treeherder.secret" in finding["remedy"]


def test_a_project_that_treeherder_does_not_know(doctor: Doctor, variables: dict[str, str]) -> None:
    hg = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"],
        repository(f"http://{hg}/a", "unheard-of"),
        repository(f"http://{hg}/b", "shown-nowhere", environments=[]),
    )
    report = doctor()
    assert report.finding(TREEHERDER, "projects")["detail"] == "it does not have unheard-of"
    assert report.status(TREEHERDER, "credentials") == "ok"


def test_a_treeherder_that_takes_nothing_from_us_needs_no_credentials(
    doctor: Doctor, variables: dict[str, str]
) -> None:
    url = json.loads(variables["ENVIRONMENTS"])["tc-treeherder"]["url"]
    report = doctor(ENVIRONMENTS=json.dumps({"tc-treeherder": {"url": url, "pushes": "off"}}))
    assert [finding["check"] for finding in report.findings if finding["system"] == TREEHERDER] == [
        "answer",
        "clock",
        "projects",
    ]


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [(429, "warning", "429"), (500, "error", "500"), (400, "error", "by REST"), (404, "error", "docs/treeherders.md")],
)
def test_answers_to_the_empty_list(
    doctor: Doctor, variables: dict[str, str], pretend: Pretended, status: int, expected: str, words: str
) -> None:
    pretend.json("/api/repository/", {"results": [{"name": "try"}]}, headers={"Date": formatdate(usegmt=True)})
    pretend.json("/api/project/try/resultset/", {"detail": "no"}, status)
    finding = doctor(ENVIRONMENTS=environment(variables, url=pretend.url)).finding(TREEHERDER, "credentials")
    assert finding["status"] == expected
    assert words in finding["detail"] + finding["remedy"]
    assert pretend.asked[-1] == ("POST", "/api/project/try/resultset/", b"[]")


def test_what_is_no_treeherder(doctor: Doctor, variables: dict[str, str], pretend: Pretended) -> None:
    report = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert "answers 404, without a list of repositories" in report.finding(TREEHERDER, "answer")["detail"]
    pretend.answers["/api/repository/"] = [(301, {"Location": "https://example.com/"}, b"")]
    report = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert "https://example.com/" in report.finding(TREEHERDER, "answer")["detail"]
    pretend.answers["/api/repository/"] = [(200, {}, b'[{"id": 1}]')]
    assert doctor(ENVIRONMENTS=environment(variables, url=pretend.url)).status(TREEHERDER, "answer") == "error"


def test_a_treeherder_without_any_project(doctor: Doctor, variables: dict[str, str], pretend: Pretended) -> None:
    pretend.json("/api/repository/", [], headers={"Date": formatdate(usegmt=True)})
    report = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert report.status(TREEHERDER, "projects") == "error"
    assert report.status(TREEHERDER, "credentials") == "warning"

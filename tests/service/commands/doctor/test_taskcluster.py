"""Checks of Taskcluster: its clock, our credentials, and their scopes."""

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from sandbox.credentials import SCHEDULER, TRUST_DOMAIN
from sandbox.stack import free_port
from tests.service.commands.conftest import Pretended
from tests.service.commands.doctor.conftest import TREEHERDER, Doctor, repository, store
from tests.system.conftest import System


def test_taskcluster_is_away(doctor: Doctor) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    report = doctor(TASKCLUSTER__ROOT_URL=url)
    assert report.status("taskcluster", "ping") == "error"
    assert url in report.finding("taskcluster", "ping")["detail"]
    assert "it cannot be reached" in report.finding("taskcluster", "ping")["detail"]
    assert "cannot be reached" in report.finding("taskcluster", "credentials")["detail"]
    assert "could not be checked" in report.finding("taskcluster", "credentials")["remedy"], "and may well be good"


def test_what_does_not_answer_is_told_from_what_is_not_there(doctor: Doctor, pretend: Pretended) -> None:
    pretend.hang("/api/auth/v1/ping")
    pretend.hang("/")
    host = pretend.url.removeprefix("http://")
    report = doctor("--seconds", "1", TASKCLUSTER__ROOT_URL=pretend.url, ALLOWED_HOSTS=json.dumps([host]))
    assert "answer" in report.finding("taskcluster", "ping")["detail"]
    assert "reached" not in report.finding("taskcluster", "ping")["detail"]
    assert "answer" in report.finding("hg", host)["detail"]
    assert "reached" not in report.finding("hg", host)["detail"]


def test_a_stale_signature_is_the_clocks_doing(doctor: Doctor, pretend: Pretended) -> None:
    headers = {"Date": formatdate(time.time() + 120, usegmt=True)}
    pretend.json("/api/auth/v1/ping", {"alive": True}, headers=headers)
    refusal = {"code": "AuthenticationFailed", "message": "Stale timestamp"}
    pretend.json("/api/auth/v1/scopes/current", refusal, 401)
    report = doctor(TASKCLUSTER__ROOT_URL=pretend.url)
    assert "Stale timestamp" in report.finding("taskcluster", "credentials")["detail"]
    assert "clock" in report.finding("taskcluster", "credentials")["remedy"]
    assert "access token" not in report.finding("taskcluster", "credentials")["remedy"]
    assert report.status("taskcluster", "clock") == "error"


def test_no_credentials(doctor: Doctor) -> None:
    report = doctor(TASKCLUSTER__CLIENT_ID=None, TASKCLUSTER__ACCESS_TOKEN=None)
    assert report.finding("taskcluster", "credentials")["detail"] == "none: no task can be created or cancelled"
    assert report.status("taskcluster", "credentials") == "error"


def test_wrong_credentials(doctor: Doctor) -> None:
    report = doctor(TASKCLUSTER__ACCESS_TOKEN="wrong-token-of-some-length")
    assert "refuses our credentials: Bad mac" in report.finding("taskcluster", "credentials")["detail"]
    report = doctor(TASKCLUSTER__CLIENT_ID="nobody")
    assert "no such client: nobody" in report.finding("taskcluster", "credentials")["detail"]
    assert report.status("taskcluster", "credentials") == "error"


@pytest.mark.parametrize("certificate", ["no json", "[]", '"x"'])
def test_a_certificate_that_is_none(doctor: Doctor, certificate: str) -> None:
    report = doctor(TASKCLUSTER__CERTIFICATE=certificate)
    assert report.status("taskcluster", "credentials") == "error"


def test_a_client_that_may_not_ask_for_its_scopes(doctor: Doctor, system: System) -> None:
    person = system.stack.sandbox["credentials"]["person"]
    report = doctor(TASKCLUSTER__CLIENT_ID=person["clientId"], TASKCLUSTER__ACCESS_TOKEN=person["accessToken"])
    assert report.status("taskcluster", "scopes") == "warning"
    assert "auth:current-scopes" in report.finding("taskcluster", "scopes")["remedy"]


ALL = [
    "assume:repo:*",
    "queue:route:notify.*",
    "queue:get-task:*",
    "queue:status:*",
    "queue:list-task-group:*",
    "queue:list-dependent-tasks:*",
    "queue:list-artifacts:*",
    "auth:get-client:mozilla-auth0/*",
    "queue:cancel-task:*",
    "queue:schedule-task:*",
]


def taskcluster(pretend: Pretended, scopes: Any, headers: dict[str, str] | None = None) -> str:
    """Start a Taskcluster that answers these scopes for any credentials, and return its URL."""
    pretend.json("/api/auth/v1/ping", {"alive": True}, headers=headers)
    pretend.json("/api/auth/v1/scopes/current", {"scopes": scopes})
    pretend.json("/api/auth/v1/scopes/expand", {"scopes": PROJECT})
    return pretend.url


PROJECT = [
    f"queue:scheduler-id:{SCHEDULER}",
    "queue:create-task:highest:built-in/*",
    "queue:create-task:project:none",
    "queue:route:tc-treeherder.v2.*",
    "queue:route:notify.email.*",
]
"""Scopes of a project's role."""


@pytest.mark.parametrize(
    ("lacking", "check", "status"),
    [
        ("queue:get-task:*", "queue:get-task:*", "error"),
        ("queue:status:*", "queue:status:*", "error"),
        ("queue:list-task-group:*", "queue:list-task-group:*", "error"),
        ("queue:list-dependent-tasks:*", "queue:list-dependent-tasks:*", "error"),
        ("queue:list-artifacts:*", "queue:list-artifacts:*", "warning"),
        ("auth:get-client:mozilla-auth0/*", "auth:get-client:*", "error"),
        ("queue:cancel-task:*", "queue:cancel-task:*", "error"),
        ("queue:schedule-task:*", "queue:schedule-task:*", "error"),
    ],
)
def test_a_scope_that_is_missing(doctor: Doctor, pretend: Pretended, lacking: str, check: str, status: str) -> None:
    url = taskcluster(pretend, [scope for scope in ALL if scope != lacking], headers={"Date": formatdate(usegmt=True)})
    report = doctor(TASKCLUSTER__ROOT_URL=url)
    assert report.problems()[0] == ("taskcluster", check, status)
    assert len(report.problems()) == 2
    assert check in report.finding("taskcluster", check)["remedy"]


def test_stars_satisfy_what_begins_so(doctor: Doctor, pretend: Pretended) -> None:
    url = taskcluster(pretend, ["queue:*", "assume:*", "auth:*"], headers={"Date": formatdate(usegmt=True)})
    assert len(doctor(TASKCLUSTER__ROOT_URL=url).problems()) == 1


def test_scopes_of_some_schedulers(doctor: Doctor, pretend: Pretended) -> None:
    some_of = ["queue:cancel-task:gecko-level-1/*", "queue:cancel-task:gecko-level-3/*"]
    url = taskcluster(pretend, [*(scope for scope in ALL if "cancel" not in scope), *some_of])
    finding = doctor(TASKCLUSTER__ROOT_URL=url).finding("taskcluster", "queue:cancel-task:*")
    assert finding["status"] == "warning"
    assert "only queue:cancel-task:gecko-level-1/*, queue:cancel-task:gecko-level-3/*" in finding["detail"]


def test_a_projects_scopes_that_are_not_ours(doctor: Doctor, pretend: Pretended, variables: dict[str, str]) -> None:
    hg = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"],
        repository(f"http://{hg}/autoland", "autoland", scopes=["assume:other", "queue:x:*"]),
        repository(f"http://{hg}/quiet", "quiet", graph=False, scopes=["assume:nothing"], environments=[]),
    )
    url = taskcluster(pretend, [*(scope for scope in ALL if "notify" not in scope), "queue:x:y*"])
    report = doctor(TASKCLUSTER__ROOT_URL=url)
    details = [
        finding["detail"]
        for finding in report.findings
        if finding["check"] == "repositories" and finding["status"] == "error"
    ]
    assert details == [
        "missing queue:route:notify.*: no task can be created for try, autoland",
        "missing queue:route:notify.email.*: no task can be created for try, autoland",
        "missing assume:other: no task can be created for autoland",
        "missing queue:x:*: no task can be created for autoland",
    ]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (PROJECT[0], f"lack queue:scheduler-id:{SCHEDULER}: no task can show a broken file on pushes of try, autoland"),
        (PROJECT[1], "lack queue:create-task:lowest:built-in/fail: no task can show"),
        (PROJECT[2], "lack queue:create-task:project:none: no task can show"),
        (
            PROJECT[3],
            "lack queue:route:tc-treeherder.v2.<alias>.*: the error task of try, autoland is created without that",
        ),
    ],
)
def test_an_error_task_that_a_project_cannot_create(
    doctor: Doctor, pretend: Pretended, variables: dict[str, str], missing: str, words: str
) -> None:
    hg = json.loads(variables["ALLOWED_HOSTS"])[0]
    more = {"trust_domain": TRUST_DOMAIN, "scopes": ["assume:repo:x"]}
    store(
        variables["DATABASE_URL"],
        repository(f"http://{hg}/autoland", "autoland", **more),
        repository(f"http://{hg}/quiet", "quiet", graph=False, environments=[]),
    )
    url = taskcluster(pretend, ALL)
    project = [scope for scope in PROJECT if scope != missing]
    pretend.answers["/api/auth/v1/scopes/expand"] = []
    pretend.json("/api/auth/v1/scopes/expand", {"scopes": project})
    finding = doctor(TASKCLUSTER__ROOT_URL=url).finding("taskcluster", "error tasks")
    assert finding["status"] == "warning"
    assert words in finding["detail"]
    asked = [json.loads(body)["scopes"] for _, path, body in pretend.asked if path.endswith("/expand")]
    assert ["assume:repo:x", "queue:route:notify.email.somebody@example.com.*"] in asked


def test_a_repository_without_a_trust_domain_is_named(doctor: Doctor, variables: dict[str, str]) -> None:
    """A project's role in the sandbox has one scheduler, as a real one has."""
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(variables["DATABASE_URL"], repository(f"http://{host}/plain", "plain"))
    finding = doctor().finding("taskcluster", "error tasks")
    assert finding["status"] == "warning"
    assert (
        "lack queue:scheduler-id:tc-treeherder: no task can show a broken file on pushes of plain" in finding["detail"]
    )
    assert "trust domain" in finding["remedy"]


def test_scopes_that_may_not_be_expanded_are_said(doctor: Doctor, pretend: Pretended) -> None:
    url = taskcluster(pretend, ALL)
    refusal = "Client ID tc is missing the following scopes:\n\n```\nauth:expand-scopes\n```"
    pretend.answers["/api/auth/v1/scopes/expand"] = []
    pretend.json("/api/auth/v1/scopes/expand", {"code": "InsufficientScopes", "message": f"{refusal}\n\n---"}, 403)
    finding = doctor(TASKCLUSTER__ROOT_URL=url).finding("taskcluster", "error tasks")
    assert "not checked" in finding["detail"]
    assert "auth:expand-scopes" in finding["remedy"]


def test_an_answer_that_is_none(doctor: Doctor, pretend: Pretended) -> None:
    report = doctor(TASKCLUSTER__ROOT_URL=taskcluster(pretend, "all"))
    assert "does not answer a list of scopes" in report.finding("taskcluster", "credentials")["detail"]
    pretend.answers.clear()
    report = doctor(TASKCLUSTER__ROOT_URL=pretend.url)
    for check in ("ping", "credentials"):
        assert "404" in report.finding("taskcluster", check)["detail"]
        assert "TASKCLUSTER__ROOT_URL" in report.finding("taskcluster", check)["remedy"]
    assert "is not Taskcluster" in report.finding("taskcluster", "ping")["detail"]


@pytest.mark.parametrize(
    ("off", "status", "words"),
    [
        (0, "ok", "agrees"),
        (5, "ok", "agrees"),
        (20, "warning", "behind its clock"),
        (-20, "warning", "ahead of its clock"),
        (40, "error", "behind its clock"),
        (-40, "error", "ahead of its clock"),
        (None, "warning", "no date"),
    ],
)
def test_clocks_that_drift(doctor: Doctor, pretend: Pretended, off: int | None, status: str, words: str) -> None:
    headers = {} if off is None else {"Date": formatdate(time.time() + off, usegmt=True)}
    pretend.json("/api/repository/", [{"name": "try"}], headers=headers)
    pretend.json("/api/project/try/resultset/", {"message": "stored"})
    environment = {"url": pretend.url, "client_id": "tc", "secret": "x"}
    url = taskcluster(pretend, ALL, headers)
    report = doctor(TASKCLUSTER__ROOT_URL=url, ENVIRONMENTS=json.dumps({"tc-treeherder": environment}))
    for system in ("taskcluster", TREEHERDER):
        assert report.status(system, "clock") == status
        assert words in report.finding(system, "clock")["detail"]

"""What the doctor says of Mercurial's hosts, of Taskcluster and of each Treeherder."""

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from sandbox.credentials import SCHEDULER, TRUST_DOMAIN
from sandbox.stack import free_port
from service.commands.doctor.finding import summarize_names
from tests.service.commands.conftest import Pretended
from tests.service.commands.doctor.conftest import Doctor, repository, store
from tests.system.conftest import System

TREEHERDER = "treeherder tc-treeherder"


# --- hosts -------------------------------------------------------------------------------------------------------


def test_hosts_that_do_not_answer(doctor: Doctor, pretend: Pretended) -> None:
    pretend.answers["/"] = [(503, {}, b"")]
    away, ill = f"127.0.0.1:{free_port()}", pretend.url.removeprefix("http://")
    found = doctor(ALLOWED_HOSTS=json.dumps([away, ill, "no host"]))
    assert found.status("hg", away) == "error"
    assert found.the("hg", ill)["detail"] == "it answers 503"
    assert found.status("hg", "no host") == "error"


def test_a_repository_on_a_host_that_is_not_allowed(doctor: Doctor, variables: dict[str, str]) -> None:
    store(variables["DATABASE_URL"], repository("https://hg.example.com/x", "stray", environments=[]))
    found = doctor()
    assert found.wrong()[0] == ("hg", "allowed_hosts", "error")
    assert "stray" in found.the("hg", "allowed_hosts")["detail"]


def test_repositories_whose_polls_fail_are_named(doctor: Doctor, variables: dict[str, str]) -> None:
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    failing = repository(
        f"http://{host}/gone", "gone", poll_error="404: there is no repository", poll_failures=7, graph=False
    )
    store(variables["DATABASE_URL"], failing)
    found = doctor().the("hg", "polls")
    assert found["status"] == "warning"
    assert found["detail"] == "gone: 404: there is no repository (7 polls in a row)"
    assert "repositories show gone" in found["remedy"]


def test_a_host_with_another_clock(doctor: Doctor, pretend: Pretended) -> None:
    pretend.answers["/"] = [(200, {"Date": formatdate(time.time() + 90, usegmt=True)}, b"")]
    host = pretend.url.removeprefix("http://")
    found = doctor(ALLOWED_HOSTS=json.dumps([host]))
    assert found.status("hg", f"clock of {host}") == "error"


def test_urls_of_an_earlier_release_that_pass_for_another_repository(doctor: Doctor, variables: dict[str, str]) -> None:
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"], repository(f"http://{host}/try%2Fx", "hidden"), repository(f"http://{host}/x", "x")
    )
    found = doctor()
    assert found.status("hg", "urls") == "error"
    assert f"hidden has the url http://{host}/try%2Fx" in found.the("hg", "urls")["detail"]
    assert "repositories remove hidden" in found.the("hg", "urls")["remedy"]


def test_a_repository_that_is_off_matters_to_nobody(doctor: Doctor, variables: dict[str, str]) -> None:
    store(variables["DATABASE_URL"], repository("https://hg.example.com/x", "off", enabled=False, scopes=["assume:y"]))
    assert len(doctor().wrong()) == 1


# --- Taskcluster -------------------------------------------------------------------------------------------------


def test_taskcluster_is_away(doctor: Doctor) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    found = doctor(TASKCLUSTER__ROOT_URL=url)
    assert found.status("taskcluster", "ping") == "error"
    assert url in found.the("taskcluster", "ping")["detail"]
    assert "it cannot be reached" in found.the("taskcluster", "ping")["detail"]
    assert "cannot be reached" in found.the("taskcluster", "credentials")["detail"]
    assert "could not be checked" in found.the("taskcluster", "credentials")["remedy"], "and may well be good"


def test_what_does_not_answer_is_told_from_what_is_not_there(doctor: Doctor, pretend: Pretended) -> None:
    pretend.hang("/api/auth/v1/ping")
    pretend.hang("/")
    host = pretend.url.removeprefix("http://")
    found = doctor("--seconds", "1", TASKCLUSTER__ROOT_URL=pretend.url, ALLOWED_HOSTS=json.dumps([host]))
    assert "answer" in found.the("taskcluster", "ping")["detail"]
    assert "reached" not in found.the("taskcluster", "ping")["detail"]
    assert "answer" in found.the("hg", host)["detail"]
    assert "reached" not in found.the("hg", host)["detail"]


def test_a_stale_signature_is_the_clocks_doing(doctor: Doctor, pretend: Pretended) -> None:
    headers = {"Date": formatdate(time.time() + 120, usegmt=True)}
    pretend.json("/api/auth/v1/ping", {"alive": True}, headers=headers)
    refusal = {"code": "AuthenticationFailed", "message": "Stale timestamp"}
    pretend.json("/api/auth/v1/scopes/current", refusal, 401)
    found = doctor(TASKCLUSTER__ROOT_URL=pretend.url)
    assert "Stale timestamp" in found.the("taskcluster", "credentials")["detail"]
    assert "clock" in found.the("taskcluster", "credentials")["remedy"]
    assert "access token" not in found.the("taskcluster", "credentials")["remedy"]
    assert found.status("taskcluster", "clock") == "error"


def test_no_credentials(doctor: Doctor) -> None:
    found = doctor(TASKCLUSTER__CLIENT_ID=None, TASKCLUSTER__ACCESS_TOKEN=None)
    assert found.the("taskcluster", "credentials")["detail"] == "none: no task can be created or cancelled"
    assert found.status("taskcluster", "credentials") == "error"


def test_wrong_credentials(doctor: Doctor) -> None:
    found = doctor(TASKCLUSTER__ACCESS_TOKEN="wrong-token-of-some-length")
    assert "refuses our credentials: Bad mac" in found.the("taskcluster", "credentials")["detail"]
    found = doctor(TASKCLUSTER__CLIENT_ID="nobody")
    assert "no such client: nobody" in found.the("taskcluster", "credentials")["detail"]
    assert found.status("taskcluster", "credentials") == "error"


@pytest.mark.parametrize("certificate", ["no json", "[]", '"x"'])
def test_a_certificate_that_is_none(doctor: Doctor, certificate: str) -> None:
    found = doctor(TASKCLUSTER__CERTIFICATE=certificate)
    assert found.status("taskcluster", "credentials") == "error"


def test_a_client_that_may_not_ask_for_its_scopes(doctor: Doctor, system: System) -> None:
    person = system.stack.sandbox["credentials"]["person"]
    found = doctor(TASKCLUSTER__CLIENT_ID=person["clientId"], TASKCLUSTER__ACCESS_TOKEN=person["accessToken"])
    assert found.status("taskcluster", "scopes") == "warning"
    assert "auth:current-scopes" in found.the("taskcluster", "scopes")["remedy"]


ALL = [
    "assume:repo:*",
    "queue:route:notify.*",
    "queue:get-task:*",
    "queue:status:*",
    "queue:list-task-group:*",
    "queue:list-dependent-tasks:*",
    "queue:list-artifacts:*",
    "queue:cancel-task:*",
    "queue:schedule-task:*",
]


def taskcluster(pretend: Pretended, scopes: Any, headers: dict[str, str] | None = None) -> str:
    """A Taskcluster whose caller has these scopes, whatever the credentials."""
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
"""What a project's role brings."""


@pytest.mark.parametrize(
    ("lacking", "check", "status"),
    [
        ("queue:get-task:*", "queue:get-task:*", "error"),
        ("queue:status:*", "queue:status:*", "error"),
        ("queue:list-task-group:*", "queue:list-task-group:*", "error"),
        ("queue:list-dependent-tasks:*", "queue:list-dependent-tasks:*", "error"),
        ("queue:list-artifacts:*", "queue:list-artifacts:*", "warning"),
        ("queue:cancel-task:*", "queue:cancel-task:*", "error"),
        ("queue:schedule-task:*", "queue:schedule-task:*", "error"),
    ],
)
def test_a_scope_that_is_missing(doctor: Doctor, pretend: Pretended, lacking: str, check: str, status: str) -> None:
    url = taskcluster(pretend, [scope for scope in ALL if scope != lacking], headers={"Date": formatdate(usegmt=True)})
    found = doctor(TASKCLUSTER__ROOT_URL=url)
    assert found.wrong()[0] == ("taskcluster", check, status)
    assert len(found.wrong()) == 2
    assert check in found.the("taskcluster", check)["remedy"]


def test_stars_satisfy_what_begins_so(doctor: Doctor, pretend: Pretended) -> None:
    url = taskcluster(pretend, ["queue:*", "assume:*"], headers={"Date": formatdate(usegmt=True)})
    assert len(doctor(TASKCLUSTER__ROOT_URL=url).wrong()) == 1


def test_scopes_of_some_schedulers(doctor: Doctor, pretend: Pretended) -> None:
    some_of = ["queue:cancel-task:gecko-level-1/*", "queue:cancel-task:gecko-level-3/*"]
    url = taskcluster(pretend, [*(scope for scope in ALL if "cancel" not in scope), *some_of])
    found = doctor(TASKCLUSTER__ROOT_URL=url).the("taskcluster", "queue:cancel-task:*")
    assert found["status"] == "warning"
    assert "only queue:cancel-task:gecko-level-1/*, queue:cancel-task:gecko-level-3/*" in found["detail"]


def test_a_projects_scopes_that_are_not_ours(doctor: Doctor, pretend: Pretended, variables: dict[str, str]) -> None:
    hg = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"],
        repository(f"http://{hg}/autoland", "autoland", scopes=["assume:other", "queue:x:*"]),
        repository(f"http://{hg}/quiet", "quiet", graph=False, scopes=["assume:nothing"], environments=[]),
    )
    url = taskcluster(pretend, [*(scope for scope in ALL if "notify" not in scope), "queue:x:y*"])
    found = doctor(TASKCLUSTER__ROOT_URL=url)
    details = [
        each["detail"] for each in found.findings if each["check"] == "repositories" and each["status"] == "error"
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
    found = doctor(TASKCLUSTER__ROOT_URL=url).the("taskcluster", "error tasks")
    assert found["status"] == "warning"
    assert words in found["detail"]
    asked = [json.loads(body)["scopes"] for _, path, body in pretend.asked if path.endswith("/expand")]
    assert ["assume:repo:x", "queue:route:notify.email.somebody@example.com.*"] in asked


def test_a_repository_without_a_trust_domain_is_named(doctor: Doctor, variables: dict[str, str]) -> None:
    """With the scopes of a real project's role: the sandbox's has one scheduler."""
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(variables["DATABASE_URL"], repository(f"http://{host}/plain", "plain"))
    found = doctor().the("taskcluster", "error tasks")
    assert found["status"] == "warning"
    assert "lack queue:scheduler-id:tc-treeherder: no task can show a broken file on pushes of plain" in found["detail"]
    assert "trust domain" in found["remedy"]


def test_scopes_that_may_not_be_expanded_are_said(doctor: Doctor, pretend: Pretended) -> None:
    url = taskcluster(pretend, ALL)
    refusal = "Client ID tc is missing the following scopes:\n\n```\nauth:expand-scopes\n```"
    pretend.answers["/api/auth/v1/scopes/expand"] = []
    pretend.json("/api/auth/v1/scopes/expand", {"code": "InsufficientScopes", "message": f"{refusal}\n\n---"}, 403)
    found = doctor(TASKCLUSTER__ROOT_URL=url).the("taskcluster", "error tasks")
    assert "not checked" in found["detail"]
    assert "auth:expand-scopes" in found["remedy"]


def test_many_names_are_counted() -> None:
    assert summarize_names(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_an_answer_that_is_none(doctor: Doctor, pretend: Pretended) -> None:
    found = doctor(TASKCLUSTER__ROOT_URL=taskcluster(pretend, "all"))
    assert "does not answer a list of scopes" in found.the("taskcluster", "credentials")["detail"]
    pretend.answers.clear()
    found = doctor(TASKCLUSTER__ROOT_URL=pretend.url)
    for check in ("ping", "credentials"):
        assert "404" in found.the("taskcluster", check)["detail"]
        assert "TASKCLUSTER__ROOT_URL" in found.the("taskcluster", check)["remedy"]
    assert "is not Taskcluster" in found.the("taskcluster", "ping")["detail"]


# --- clocks ------------------------------------------------------------------------------------------------------


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
    found = doctor(TASKCLUSTER__ROOT_URL=url, ENVIRONMENTS=json.dumps({"tc-treeherder": environment}))
    for system in ("taskcluster", TREEHERDER):
        assert found.status(system, "clock") == status
        assert words in found.the(system, "clock")["detail"]


# --- Treeherder --------------------------------------------------------------------------------------------------


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
    found = doctor(ENVIRONMENTS=environment(variables, url=url))
    assert url in found.the(TREEHERDER, "answer")["detail"]
    assert found.status(TREEHERDER, "answer") == "error"


def test_wrong_hawk_credentials(doctor: Doctor, variables: dict[str, str]) -> None:
    for wrong in ({"secret": "wrong-secret"}, {"client_id": "nobody"}):
        found = doctor(ENVIRONMENTS=environment(variables, **wrong)).the(TREEHERDER, "credentials")
        assert found["status"] == "error"
        assert "403" in found["detail"]
        assert "environments.tc-treeherder.secret" in found["remedy"]


def test_a_project_that_treeherder_does_not_know(doctor: Doctor, variables: dict[str, str]) -> None:
    hg = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"],
        repository(f"http://{hg}/a", "unheard-of"),
        repository(f"http://{hg}/b", "shown-nowhere", environments=[]),
    )
    found = doctor()
    assert found.the(TREEHERDER, "projects")["detail"] == "it does not have unheard-of"
    assert found.status(TREEHERDER, "credentials") == "ok"


def test_a_treeherder_that_takes_nothing_from_us_needs_no_credentials(
    doctor: Doctor, variables: dict[str, str]
) -> None:
    url = json.loads(variables["ENVIRONMENTS"])["tc-treeherder"]["url"]
    found = doctor(ENVIRONMENTS=json.dumps({"tc-treeherder": {"url": url, "pushes": "off"}}))
    assert [each["check"] for each in found.findings if each["system"] == TREEHERDER] == ["answer", "clock", "projects"]


@pytest.mark.parametrize(
    ("status", "finding", "words"),
    [(429, "warning", "429"), (500, "error", "500"), (400, "error", "by REST"), (404, "error", "docs/treeherders.md")],
)
def test_answers_to_the_empty_list(
    doctor: Doctor, variables: dict[str, str], pretend: Pretended, status: int, finding: str, words: str
) -> None:
    pretend.json("/api/repository/", {"results": [{"name": "try"}]}, headers={"Date": formatdate(usegmt=True)})
    pretend.json("/api/project/try/resultset/", {"detail": "no"}, status)
    found = doctor(ENVIRONMENTS=environment(variables, url=pretend.url)).the(TREEHERDER, "credentials")
    assert found["status"] == finding
    assert words in found["detail"] + found["remedy"]
    assert pretend.asked[-1] == ("POST", "/api/project/try/resultset/", b"[]")


def test_what_is_no_treeherder(doctor: Doctor, variables: dict[str, str], pretend: Pretended) -> None:
    found = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert "answers 404, without a list of repositories" in found.the(TREEHERDER, "answer")["detail"]
    pretend.answers["/api/repository/"] = [(301, {"Location": "https://example.com/"}, b"")]
    found = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert "https://example.com/" in found.the(TREEHERDER, "answer")["detail"]
    pretend.answers["/api/repository/"] = [(200, {}, b'[{"id": 1}]')]
    assert doctor(ENVIRONMENTS=environment(variables, url=pretend.url)).status(TREEHERDER, "answer") == "error"


def test_a_treeherder_without_any_project(doctor: Doctor, variables: dict[str, str], pretend: Pretended) -> None:
    pretend.json("/api/repository/", [], headers={"Date": formatdate(usegmt=True)})
    found = doctor(ENVIRONMENTS=environment(variables, url=pretend.url))
    assert found.status(TREEHERDER, "projects") == "error"
    assert found.status(TREEHERDER, "credentials") == "warning"

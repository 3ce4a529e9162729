"""All checks together: a healthy installation, a broken one, and one that hangs."""

import json
import time

from sandbox.stack import free_port
from tests.service.commands.conftest import Pretended, Run
from tests.service.commands.doctor.conftest import PLANTED, Doctor

NO_LISTENER = ("pulse listener", "connection", "warning")
"""The stack has no broker."""


def test_all_is_well(doctor: Doctor) -> None:
    report = doctor()
    assert report.problems() == [NO_LISTENER]
    systems = list(dict.fromkeys(finding["system"] for finding in report.findings))
    assert systems == [
        "settings",
        "database",
        "service",
        "hg",
        "taskcluster",
        "treeherder tc-treeherder",
        "pulse listener",
    ]
    assert report.ran.err == ""


def test_no_secret_is_shown_however_broken_all_is(run: Run, variables: dict[str, str], pretend: Pretended) -> None:
    port = free_port()
    environments = json.loads(variables["ENVIRONMENTS"])
    environments["tc-treeherder"]["secret"] = f"{PLANTED}-hawk"
    # servers that repeat what was sent to them
    pretend.json("/__heartbeat__", {"checks": [{"name": "x", "status": "error", "detail": f"said {PLANTED}-token!"}]})
    pretend.json("/api/auth/v1/scopes/current", {"message": f"no such token: {PLANTED}-access", "code": "x"}, 401)
    broken = {
        **variables,
        "DATABASE_URL": f"postgresql+psycopg://me:{PLANTED}@127.0.0.1:{port}/x?sslpassword={PLANTED}",
        "TASKCLUSTER__ROOT_URL": pretend.url,
        "TASKCLUSTER__ACCESS_TOKEN": f"{PLANTED}-access",
        "TOKENS": json.dumps([{"name": "me", "value": f"{PLANTED}-token", "scopes": ["*"]}]),
        "ENVIRONMENTS": json.dumps(environments),
        "PULSE__URL": f"amqp://me:{PLANTED}@127.0.0.1:{port}/%2F",
        "PULSE_URL": f"amqp://me:{PLANTED}%2F@127.0.0.1:{port}/%2F?heartbeat={PLANTED}",
        "TOKEN": f"{PLANTED}-mine",
    }
    for options in ([], ["--json"]):
        ran = run("doctor", "--url", pretend.url, *options, **broken)
        assert ran.code == 1
        assert PLANTED not in ran.out + ran.err
        assert "said ***!" in ran.out
        assert "no such token: ***" in ran.out
    (webhook,) = json.loads(variables["WEBHOOK_SECRETS"])
    assert webhook.removeprefix("whsec_") not in ran.out


def test_one_that_hangs_holds_up_nobody(doctor: Doctor, pretend: Pretended) -> None:
    pretend.hang("/api/auth/v1/ping")
    pretend.hang("/api/auth/v1/scopes/current")
    pretend.hang("/__heartbeat__")
    began = time.monotonic()
    report = doctor("--seconds", "2", "--url", pretend.url, TASKCLUSTER__ROOT_URL=pretend.url)
    assert time.monotonic() - began < 8
    assert (
        "ReadTimeout" in report.finding("service", "answer")["detail"]
        or "2 s" in report.finding("service", "answer")["detail"]
    )
    assert report.status("taskcluster", "ping") == "error"
    assert report.status("treeherder tc-treeherder", "credentials") == "ok"

"""Checks of the settings, the database and the service."""

import json
import re
import sqlite3
import time
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path

from sandbox.stack import free_port
from service.clock import now
from service.commands.doctor import local
from service.store.models import JobReport, Stage
from tests.service.commands.conftest import Pretended
from tests.service.commands.doctor.conftest import PLANTED, Doctor, store
from tests.system.conftest import System


def test_nothing_is_set_that_matters(doctor: Doctor) -> None:
    report = doctor(WEBHOOK_SECRETS=None, TOKENS=None, WEB_SIGN_IN__CLIENT_ID=None, ENVIRONMENTS=None)
    assert report.status("settings", "webhook_secrets") == "error"
    assert report.status("settings", "listeners") == "error"
    assert report.status("settings", "credentials") == "warning"
    assert report.status("settings", "environments") == "warning"
    assert "TC_TREEHERDER_WEBHOOK_SECRETS" in report.finding("settings", "webhook_secrets")["remedy"]


def test_a_database_that_is_not_there_is_not_made(doctor: Doctor, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.sqlite"
    report = doctor(DATABASE_URL=f"sqlite+aiosqlite:///{path}")
    assert report.status("database", "connection") == "warning"
    assert str(path) in report.finding("database", "connection")["detail"]
    assert not path.exists()


def test_a_schema_that_is_behind(doctor: Doctor, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    report = doctor(DATABASE_URL=f"sqlite+aiosqlite:///{path}")
    assert report.status("database", "schema") == "error"
    assert "db upgrade" in report.finding("database", "schema")["remedy"]


def test_a_database_that_is_away(doctor: Doctor) -> None:
    report = doctor(DATABASE_URL=f"postgresql+psycopg://me:{PLANTED}@127.0.0.1:{free_port()}/x")
    assert report.status("database", "connection") == "error"
    assert "refused" in report.finding("database", "connection")["detail"]


def test_on_postgresql(doctor: Doctor, postgres_url: str) -> None:
    report = doctor(DATABASE_URL=postgres_url)
    assert report.status("database", "schema") == "ok"
    assert report.status("database", "repositories") == "warning"


def test_no_service_answers(doctor: Doctor) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    report = doctor("--url", url)
    assert report.status("service", "answer") == "error"
    assert url in report.finding("service", "answer")["detail"]
    assert "serve" in report.finding("service", "answer")["remedy"]


def test_a_variable_that_is_no_setting_is_named(doctor: Doctor) -> None:
    report = doctor(POL__INTERVAL="1")
    finding = report.finding("settings", "TC_TREEHERDER_POL__INTERVAL")
    assert finding["status"] == "warning"
    assert "TC_TREEHERDER_POLL" in finding["remedy"]


def test_the_service_is_looked_for_where_the_settings_have_it(doctor: Doctor, system: System) -> None:
    assert doctor(SERVICE_URL=None, HOST="0.0.0.0").finding("service", "answer")["detail"] == system.stack.service_url


def test_a_service_that_is_not_well(doctor: Doctor, pretend: Pretended) -> None:
    checks = [
        {"name": "database", "status": "ok", "detail": ""},
        {"name": "polls", "status": "warning", "detail": "no good poll"},
        {"name": "worker", "status": "error", "detail": "the worker has ended"},
    ]
    pretend.json("/__heartbeat__", {"status": "error", "checks": checks}, 503)
    pretend.json("/__version__", {"version": "0.0.1", "commit": "abc"})
    report = doctor("--url", pretend.url)
    assert report.status("service", "heartbeat: database") == "ok"
    assert report.status("service", "heartbeat: polls") == "warning"
    assert report.finding("service", "heartbeat: worker")["detail"] == "the worker has ended"
    assert report.status("service", "heartbeat: worker") == "error"
    assert report.status("service", "version") == "warning"
    assert "the service has 0.0.1 abc, and this command" in report.finding("service", "version")["detail"]


def test_what_answers_is_no_service(doctor: Doctor, pretend: Pretended) -> None:
    report = doctor("--url", pretend.url)
    assert report.status("service", "answer") == "error"
    assert "without a list of checks" in report.finding("service", "answer")["detail"]


def test_the_signed_probe_is_taken_and_changes_nothing(doctor: Doctor, system: System) -> None:
    def known() -> set[tuple[str, int]]:
        return {(push["repository"], push["push_id"]) for push in system.pushes()}

    before = known()
    assert doctor().status("service", "signature") == "ok"
    assert known() == before


def test_a_listener_with_another_webhook_secret_is_found_out(doctor: Doctor) -> None:
    other = "whsec_" + "b3RoZXIh" * 5
    finding = doctor(WEBHOOK_SECRETS=json.dumps([other])).finding("service", "signature")
    assert finding["status"] == "error"
    assert "the secrets differ" in finding["detail"]
    assert "TC_TREEHERDER_WEBHOOK_SECRETS" in finding["remedy"]
    assert other not in finding["detail"] + finding["remedy"]


def test_a_signature_that_is_refused_for_the_clock(doctor: Doctor, pretend: Pretended) -> None:
    problem = {"title": "Not signed", "detail": "too old"}
    pretend.json(local.PROBE, problem, 401, {"Date": formatdate(time.time() + 400, usegmt=True)})
    finding = doctor("--url", pretend.url).finding("service", "signature")
    assert re.search(r"\b(399|400) s away", finding["detail"])
    assert "clocks" in finding["remedy"]
    (asked,) = [(method, body) for method, path, body in pretend.asked if path == local.PROBE]
    assert asked == ("POST", b'{"events":[]}')


def test_a_service_that_takes_no_posts(doctor: Doctor, pretend: Pretended) -> None:
    finding = doctor("--url", pretend.url).finding("service", "signature")
    assert (finding["status"], finding["detail"]) == ("error", "the service answers 404 to a signed, empty batch")


def test_reports_that_wait_for_an_unknown_push(doctor: Doctor, variables: dict[str, str]) -> None:
    since = now() - timedelta(hours=1)
    report = JobReport(
        task_id="A" * 22,
        run_id=0,
        environment="tc-treeherder",
        project="try",
        task_group_id="A" * 22,
        stage=Stage.RUNNING,
        run={},
        lane="job",
        no_push_since=since,
    )
    store(variables["DATABASE_URL"], report)
    finding = doctor().finding("database", "job reports")
    assert finding["status"] == "warning"
    assert finding["detail"].startswith("1 wait for a push that their Treeherder does not have")
    assert "reports list --waiting-for-push" in finding["remedy"]

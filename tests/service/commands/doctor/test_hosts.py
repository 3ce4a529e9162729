"""Checks of the hosts of monitored repositories."""

import json
import time
from email.utils import formatdate

from sandbox.stack import free_port
from tests.service.commands.conftest import Pretended
from tests.service.commands.doctor.conftest import Doctor, repository, store


def test_hosts_that_do_not_answer(doctor: Doctor, pretend: Pretended) -> None:
    pretend.answers["/"] = [(503, {}, b"")]
    away, ill = f"127.0.0.1:{free_port()}", pretend.url.removeprefix("http://")
    report = doctor(ALLOWED_HOSTS=json.dumps([away, ill, "no host"]))
    assert report.status("hg", away) == "error"
    assert report.finding("hg", ill)["detail"] == "it answers 503"
    assert report.status("hg", "no host") == "error"


def test_a_repository_on_a_host_that_is_not_allowed(doctor: Doctor, variables: dict[str, str]) -> None:
    store(variables["DATABASE_URL"], repository("https://hg.example.com/x", "stray", environments=[]))
    report = doctor()
    assert report.problems()[0] == ("hg", "allowed_hosts", "error")
    assert "stray" in report.finding("hg", "allowed_hosts")["detail"]


def test_repositories_whose_polls_fail_are_named(doctor: Doctor, variables: dict[str, str]) -> None:
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    failing = repository(
        f"http://{host}/gone", "gone", poll_error="404: there is no repository", poll_failures=7, graph=False
    )
    store(variables["DATABASE_URL"], failing)
    finding = doctor().finding("hg", "polls")
    assert finding["status"] == "warning"
    assert finding["detail"] == "gone: 404: there is no repository (7 polls in a row)"
    assert "repositories show gone" in finding["remedy"]


def test_a_host_with_another_clock(doctor: Doctor, pretend: Pretended) -> None:
    pretend.answers["/"] = [(200, {"Date": formatdate(time.time() + 90, usegmt=True)}, b"")]
    host = pretend.url.removeprefix("http://")
    report = doctor(ALLOWED_HOSTS=json.dumps([host]))
    assert report.status("hg", f"clock of {host}") == "error"


def test_urls_of_an_earlier_release_that_pass_for_another_repository(doctor: Doctor, variables: dict[str, str]) -> None:
    host = json.loads(variables["ALLOWED_HOSTS"])[0]
    store(
        variables["DATABASE_URL"], repository(f"http://{host}/try%2Fx", "hidden"), repository(f"http://{host}/x", "x")
    )
    report = doctor()
    assert report.status("hg", "urls") == "error"
    assert f"hidden has the url http://{host}/try%2Fx" in report.finding("hg", "urls")["detail"]
    assert "repositories remove hidden" in report.finding("hg", "urls")["remedy"]


def test_a_repository_that_is_off_matters_to_nobody(doctor: Doctor, variables: dict[str, str]) -> None:
    store(variables["DATABASE_URL"], repository("https://hg.example.com/x", "off", enabled=False, scopes=["assume:y"]))
    assert len(doctor().problems()) == 1

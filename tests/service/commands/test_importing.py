"""`repositories import`: the differences are shown, done on --apply, and done once."""

from pathlib import Path
from typing import Any

import pytest

from tests.service.commands.conftest import Pretended, Run
from tests.service.commands.test_sources import PUSH
from tests.system.conftest import System


def hg(system: System, alias: str) -> str:
    return f"{system.stack.sandbox['hg']}/{alias}"


@pytest.fixture
def projects(tmp_path: Path) -> Any:
    """Return a function that writes a projects.yml."""

    def write(text: str) -> str:
        path = tmp_path / "projects.yml"
        path.write_text(text)
        return str(path)

    return write


def dry_run_repositories(tc: Run) -> list[Any]:
    return [
        repository for repository in tc("repositories", "list", "--json").json if repository["alias"].startswith("dry-")
    ]


def test_a_dry_run_shows_the_differences_and_changes_nothing(
    system: System, tc: Run, pretend: Pretended, projects: Any
) -> None:
    for alias, level in (("dry-there", "1"), ("dry-level", "1"), ("dry-kept", "2"), ("dry-alias", "1")):
        tc("repositories", "add", alias, hg(system, alias), "--last-push-id", "0", "--disabled", "--level", level)
    before = dry_run_repositories(tc)
    file = projects(f"""\
dry-new: {{repo: {hg(system, "dry-new")}/, access: scm_level_2, trust_domain: gecko, artifacts: [a], {PUSH}}}
dry-none: {{repo: {hg(system, "dry-none")}, access: scm_somebody, {PUSH}}}
dry-there: {{repo: {hg(system, "dry-there")}, access: scm_level_1, {PUSH}}}
dry-level: {{repo: {hg(system, "dry-level")}, access: scm_nss, contains: "try:", {PUSH}}}
dry-kept: {{repo: {hg(system, "dry-kept")}, access: scm_somebody, {PUSH}}}
dry-alias: {{repo: {hg(system, "other")}, {PUSH}}}
dry-second: {{repo: {hg(system, "dry-there")}, {PUSH}}}
dry-far: {{repo: "https://hg.example.com/far", level: 1, {PUSH}}}
dry-odd: {{repo: {hg(system, "dry-odd")}, level: 1, environments: no-such-prefix, {PUSH}}}
dry-quiet: {{repo: {hg(system, "dry-quiet")}, level: 1, features: {{hg-push: false}}}}
dry-git: {{repo: "https://example.com/x.git", repo_type: git}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--json")
    assert ran.code == 0
    assert ran.json["applied"] is False
    rows = {row["alias"]: row for row in ran.json["repositories"]}
    assert {alias: row["verdict"] for alias, row in rows.items()} == {
        "dry-new": "new",
        "dry-none": "needs a level",
        "dry-there": "there",
        "dry-level": "changed",
        "dry-kept": "there",
        "dry-alias": "alias taken",
        "dry-second": "known",
        "dry-far": "host not allowed",
        "dry-odd": "refused",
        "dry-quiet": "left out",
        "dry-git": "left out",
    }
    role = f"assume:repo:{hg(system, 'dry-new').removeprefix('http://')}:branch:default"
    lines_of_new = {alias: (row["level"], row["scopes"] and len(row["scopes"])) for alias, row in rows.items()}
    assert {alias: lines_of_new[alias] for alias in ("dry-new", "dry-level", "dry-kept", "dry-none")} == {
        "dry-new": ("2", 1),
        "dry-level": ("3", 1),
        "dry-kept": ("2", 1),
        "dry-none": (None, None),
    }
    assert (rows["dry-new"]["url"], rows["dry-new"]["scopes"]) == (hg(system, "dry-new"), [role])
    assert rows["dry-new"]["changes"]["trust_domain"] == {"old": None, "new": "gecko"}
    assert "--level" in rows["dry-none"]["why"]
    assert rows["dry-level"]["changes"] == {
        "level": {"old": "1", "new": "3"},
        "contains": {"old": None, "new": "try:"},
    }
    assert rows["dry-new"]["ignored"] == ["artifacts"]
    assert rows["dry-far"]["why"] == "hg.example.com"
    assert "no-such-prefix" in rows["dry-odd"]["why"]
    assert dry_run_repositories(tc) == before

    table = tc("repositories", "import", "--from-projects", file)
    lines = {line.split()[0]: line for line in table.out.splitlines()[1:12]}
    assert lines["dry-level"].endswith("contains - → try:; level 1 → 3")
    assert lines["dry-new"].split()[2:] == ["new", "2", role, "trust_domain", "gecko;", "ignored:", "artifacts"]
    assert lines["dry-second"].split()[2:] == ["known", "-", "-", "as", "dry-there"]
    assert "Nothing was changed: add --apply to do it" in table.out


def test_apply_does_it_once(system: System, tc: Run, projects: Any) -> None:
    system.hg.post("/repositories", json={"repository": "twice-new"}).raise_for_status()
    options = ["--last-push-id", "0", "--disabled", "--level", "1"]
    tc("repositories", "add", "twice-old", hg(system, "twice-old"), *options)
    file = projects(f"""\
twice-new: {{repo: {hg(system, "twice-new")}, level: 2, trust_domain: gecko, enabled: false, {PUSH}}}
twice-old: {{repo: {hg(system, "twice-old")}, access: scm_level_3, {PUSH}}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--apply", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["counts"] == {"added": 1, "set": 1}
    new = tc("repositories", "show", "twice-new", "--json").json
    assert (new["level"], new["trust_domain"]) == ("2", "gecko")
    assert tc("repositories", "show", "twice-old", "--json").json["level"] == "3"
    second = tc("repositories", "import", "--from-projects", file, "--apply", "--json")
    assert second.code == 0
    assert second.json["counts"] == {"there": 2}


def test_it_goes_on_after_a_failure_and_says_so(system: System, tc: Run, projects: Any) -> None:
    system.hg.post("/repositories", json={"repository": "goes-on"}).raise_for_status()
    file = projects(f"""\
no-pushlog: {{repo: {hg(system, "no-pushlog")}, level: 1, {PUSH}}}
goes-on: {{repo: {hg(system, "goes-on")}, level: 1, enabled: false, {PUSH}}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--apply")
    assert ran.code == 1
    assert "1 of 2 failed" in ran.err
    lines = {line.split()[0]: line for line in ran.out.splitlines()[1:3]}
    assert "failed" in lines["no-pushlog"]
    assert "has no pushlog" in lines["no-pushlog"]
    assert "added" in lines["goes-on"]


def test_when_the_service_goes_away_the_rest_is_not_tried(run: Run, pretend: Pretended, projects: Any) -> None:
    pretend.json("/api/v1/repositories", {"items": [], "next": None})
    pretend.json("/api/v1/repositories/plan", {"url": "https://hg.mozilla.org/x", "level": "1", "scopes": []})
    pretend.answers["/api/v1/repositories"].append((502, {"Content-Type": "text/html"}, b"gone"))
    file = projects("".join(f"{a}: {{repo: https://hg.mozilla.org/{a}, level: 1, {PUSH}}}\n" for a in "ab"))
    ran = run("repositories", "import", "--from-projects", file, "--apply", "--json", "--url", pretend.url)
    assert ran.code == 3
    assert [row["verdict"] for row in ran.json["repositories"]] == ["failed", "not tried"]


def test_from_the_sandboxs_treeherder(system: System, tc: Run) -> None:
    ran = tc("repositories", "import", "--from-treeherder", system.stack.sandbox["treeherder"], "--json")
    assert ran.code == 0
    (row,) = [row for row in ran.json["repositories"] if row["alias"] == "autoland"]
    assert (row["verdict"], row["level"], row["scopes"]) == ("needs a level", None, None), "a Treeherder knows none"
    options = ["--from-treeherder", system.stack.sandbox["treeherder"], "--level", "3", "--json"]
    summary = tc("repositories", "import", *options).json["repositories"]
    (row,) = [row for row in summary if row["alias"] == "autoland"]
    assert (row["verdict"], row["level"], row["url"]) == ("new", "3", hg(system, "integration/autoland"))


def test_without_a_level_nothing_is_imported_and_that_is_a_failure(system: System, tc: Run, projects: Any) -> None:
    file = projects(f"no-level-in-file: {{repo: {hg(system, 'no-level-in-file')}, {PUSH}}}\n")
    ran = tc("repositories", "import", "--from-projects", file, "--apply")
    assert ran.code == 1
    assert "needs a level" in ran.out
    assert tc("repositories", "show", "no-level-in-file").code == 4


@pytest.mark.parametrize(
    "options",
    [[], ["--from-treeherder", "http://127.0.0.1", "--from-projects", "x"], ["--from-treeherder", "nonsense"]],
)
def test_where_from_must_be_said(tc: Run, options: list[str]) -> None:
    assert tc("repositories", "import", *options).code == 2

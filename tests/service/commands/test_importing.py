"""`repositories import`: the differences are shown, done on --apply, and done once."""

from pathlib import Path
from typing import Any

import pytest

from service.commands import Failed
from service.commands.sources import LeftOut, from_projects, from_treeherder
from tests.service.commands.conftest import Pretended, Run
from tests.system.conftest import System

PUSH = "features: {hg-push: true}"
"""Without that, an entry is not to be monitored."""


def hg(system: System, alias: str) -> str:
    return f"{system.stack.sandbox['hg']}/{alias}"


@pytest.fixture
def projects(tmp_path: Path) -> Any:
    """Writes a projects.yml."""

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


# --- sources -----------------------------------------------------------------------------------------------------


def test_of_a_treeherder_only_active_hg_repositories_are_wanted(pretend: Pretended) -> None:
    def entry(name: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "dvcs_type": "hg",
            "url": f"https://hg.mozilla.org/{name}",
            "active_status": "active",
            **more,
        }

    listing = [
        entry("mozilla-central", repository_group={"name": "development"}, is_try_repo=False),
        entry("old", active_status="onhold"),
        entry("fenix", dvcs_type="git"),
        entry("empty", url=""),
        entry("no alias"),
    ]
    pretend.json("/api/repository/", listing)
    source = from_treeherder(f"{pretend.url}/")
    (wanted,) = source.wanted
    assert (wanted.alias, wanted.url, wanted.fields) == (
        "mozilla-central",
        "https://hg.mozilla.org/mozilla-central",
        {},
    )
    assert [entry.alias for entry in source.left_out] == ["old", "fenix", "empty", "no alias"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, b""), "answers 404"),
        ((301, {"Location": "https://example.com/"}, b""), "https://example.com/"),
        ((200, {}, b"<html>"), "not answer a list of repositories"),
        ((200, {}, b'{"detail": "x"}'), "not answer a list of repositories"),
        ((200, {}, b"[1]"), "not a repository"),
    ],
)
def test_what_is_no_treeherder(pretend: Pretended, answer: Any, words: str) -> None:
    pretend.answers["/api/repository/"] = [answer]
    with pytest.raises(Failed, match=words):
        from_treeherder(pretend.url)


def test_an_endless_listing_is_not_read(pretend: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.sources.MAX_LISTING", 100)
    pretend.json("/api/repository/", ["x" * 1000])
    with pytest.raises(Failed, match="more than 100 bytes"):
        from_treeherder(pretend.url)


FIELDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("level: 3", {"level": "3"}, []),
    ("access: scm_level_1", {"level": "1"}, []),
    ("access: scm_level_2", {"level": "2"}, []),
    ("access: scm_level_3", {"level": "3"}, []),
    *((f"access: scm_{name}", {"level": "3"}, []) for name in ("autoland", "nss", "versioncontrol", "firefoxci")),
    ("access: scm_allow_direct_push", {"level": "3"}, []),
    ("access: scm_level_4", {}, ["access: 'scm_level_4'"]),
    ("access: [scm_nss]", {}, ["access: ['scm_nss']"]),
    ("access: 3", {}, ["access: 3"]),
    ("access: scm_level_3, level: 2", {"level": "2"}, []),
    ("trust_domain: gecko", {"trust_domain": "gecko"}, []),
    ("trust_domain: 7", {}, ["trust_domain: 7"]),
    ("level: true", {}, ["level: True"]),
    ("scopes: [a, b]", {"scopes": ["a", "b"]}, []),
    ("scopes: a", {"scopes": ["a"]}, []),
    ("scopes: [1]", {}, ["scopes: [1]"]),
    ("contains: 'try:'", {"contains": "try:"}, []),
    ("contains: ['try:']", {"contains": "try:"}, []),
    ("contains: [a, b]", {}, ["contains: ['a', 'b']"]),
    ("graph: false", {"graph": False}, []),
    ("enabled: false", {"enabled": False}, []),
    ("environments: null", {"environments": None}, []),
    ("environments: []", {"environments": []}, []),
    ("environments: tc-treeherder", {"environments": ["tc-treeherder"]}, []),
    ("environments: [a, b]", {"environments": ["a", "b"]}, []),
    ("environments: https://treeherder.mozilla.org", {}, ["environments: 'https://treeherder.mozilla.org'"]),
    ("url: https://example.com/template, branches: [{name: main}]", {}, ["url", "branches"]),
    ("owner: me, 7: x", {}, ["owner", "7"]),
]


@pytest.mark.parametrize(("text", "fields", "ignored"), FIELDS)
def test_keys_of_a_project(tmp_path: Path, text: str, fields: dict[str, Any], ignored: list[str]) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(f"a: {{repo: https://hg.mozilla.org/a, {PUSH}, {text}}}\n")
    (wanted,) = from_projects(path).wanted
    assert wanted.fields == fields
    assert wanted.ignored == ignored


def test_what_is_not_wanted_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(
        f"projects:\n  good: {{repo: 'HTTPS://HG.Mozilla.org/Good/', {PUSH}}}\n  bad name: {{repo: x, {PUSH}}}\n"
        "  more: {repo: 'https://hg.mozilla.org/more', features: {hg-push: {enabled: true}}}\n"
        "  old: {url: x, level: 1, contains: x}\n  git: {repo: x, repo_type: git, features: {git-push: true}}\n"
        "  quiet: {repo: x, features: {hg-push: false}}\n  cron: {repo: x, features: {gecko-cron: true}}\n"
        "  bare: {repo: x}\n  word: x\n"
    )
    source = from_projects(path)
    assert [(wanted.alias, wanted.url) for wanted in source.wanted] == [
        ("good", "https://hg.mozilla.org/Good"),
        ("more", "https://hg.mozilla.org/more"),
    ]
    unmonitored = "it is not monitored: features has no hg-push, or hg-push is false"
    assert source.left_out == [
        LeftOut("bad name", "its name is not an alias: 1 to 50 of A-Z a-z 0-9 _ -"),
        LeftOut("old", "it has no repo, which is its URL"),
        LeftOut("git", "it is git, not hg"),
        LeftOut("quiet", unmonitored),
        LeftOut("cron", unmonitored),
        LeftOut("bare", unmonitored),
        LeftOut("word", "it is not a mapping"),
    ]


@pytest.mark.parametrize("text", ["", "[a]", "a: [b", "\x00", "x"])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(text)
    with pytest.raises(Failed, match=r"projects\.yml is not (YAML|a mapping)") as error:
        from_projects(path)
    assert error.value.code == 2
    with pytest.raises(Failed, match="cannot be read"):
        from_projects(tmp_path / "nowhere")

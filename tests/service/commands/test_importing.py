"""`repositories import`: the differences are shown, done on --apply, and done once."""

from pathlib import Path
from typing import Any

import pytest

from service.commands import Failed
from service.commands.sources import LeftOut, from_projects, from_treeherder
from tests.service.commands.conftest import Pretended, Run
from tests.system.conftest import System


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


def ours(tc: Run) -> list[Any]:
    return [each for each in tc("repositories", "list", "--json").json if each["alias"].startswith("dry-")]


def test_a_dry_run_shows_the_differences_and_changes_nothing(
    system: System, tc: Run, pretend: Pretended, projects: Any
) -> None:
    for alias, options in (("dry-there", []), ("dry-level", ["--level", "1"]), ("dry-alias", [])):
        tc("repositories", "add", alias, hg(system, alias), "--last-push-id", "0", "--disabled", *options)
    before = ours(tc)
    file = projects(f"""\
dry-new: {{url: {hg(system, "dry-new")}/, level: 2, artifacts: [a]}}
dry-there: {{url: {hg(system, "dry-there")}, level: 1}}
dry-level: {{url: {hg(system, "dry-level")}, level: 3, contains: "try:"}}
dry-alias: {{url: {hg(system, "other")}}}
dry-second: {{url: {hg(system, "dry-there")}}}
dry-far: {{url: "https://hg.example.com/far"}}
dry-odd: {{url: {hg(system, "dry-odd")}, treeherder: no-such-prefix}}
dry-git: {{url: "https://example.com/x.git", type: git}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--json")
    assert ran.code == 0
    assert ran.json["applied"] is False
    rows = {row["alias"]: row for row in ran.json["repositories"]}
    assert {alias: row["verdict"] for alias, row in rows.items()} == {
        "dry-new": "new",
        "dry-there": "there",
        "dry-level": "changed",
        "dry-alias": "alias taken",
        "dry-second": "known",
        "dry-far": "host not allowed",
        "dry-odd": "refused",
        "dry-git": "left out",
    }
    assert rows["dry-level"]["changes"] == {
        "level": {"old": "1", "new": "3"},
        "contains": {"old": None, "new": "try:"},
    }
    assert rows["dry-new"]["ignored"] == ["artifacts"]
    assert rows["dry-far"]["why"] == "hg.example.com"
    assert "no-such-prefix" in rows["dry-odd"]["why"]
    assert ours(tc) == before

    told = tc("repositories", "import", "--from-projects", file)
    lines = {line.split()[0]: line for line in told.out.splitlines()[1:9]}
    assert lines["dry-level"].endswith("changed           level 1 → 3; contains - → try:")
    assert lines["dry-new"].endswith("level 2; ignored: artifacts")
    assert lines["dry-second"].endswith("known             as dry-there")
    assert "Nothing was changed: --apply does it" in told.out


def test_apply_does_it_once(system: System, tc: Run, projects: Any) -> None:
    system.hg.post("/repositories", json={"repository": "twice-new"}).raise_for_status()
    tc("repositories", "add", "twice-old", hg(system, "twice-old"), "--last-push-id", "0", "--disabled")
    file = projects(f"""\
twice-new: {{url: {hg(system, "twice-new")}, level: 2, enabled: false}}
twice-old: {{url: {hg(system, "twice-old")}, level: 3}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--apply", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["counts"] == {"added": 1, "set": 1}
    assert tc("repositories", "show", "twice-new", "--json").json["level"] == "2"
    assert tc("repositories", "show", "twice-old", "--json").json["level"] == "3"
    again = tc("repositories", "import", "--from-projects", file, "--apply", "--json")
    assert again.code == 0
    assert again.json["counts"] == {"there": 2}


def test_it_goes_on_after_a_failure_and_says_so(system: System, tc: Run, projects: Any) -> None:
    system.hg.post("/repositories", json={"repository": "goes-on"}).raise_for_status()
    file = projects(f"""\
no-pushlog: {{url: {hg(system, "no-pushlog")}}}
goes-on: {{url: {hg(system, "goes-on")}, enabled: false}}
""")
    ran = tc("repositories", "import", "--from-projects", file, "--apply")
    assert ran.code == 1
    assert "1 of 2 failed" in ran.err
    lines = {line.split()[0]: line for line in ran.out.splitlines()[1:3]}
    assert "failed" in lines["no-pushlog"]
    assert "is no repository with a pushlog" in lines["no-pushlog"]
    assert "added" in lines["goes-on"]


def test_when_the_service_goes_away_the_rest_is_not_tried(run: Run, pretend: Pretended, projects: Any) -> None:
    pretend.json("/api/v1/repositories", {"items": [], "next": None})
    pretend.json("/api/v1/repositories/plan", {"url": "https://hg.mozilla.org/x", "scopes": []})
    pretend.answers["/api/v1/repositories"].append((502, {"Content-Type": "text/html"}, b"gone"))
    file = projects("a: {url: https://hg.mozilla.org/a}\nb: {url: https://hg.mozilla.org/b}\n")
    ran = run("repositories", "import", "--from-projects", file, "--apply", "--json", "--url", pretend.url)
    assert ran.code == 3
    assert [row["verdict"] for row in ran.json["repositories"]] == ["failed", "not tried"]


def test_from_the_sandboxs_treeherder(system: System, tc: Run) -> None:
    ran = tc("repositories", "import", "--from-treeherder", system.stack.sandbox["treeherder"], "--json")
    assert ran.code == 0
    (row,) = [row for row in ran.json["repositories"] if row["alias"] == "autoland"]
    assert (row["verdict"], row["url"]) == ("new", hg(system, "integration/autoland"))


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
    assert [each.alias for each in source.left_out] == ["old", "fenix", "empty", "no alias"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, b""), "answers 404"),
        ((301, {"Location": "https://example.com/"}, b""), "https://example.com/"),
        ((200, {}, b"<html>"), "no list of repositories"),
        ((200, {}, b'{"detail": "x"}'), "no list of repositories"),
        ((200, {}, b"[1]"), "no repository"),
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
    ("level: scm_level_2", {"level": "2"}, []),
    ("level: true", {}, ["level: True"]),
    ("scopes: [a, b]", {"scopes": ["a", "b"]}, []),
    ("scopes: a", {"scopes": ["a"]}, []),
    ("scopes: [1]", {}, ["scopes: [1]"]),
    ("contains: 'try:'", {"contains": "try:"}, []),
    ("contains: ['try:']", {"contains": "try:"}, []),
    ("contains: [a, b]", {}, ["contains: ['a', 'b']"]),
    ("graph: false", {"graph": False}, []),
    ("taskcluster: true", {"graph": True}, []),
    ("taskcluster: {x: y}", {}, ["taskcluster: {'x': 'y'}"]),
    ("active: false", {"enabled": False}, []),
    ("treeherder: true", {"environments": None}, []),
    ("treeherder: false", {"environments": []}, []),
    ("treeherder: tc-treeherder", {"environments": ["tc-treeherder"]}, []),
    ("treeherder: [a, b]", {"environments": ["a", "b"]}, []),
    ("treeherder: https://treeherder.mozilla.org", {}, ["treeherder: 'https://treeherder.mozilla.org'"]),
    ("treeherder: true, environments: [a]", {"environments": None}, ["environments: ['a']"]),
    ("owner: me, 7: x", {}, ["owner", "7"]),
]


@pytest.mark.parametrize(("text", "fields", "ignored"), FIELDS)
def test_keys_of_a_project(tmp_path: Path, text: str, fields: dict[str, Any], ignored: list[str]) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(f"a: {{url: https://hg.mozilla.org/a, {text}}}\n")
    (wanted,) = from_projects(path).wanted
    assert wanted.fields == fields
    assert wanted.ignored == ignored


def test_what_is_not_wanted_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(
        "projects:\n  good: {repo: 'HTTPS://HG.Mozilla.org/Good/'}\n  bad name: {url: x}\n  none: {level: 1}\n"
        "  git: {url: x, dvcs_type: git}\n  idle: {url: x, active_status: onhold}\n  word: x\n"
    )
    source = from_projects(path)
    assert [(wanted.alias, wanted.url) for wanted in source.wanted] == [("good", "https://hg.mozilla.org/Good")]
    assert source.left_out == [
        LeftOut("bad name", "its name is no alias: 1 to 50 of A-Z a-z 0-9 _ -"),
        LeftOut("none", "it has no url"),
        LeftOut("git", "it is git, not hg"),
        LeftOut("idle", "it is onhold, not active"),
        LeftOut("word", "it is no mapping"),
    ]


@pytest.mark.parametrize("text", ["", "[a]", "a: [b", "\x00", "x"])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "projects.yml"
    path.write_text(text)
    with pytest.raises(Failed, match=r"projects\.yml is no") as error:
        from_projects(path)
    assert error.value.code == 2
    with pytest.raises(Failed, match="cannot be read"):
        from_projects(tmp_path / "nowhere")

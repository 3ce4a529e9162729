"""Repositories of a Treeherder and of a projects.yml: those to import, and those that are left out."""

from pathlib import Path
from typing import Any

import pytest

from service.commands import Failed
from service.commands.sources import LeftOut, from_projects, from_treeherder
from tests.service.commands.conftest import Pretended

PUSH = "features: {hg-push: true}"
"""Without that, an entry is not to be monitored."""


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
    ("supersede: pusher", {"supersede": "pusher"}, []),
    ("supersede: off", {"supersede": "off"}, []),
    ("supersede: true", {}, ["supersede: True"]),
    ("supersede: everybody", {}, ["supersede: 'everybody'"]),
    ("environments: null", {"environments": None}, []),
    ("environments: []", {"environments": []}, []),
    ("environments: tc-treeherder", {"environments": ["tc-treeherder"]}, []),
    ("environments: [a, b]", {"environments": ["a", "b"]}, []),
    ("environments: https://treeherder.mozilla.org", {}, ["environments: 'https://treeherder.mozilla.org'"]),
    ("actions: auto", {"actions": "auto"}, []),
    ("actions: tree", {}, ["actions: 'tree'"]),
    ("actions: [auto]", {}, ["actions: ['auto']"]),
    ("pulse_actions: [retrigger, backfill]", {"pulse_actions": ["retrigger", "backfill"]}, []),
    ("pulse_actions: retrigger", {}, ["pulse_actions: 'retrigger'"]),
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

"""Make releases in a copy of the repository, with another check than .ci/run: that one would run this test."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SECTION = "- Somebody can do something."


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a repository of this tree's files as they are now, committed, with one line under [Unreleased]."""
    folder = tmp_path / "clone"
    git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder))
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    for tag in git(folder, "tag", "--list").split():
        git(folder, "tag", "--delete", tag)
    changelog = folder / "CHANGELOG.md"
    changelog.write_text(
        f"# Changelog\n\n## [Unreleased]\n\n### Added\n\n{SECTION}\n\n## [0.0.1] - 2015-10-01\n\n- Begun.\n"
    )
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.com")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "As it is")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def release(folder: Path, *arguments: str, check: str = "true") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "RELEASE_CHECK": check}
    return subprocess.run(
        [folder / "bin" / "release", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def state(folder: Path) -> tuple[str, str, str]:
    """Return what a refused release must not change."""
    return git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain"), git(folder, "tag", "--list")


def test_a_release_is_committed_tagged_and_built(clone: Path) -> None:
    done = release(clone, "1.2.0", check="grep -q '\"1.2.0\"' pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(clone, "log", "-1", "--format=%s") == "Release 1.2.0\n"
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "cat-file", "-t", "v1.2.0") == "tag\n"
    assert git(clone, "rev-parse", "v1.2.0^{commit}") == git(clone, "rev-parse", "HEAD")
    assert SECTION in git(clone, "tag", "--list", "--format=%(contents)", "v1.2.0")
    assert "Begun" not in git(clone, "tag", "--list", "--format=%(contents)", "v1.2.0")
    assert tomllib.loads((clone / "pyproject.toml").read_text())["project"]["version"] == "1.2.0"
    chart = yaml.safe_load((clone / "helm" / "tc-treeherder" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("1.2.0", "1.2.0")
    changelog = (clone / "CHANGELOG.md").read_text()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert re.search(rf"## \[Unreleased\]\n\n## \[1\.2\.0\] - {today}\n\n### Added\n\n{re.escape(SECTION)}", changelog)

    dist = clone / "dist"
    built = {"tc_treeherder-1.2.0-py3-none-any.whl", "tc_treeherder-1.2.0.tar.gz", "tc-treeherder-1.2.0.tgz"}
    lines = [line.split() for line in (dist / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert set(sums) == built
    assert {path.name for path in dist.iterdir()} == built | {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
    with zipfile.ZipFile(dist / "tc_treeherder-1.2.0-py3-none-any.whl") as wheel:
        names = wheel.namelist()
    assert {"service/cli.py", "listeners/pulse.py", "service/_alembic/env.py", "service/_docs/alerts.md"} <= set(names)
    top_level = {name.split("/")[0] for name in names}
    assert top_level == {"service", "listeners", "tc_treeherder-1.2.0.dist-info"}
    with tarfile.open(dist / "tc-treeherder-1.2.0.tgz") as packed:
        assert "tc-treeherder/files/dashboard.json" in packed.getnames()
    for words in (
        "git push --follow-tags",
        "bin/build-image --tag REGISTRY/tc-treeherder:1.2.0",
        "git tag --delete v1.2.0",
    ):
        assert words in done.stdout


def test_a_release_that_fails_its_check_changes_nothing(clone: Path) -> None:
    before = state(clone)
    done = release(clone, "1.2.0", check="echo tests failed; false")
    assert done.returncode == 1
    assert "failed: its own words are above" in done.stderr
    assert "nothing was committed or tagged" in done.stderr
    assert state(clone) == before
    assert not (clone / "dist").exists()


def test_what_is_no_version_is_refused(clone: Path) -> None:
    before = state(clone)
    for arguments in ([], ["1.2"], ["v1.2.0"], ["1.2.0-rc.1"], ["01.2.0"], ["1.2.0", "1.3.0"]):
        done = release(clone, *arguments)
        assert done.returncode == 2, arguments
        assert "usage: bin/release X.Y.Z" in done.stderr
    assert state(clone) == before


def test_a_version_that_is_taken_or_lower_is_refused(clone: Path) -> None:
    git(clone, "tag", "v0.9.0")
    assert "0.0.9 is below the present version" in release(clone, "0.0.9").stderr
    present = tomllib.loads((clone / "pyproject.toml").read_text())["project"]["version"]
    assert f"{present} is the present version" in release(clone, present).stderr
    assert "there is a tag v0.9.0 already" in release(clone, "0.9.0").stderr


def test_a_tree_with_changes_is_refused(clone: Path) -> None:
    (clone / "stray").write_text("")
    assert "the tree has changes or unknown files" in release(clone, "1.2.0").stderr


def test_a_release_that_says_nothing_is_refused(clone: Path) -> None:
    (clone / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.0.1] - 2015-10-01\n\n- Begun.\n"
    )
    git(clone, "commit", "--quiet", "--all", "--message", "Say nothing")
    assert "CHANGELOG.md has nothing under [Unreleased]" in release(clone, "1.2.0").stderr

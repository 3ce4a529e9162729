import json
from importlib.metadata import version
from pathlib import Path

import pytest

from service.contract.build import read_build


def test_without_an_image_it_is_the_version_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_build() == {"source": "", "version": version("tc-treeherder"), "commit": "", "build": ""}


def test_in_an_image_it_is_what_the_build_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = {"source": "https://example.com", "version": "1.2.3", "commit": "abc", "build": "https://ci"}
    (tmp_path / "version.json").write_text(json.dumps(image))
    assert read_build() == image

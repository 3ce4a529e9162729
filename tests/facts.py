"""Where the published schemas and recorded answers of other projects are found: never in this repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def _folder() -> Path:
    return Path(os.environ.get("TC_TREEHERDER_FACTS", _BESIDE))


def have_facts() -> bool:
    """Return True if the folder is there. What runs outside a test, as in a server's answer, must not call `facts`."""
    return _folder().is_dir()


def facts() -> Path:
    """The folder with other projects' schemas and recordings: `TC_TREEHERDER_FACTS`, or `shared/data` beside the clone.

    Skips the calling test, saying so, where there is none.
    """
    if not have_facts():
        pytest.skip(f"no published schemas at {_folder()}: set TC_TREEHERDER_FACTS to a folder that has them")
    return _folder()


def fact(name: str) -> Any:
    """One of those files, read as JSON; `name` is its path below the folder."""
    return json.loads((facts() / name).read_text())

"""Read the published schemas and recorded answers of other projects, which are never in this repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def _folder() -> Path:
    return Path(os.environ.get("TC_TREEHERDER_FACTS", _BESIDE))


def has_published_schemas() -> bool:
    """Return True if the folder exists.

    Code that runs outside a test, as in a server's answer, asks this and must not call `published_folder`.
    """
    return _folder().is_dir()


def published_folder() -> Path:
    """Return the folder `TC_TREEHERDER_FACTS`, or `shared/data` beside the clone.

    Skips the calling test if the folder is missing, and names the variable to set.
    """
    if not has_published_schemas():
        pytest.skip(f"no published schemas at {_folder()}: set TC_TREEHERDER_FACTS to a folder that has them")
    return _folder()


def read_published(name: str) -> Any:
    """Return the parsed JSON of one file; `name` is its path below the folder."""
    return json.loads((published_folder() / name).read_text())

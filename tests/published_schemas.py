"""Read the published schemas and recorded answers of other projects, which are never in this repository.

A test that needs them has the marker `published`: without the folder it is left out (tests/conftest.py).
"""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "TC_TREEHERDER_FACTS"
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def published_folder() -> Path:
    """Return the folder `TC_TREEHERDER_FACTS`, or `shared/data` beside the clone."""
    return Path(os.environ.get(VARIABLE, _BESIDE))


def has_published_schemas() -> bool:
    """Return True if the folder exists."""
    return published_folder().is_dir()


def read_published(name: str) -> Any:
    """Return the parsed JSON of one file; `name` is its path below the folder."""
    return json.loads((published_folder() / name).read_text())

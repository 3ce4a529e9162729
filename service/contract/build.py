"""Read what is running: version, commit, and where it was built."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any


def read_build() -> dict[str, Any]:
    """Return Dockerflow's version object: version.json of the image, else the version of the package."""
    for folder in (Path("/app"), Path.cwd()):
        path = folder / "version.json"
        if path.is_file():
            contents: dict[str, Any] = json.loads(path.read_text())
            return contents
    return {"source": "", "version": version("tc-treeherder"), "commit": "", "build": ""}

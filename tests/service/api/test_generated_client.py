"""A client that is generated from our OpenAPI document works against the service."""

import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.api.test_limit import served
from tests.service.asgi import ADMIN
from tests.service.flow.graph_factory import slug

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Generate a client, and return the name of its package."""
    folder = tmp_path_factory.mktemp("client")
    config = folder / "config.yml"
    config.write_text(json.dumps({"post_hooks": []}))
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--meta", "none"]
    command += ["--path", str(ROOT / "docs" / "openapi.json"), "--output-path", str(folder / "generated_client")]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout, done.stdout
    sys.path.insert(0, str(folder))
    return "generated_client"


def test_every_module_can_be_imported(package: str) -> None:
    folder = Path(importlib.import_module(package).__file__ or "").parent
    for path in folder.rglob("*.py"):
        name = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        importlib.import_module(name)


async def test_it_adds_a_repository_lists_pushes_plans_and_runs_an_action(package: str, sqlite_url: str) -> None:
    def of(module: str) -> Any:
        return importlib.import_module(f"{package}.{module}")

    models = of("models")
    async with served(sqlite_url, 30) as (port, _):
        client = of("client").AuthenticatedClient(base_url=f"http://127.0.0.1:{port}", token=ADMIN)

        def use() -> None:
            with client:
                call()

        def call() -> None:
            repository = models.RepositoryCreate(
                alias="mc", url="https://hg.mozilla.org/mozilla-central", level="3", last_push_id=100
            )
            created = of("api.repositories.add_repository").sync(client=client, body=repository)
            assert (created.alias, created.last_push_id) == ("mc", 100)
            change = models.RepositoryPatch(contains="try:")
            changed = of("api.repositories.change_repository").sync("mc", client=client, body=change)
            assert changed.contains == "try:"
            assert of("api.pushes.list_pushes").sync(client=client).items == []
            wanted = models.ActionCreate(action="cancel", project="mc", task_id=slug("x"))
            refused = of("api.actions.plan_action").sync(client=client, body=wanted)
            assert (refused.status, refused.type_) == (502, "/problems#upstream-unavailable")
            action = of("api.actions.create_action").sync(client=client, body=wanted)
            assert (action.action, action.state) == ("cancel", "received")
            assert of("api.actions.get_action").sync(action.id, client=client).id == action.id

        await asyncio.to_thread(use)

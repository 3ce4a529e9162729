"""Command of the sandbox, and its errors."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse
from typer.testing import CliRunner, Result

from sandbox import hg, treeherder
from sandbox.cli import app
from sandbox.stack import free_port
from sandbox.treeherder.store import Repository, Store
from tests.service.harness import serving


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


async def test_a_push_arrives_with_its_files(tmp_path: Path) -> None:
    pushlog = hg.MemoryPushlog()
    pushlog.create("try")
    (tmp_path / ".taskcluster.yml").write_text("version: 1")
    async with serving(hg.create_app(pushlog)) as url:
        arguments = (
            "push",
            "try",
            str(tmp_path / ".taskcluster.yml"),
            "-m",
            "Bug 1",
            "--user",
            "me@x",
            "--hg-url",
            url,
        )
        done = await asyncio.to_thread(invoke, *arguments)
    listing = json.loads(pushlog.json_pushes("try", hg.Query.parse([("version", "2"), ("full", "1")])))
    pushed = listing["pushes"]["1"]
    (changeset,) = pushed["changesets"]
    assert done.exit_code == 0, done.output
    assert done.output == f"push 1 of try: {changeset['node']}\n"
    assert (pushed["user"], changeset["desc"], changeset["files"]) == ("me@x", "Bug 1", [".taskcluster.yml"])


async def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with serving(hg.create_app(hg.MemoryPushlog())) as url:
        done = await asyncio.to_thread(invoke, "push", "nothing", "--hg-url", url)
    assert done.exit_code == 1
    assert done.output == f"sandbox: The sandbox at {url} refuses this: no repository 'nothing': create one\n"


async def test_another_server_is_told_from_a_sandbox() -> None:
    async with serving(PlainTextResponse("<p>Unsupported", 501)) as url:
        done = await asyncio.to_thread(invoke, "push", "try", "--hg-url", url)
    assert done.exit_code == 1
    assert done.output.startswith(f"sandbox: What answers at {url} is no sandbox. Start one with bin/sandbox")


def test_without_a_sandbox_it_says_how_to_start_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = invoke("push", "try", "--hg-url", url)
    assert done.exit_code == 1
    assert f"No sandbox answers at {url}" in done.output
    assert "bin/sandbox" in done.output


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "missing.yml", "No such file"), (tmp_path, "Is a directory")):
        done = invoke("push", "try", str(path))
        assert done.exit_code == 1
        assert f"The file {path} cannot be read: {why}" in done.output


def resultset(node: str) -> dict[str, Any]:
    revision = {"revision": node, "author": "", "comment": "Bug 7 - first\n\nmore", "files": [], "branch": "default"}
    return {
        "revision": node,
        "revision_hash": hashlib.sha1(f"{node}default".encode()).hexdigest(),
        "push_timestamp": 1561576431,
        "author": "ada@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": [revision | {"repository": "mine"}],
    }


async def test_a_repository_is_created_with_its_project() -> None:
    pushlog, store = hg.MemoryPushlog(), Store([])
    async with (
        serving(hg.create_app(pushlog)) as hg_url,
        serving(treeherder.create_app(treeherder.State(store, {}, None))) as treeherder_url,
    ):
        urls = ("--hg-url", hg_url, "--treeherder-url", treeherder_url)
        done = await asyncio.to_thread(invoke, "create", "projects/mine", *urls)
        again = await asyncio.to_thread(invoke, "create", "projects/mine", *urls)
    assert (done.exit_code, done.output) == (0, f"{hg_url}/projects/mine is there.\n")
    assert pushlog.repositories() == ["projects/mine"]
    assert store.repositories["mine"].url == f"{hg_url}/projects/mine"
    assert again.exit_code == 1
    assert "projects/mine" in again.output


async def test_jobs_shows_the_newest_pushes_first() -> None:
    store = Store([Repository("mine")])
    nodes = ["1" * 40, "2" * 40, "3" * 40]
    store.store_resultsets("mine", [resultset(node) for node in nodes])
    async with serving(treeherder.create_app(treeherder.State(store, {}, None))) as url:
        done = await asyncio.to_thread(invoke, "jobs", "mine", "--limit", "2", "--treeherder-url", url)
        unknown = await asyncio.to_thread(invoke, "jobs", "yours", "--treeherder-url", url)
        nested = await asyncio.to_thread(invoke, "jobs", "x/mine", "--treeherder-url", url)
        pressed = await asyncio.to_thread(invoke, "press", "cancel", "mine", "B", "--treeherder-url", url)
    assert done.output.splitlines() == [f"{node[:12]}  ada@example.com  Bug 7 - first" for node in nodes[:0:-1]]
    assert (unknown.exit_code, pressed.exit_code) == (1, 1)
    assert "no project x/mine. It is called mine there: bin/sandbox jobs mine." in nested.output
    assert "no project yours. Create it with bin/sandbox create yours." in unknown.output
    assert "no job with the symbol B. See bin/sandbox jobs mine." in pressed.output

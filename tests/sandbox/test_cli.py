"""Command of the sandbox, and its errors."""

import asyncio
import json
from pathlib import Path

from starlette.responses import PlainTextResponse
from typer.testing import CliRunner, Result

from sandbox import hg
from sandbox.cli import app
from sandbox.stack import free_port
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
    assert done.output == f"sandbox: The sandbox at {url} refuses the push: no repository 'nothing': create one\n"


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

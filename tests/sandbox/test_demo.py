"""Folder of the demo, of which only its own files are deleted, and its choice of a broker."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sandbox import broker, demo
from sandbox.demo import MARKER, FolderError, _broker, claim_folder


def test_a_new_and_an_empty_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/below", "empty"):
        claim_folder(tmp_path / name).close()
        assert [path.name for path in (tmp_path / name).iterdir()] == [MARKER]


def test_an_earlier_demos_folder_is_emptied_and_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    folder = tmp_path / "demo"
    claim_folder(folder).close()
    (folder / "logs").mkdir()
    (folder / "logs" / "service.log").touch()
    (folder / "database.sqlite").touch()
    (folder / "link").symlink_to(elsewhere)
    claim_folder(folder).close()
    assert [path.name for path in folder.iterdir()] == [MARKER]
    assert (elsewhere / "precious").exists()


def test_a_folder_in_which_another_demo_runs_is_left_as_it_is(tmp_path: Path) -> None:
    with claim_folder(tmp_path):
        (tmp_path / "database.sqlite").touch()
        with pytest.raises(FolderError, match=r"Another demo runs in the folder .*Ctrl-C.*--folder"):
            claim_folder(tmp_path)
        assert (tmp_path / "database.sqlite").exists()
    claim_folder(tmp_path).close()
    assert not (tmp_path / "database.sqlite").exists()


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden"])
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_text("years of work")
    with pytest.raises(FolderError, match=r"contains files that are not the demo's .*--folder"):
        claim_folder(tmp_path)
    assert (tmp_path / name).read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"sub", name}


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be used"):
        claim_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_without_a_broker_on_this_machine_the_demo_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker, "LOCAL", "amqp://guest:guest@127.0.0.1:1/")
    assert _broker(None, False) is None
    line = capsys.readouterr().out
    assert line.startswith("The broker at 127.0.0.1:1 cannot be used (ConnectionRefusedError: ")
    assert line.endswith("). The retrigger goes over HTTP.\n")


@pytest.mark.parametrize(
    ("name", "wanted_by"), [("HG_PORT", "The stand-in for Mercurial"), ("SERVICE_PORT", "The service")]
)
def test_a_port_that_is_taken_ends_the_demo_before_it_starts_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, wanted_by: str
) -> None:
    for other in ("HG_PORT", "TASKCLUSTER_PORT", "TREEHERDER_PORT", "SERVICE_PORT"):
        monkeypatch.setattr(demo, other, 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo, name, port)
        done = CliRunner().invoke(demo.app, ["--folder", str(tmp_path / "demo")])
    assert done.exit_code == 5
    assert f"{wanted_by} cannot listen on port {port} of 127.0.0.1 (Address already in use)" in done.output
    assert "--free-ports" in done.output
    assert not (tmp_path / "demo").exists()

"""Listeners, which start without the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from listeners.settings import ListenerSettings
from service.listen import LIBRARIES


@pytest.mark.parametrize("listener", LIBRARIES)
def test_it_refuses_wrong_settings_as_the_command_line_does(listener: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TC_TREEHERDER_SERVICE_URL": "nowhere"}
    with_it = f"import sys; sys.argv = ['x', 'listen', '{listener}']; import service.cli; service.cli.app()"
    without_it = (
        "import sys; from service import __main__\n"
        f"sys.argv = ['x', 'listen', '{listener}']\n"
        "try: __main__.main()\n"
        "finally: print('typer' in sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        for code in (with_it, without_it)
    ]
    assert [run.returncode for run in runs] == [2, 2]
    assert runs[0].stderr == runs[1].stderr
    assert "service_url" in runs[1].stderr
    assert runs[1].stdout == "False\n"


def test_what_is_no_listener_is_left_to_the_command_line(tmp_path: Path) -> None:
    for arguments, text in ((["listen", "pushlogs"], "pushlog"), (["listen", "pulse", "--help"], "Pulse")):
        run = subprocess.run(
            [sys.executable, "-m", "service", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert text in run.stdout + run.stderr
        assert run.returncode in {0, 2}


def test_it_has_its_log_set_up_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    import listeners.pushlog
    from service import listen, log

    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(log, "configure", lambda *settings: told.append(settings))

    def main(configure: object) -> int:
        assert callable(configure)
        configure(ListenerSettings.model_construct(log_level="ERROR", log_json=True, sentry_dsn=None))
        return 3

    monkeypatch.setattr(listeners.pushlog, "main", main)
    assert listen.run("pushlog") == 3
    assert told == [("ERROR", True, None)]

"""What service and listeners share in reading their settings; what each reads is tested with it."""

import pytest

from configuration import unknown
from listeners.settings import ListenerSettings
from service.settings import Settings


def test_variables_that_are_no_setting_are_named_with_what_they_may_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "POLL__INTERVAL", "PULSE_USER", "pulse__url", "CONFIG", "TOKEN"):
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", "x")
    assert unknown(Settings, ListenerSettings) == {}
    for name in ("DATABASE_ULR", "POL__INTERVAL", "QQQ"):
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", "secret")
    found = unknown(Settings, ListenerSettings)
    assert list(found) == [f"TC_TREEHERDER_{name}" for name in ("DATABASE_ULR", "POL__INTERVAL", "QQQ")]
    said = list(found.values())
    assert "did you mean TC_TREEHERDER_DATABASE_URL?" in said[0]
    assert "did you mean TC_TREEHERDER_POLL?" in said[1]
    assert "did you mean" not in said[2]
    assert not any("secret" in each for each in said)

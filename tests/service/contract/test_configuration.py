"""Reading settings: what service and listeners share. What each of them reads is tested with it."""

import pytest

from listeners.settings import ListenerSettings
from service.contract.configuration import proxy_for, unknown
from service.settings import Settings


def test_variables_that_are_no_setting_are_named_with_what_they_may_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TC_TREEHERDER_FACTS", raising=False)  # which the tests themselves read
    for name in ("DATABASE_URL", "POLL__INTERVAL", "PULSE_USER", "pulse__url", "CONFIG", "TOKEN"):
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", "x")
    assert unknown(Settings, ListenerSettings) == {}
    for name in ("DATABASE_ULR", "POL__INTERVAL", "QQQ"):
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", "secret")
    remedies = unknown(Settings, ListenerSettings)
    assert list(remedies) == [f"TC_TREEHERDER_{name}" for name in ("DATABASE_ULR", "POL__INTERVAL", "QQQ")]
    texts = list(remedies.values())
    assert "did you mean TC_TREEHERDER_DATABASE_URL?" in texts[0]
    assert "did you mean TC_TREEHERDER_POLL?" in texts[1]
    assert "did you mean" not in texts[2]
    assert not any("secret" in text for text in texts)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://hg.mozilla.org/try", "http://secure:3128"),
        ("http://hg.mozilla.org/try", "http://user:word@rest:3128"),
        ("http://127.0.0.1:8080/api", None),
        ("https://tc.inside.test", None),
        ("https://inside.test", None),
        ("https://outside.test", "http://secure:3128"),
        ("https://by-port.test:8443", None),
        ("https://by-port.test", "http://secure:3128"),
    ],
)
def test_the_usual_variables_name_the_proxy(monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "secure:3128")  # without its scheme, as many write it
    monkeypatch.setenv("ALL_PROXY", "http://user:word@rest:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1, .inside.test,by-port.test:8443")
    assert proxy_for(url) == proxy


def test_without_the_variables_there_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("http", "https", "all"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind.upper()}_PROXY", raising=False)
    assert proxy_for("https://hg.mozilla.org/try") is None

from datetime import timedelta
from pathlib import Path

import pytest

from listeners.settings import load
from service.contract.configuration import SettingsError
from tests.listeners.fakes import OTHER_SECRET, SECRET, quick_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TC_TREEHERDER_"):
            monkeypatch.delenv(name)


def test_one_environment_serves_listener_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_TREEHERDER_WEBHOOK_SECRETS", f'["{SECRET}", "{OTHER_SECRET}"]')
    monkeypatch.setenv("TC_TREEHERDER_DATABASE_URL", "postgresql+psycopg://somewhere")
    monkeypatch.setenv("TC_TREEHERDER_POLL__INTERVAL", "3")
    monkeypatch.setenv("TC_TREEHERDER_HG_TIMEOUT", "2.5")
    monkeypatch.setenv("TC_TREEHERDER_DRAIN", "PT1S")
    settings = load()
    assert settings.webhook_secrets[0].get_secret_value() == SECRET
    assert settings.service == "http://127.0.0.1:8080"
    assert (settings.poll_workers, settings.poll_window, settings.max_listing) == (16, 100, 256 * 2**20)
    assert (settings.hg_timeout, settings.drain) == (timedelta(seconds=2.5), timedelta(seconds=1))


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(f"service_url: http://file:1/\npoll_workers: 2\nallowed_hosts: [x]\nwebhook_secrets: [{SECRET}]\n")
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    monkeypatch.setenv("TC_TREEHERDER_POLL_WORKERS", "3")
    settings = load()
    assert (settings.service, settings.poll_workers) == ("http://file:1", 3)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WEBHOOK_SECRETS", None, "webhook_secrets: the listener needs a secret to sign its requests: set TC_TREE"),
        ("WEBHOOK_SECRETS", "[]", "webhook_secrets: the listener needs a secret to sign its requests: set TC_TREE"),
        ("WEBHOOK_SECRETS", '["whsec_hunter2"]', "webhook_secrets[0]: a webhook secret is whsec_ and base64 of at"),
        ("WEBHOOK_SECRETS", "hunter2", "TC_TREEHERDER_WEBHOOK_SECRETS is not JSON; for example"),
        ("SERVICE_URL", "nowhere", "service_url is no URL with http or https"),
        ("HG_TIMEOUT", "-1", "hg_timeout: -1 is not a duration: give seconds, such as 30"),
        ("HG_TIMEOUT", "soon", 'hg_timeout "soon" is no duration: give seconds, such as 5, or ISO 8601, such as PT5S'),
        ("HG_TIMEOUT", "-PT5S", 'hg_timeout "-PT5S" is too small: it must be at least 0 s'),
        (
            "ANNOUNCED_WAIT",
            "0",
            "announced_wait: 0 is not allowed, because it would retry without a pause: give seconds",
        ),
        ("POLL_WORKERS", "0", 'poll_workers "0" is too small: it must be at least 1 (TC_TREEHERDER_POLL_WORKERS)'),
        ("CONFIG", "/nowhere.yml", "TC_TREEHERDER_CONFIG names /nowhere.yml, which is not a file"),
    ],
)
def test_a_wrong_setting_is_named_without_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, expected: str
) -> None:
    if name != "WEBHOOK_SECRETS":
        monkeypatch.setenv("TC_TREEHERDER_WEBHOOK_SECRETS", f'["{SECRET}"]')
    if value is not None:
        monkeypatch.setenv(f"TC_TREEHERDER_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load()
    assert expected in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_invalid_yaml_is_reported_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("poll_workers: 1\nwebhook_secrets: [hunter2\n")
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    with pytest.raises(SettingsError, match="line 3") as raised:
        load()
    assert "hunter2" not in str(raised.value)


def test_listeners_and_service_can_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.settings import load as load_service

    file = tmp_path / "both.yml"
    file.write_text(f"webhook_secrets: ['{SECRET}']\nhg_timeout: 7\nlisteners:\n  poll_workers: 3\n  hg_timeout: 9\n")
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    settings = load()
    assert (settings.poll_workers, settings.hg_timeout.total_seconds()) == (3, 9)
    assert load_service().hg_timeout.total_seconds() == 7


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (
            "{poll_workres: 3}",
            r"no setting listeners.poll_workres; did you mean listeners.poll_workers\? .*, line 2",
        ),
        ("[1]", "listeners: must be a mapping of settings"),
        ("yes", "listeners: must be a mapping of settings"),
    ],
)
def test_an_invalid_listeners_section_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, reason: str
) -> None:
    file = tmp_path / "both.yml"
    file.write_text(f"webhook_secrets: ['{SECRET}']\nlisteners: {section}\n")
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    with pytest.raises(SettingsError, match=reason):
        load()


def test_a_wrong_value_of_the_listeners_section_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "both.yml"
    file.write_text(f"webhook_secrets: ['{SECRET}']\nhg_timeout: 7\nlisteners:\n  hg_timeout: soon\n")
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    with pytest.raises(SettingsError, match=r'hg_timeout "soon" is no duration.*\(.*both.yml, line 4\)'):
        load()


def test_environments_without_jobs_are_left_out() -> None:
    assert quick_settings(
        "http://x", environments={"a": {"jobs": "off"}, "b": {"jobs": "rest"}, "c": {}}
    ).environments == [
        "b",
        "c",
    ]


def test_a_prefetch_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="pulse_prefetch must be at least pulse_batch"):
        quick_settings("http://x", pulse_prefetch=10)

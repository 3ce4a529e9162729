"""Settings: where they come from, what is refused, and that no secret is shown."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.contract.configuration import SettingsError
from service.settings import load

SECRET = "hush-hush-0123456789"
WEBHOOK = "whsec_" + "bmV3" * 10


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TC_TREEHERDER_CONFIG", raising=False)


def config(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "config.yml"
    path.write_text(text)
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(path))


def test_defaults_are_safe() -> None:
    settings = load()
    assert settings.host == "127.0.0.1"
    assert settings.allowed_hosts == ["hg.mozilla.org"]
    assert not settings.has_credentials
    assert not settings.public_reads
    assert settings.sqlite
    assert settings.max_push_age == timedelta(days=3)
    assert settings.work.give_up == timedelta(days=1)


def test_environment_wins_over_file_and_arguments_over_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config(
        monkeypatch,
        tmp_path,
        """
        port: 1000
        host: 10.0.0.1
        poll: {interval: 7, shift: PT40S}
        environments:
          tc-treeherder: {url: "https://treeherder.example.com", client_id: me, secret: hush}
        """,
    )
    monkeypatch.setenv("TC_TREEHERDER_PORT", "2000")
    monkeypatch.setenv("TC_TREEHERDER_POLL__INTERVAL", "0.5")
    settings = load(host="10.0.0.2")
    assert (settings.port, settings.host) == (2000, "10.0.0.2")
    assert settings.poll.interval == timedelta(seconds=0.5)
    assert settings.poll.shift == timedelta(seconds=40)
    assert settings.environments["tc-treeherder"].secret is not None


def test_port_is_dockerflows_unless_a_setting_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TC_TREEHERDER_PORT", raising=False)
    monkeypatch.setenv("PORT", "3000")
    assert load().port == 3000
    config(monkeypatch, tmp_path, "port: 1000\n")
    assert load().port == 1000
    monkeypatch.setenv("TC_TREEHERDER_PORT", "2000")
    assert load().port == 2000
    monkeypatch.setenv("PORT", "")
    assert load(port=7).port == 7
    for wrong in ("tcp://10.0.0.1:80", "65536", "-1", "²"):
        monkeypatch.setenv("PORT", wrong)
        with pytest.raises(SettingsError, match=f"PORT is {wrong!r}, which is no port: set it to a number"):
            load()


def test_off_in_a_file_is_the_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "environments: {tc-treeherder: {url: 'https://treeherder.example.com', pushes: off, jobs: off}}"
    config(monkeypatch, tmp_path, text)
    environment = load().environments["tc-treeherder"]
    assert (environment.pushes, environment.jobs) == ("off", "off")


def test_lists_and_mappings_are_json_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_TREEHERDER_TOKENS", json.dumps([{"name": "me", "value": SECRET, "scopes": ["a:*"]}]))
    monkeypatch.setenv("TC_TREEHERDER_WEBHOOK_SECRETS", json.dumps([WEBHOOK]))
    monkeypatch.setenv("TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN", SECRET)
    settings = load()
    assert settings.tokens[0].value.get_secret_value() == SECRET
    assert settings.has_credentials
    assert settings.webhook_secrets[0].get_secret_value() == WEBHOOK
    assert settings.taskcluster.access_token is not None
    assert settings.taskcluster.access_token.get_secret_value() == SECRET


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"port": 70_000}, "port"),
    ({"tokens": [{"name": "a", "value": "short"}]}, r"tokens\[0\]\.value"),
    ({"tokens": [{"name": "a", "value": SECRET}, {"name": "a", "value": SECRET + "2"}]}, "same name"),
    ({"webhook_secrets": [SECRET]}, r"webhook_secrets\[0\].*whsec_"),
    ({"webhook_secrets": ["whsec_" + "a" * 8]}, r"webhook_secrets\[0\].*24"),
    ({"taskcluster": {"root_url": "x y"}}, r"taskcluster\.root_url"),
    ({"taskcluster": {"tokn": SECRET}}, r"taskcluster\.tokn"),
    ({"environments": {"t": {"url": "https://t.example.com"}}}, r"environments\.t.*client_id and secret"),
    (
        {"environments": {"t": {"url": "https://t.example.com", "pushes": "pulse"}}},
        r"environments\.t\.pushes.*pulse\.url",
    ),
    (
        {
            "environments": {
                "t": {"url": "https://t.example.com", "pushes": "off", "pushes_exchange": "exchange/u/v1/p"}
            }
        },
        r"environments\.t\.pushes_exchange",
    ),
    ({"environments": {"t": {"url": f"https://u:{SECRET}@[x", "pushes": "off"}}}, r"environments\.t\.url"),
    ({"poll": {"interval": "soon"}}, r"poll\.interval"),
    ({"poll": {"interval": -1}}, r"poll\.interval.*-1"),
    ({"log_level": "LOUD"}, "log_level"),
    ({"database_url": [SECRET]}, "database_url"),
    ({"pulse": {"url": {"a": SECRET}}}, r"pulse\.url"),
]


@pytest.mark.parametrize(
    ("source", "values", "named"),
    [
        (source, values, named)
        for values, named in PROBLEMS
        for source in ("arguments", "environment", "file")
        if source != "environment" or "database_url" not in values  # any text is one
    ],
)
def test_errors_name_the_setting_and_show_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: dict[str, Any], named: str, source: str
) -> None:
    if source == "environment":
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"TC_TREEHERDER_{name.upper()}", text)
    elif source == "file":
        config(monkeypatch, tmp_path, json.dumps(values))
    with pytest.raises(SettingsError, match=named) as refused:
        load(**(values if source == "arguments" else {}))
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"tokens: [{{name: a, value: {SECRET}", "line"),
        (f"{SECRET}: 1\n", "there is no setting|cannot be read"),
        (f"- {SECRET}\n", "no mapping of settings"),
        (SECRET, "no mapping of settings"),
        ("port: !!python/object:os.system x\n", "line 1"),
    ],
)
def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, named: str) -> None:
    config(monkeypatch, tmp_path, text)
    with pytest.raises(SettingsError, match=named) as refused:
        load()
    assert f"{SECRET}: 1" in text or SECRET not in str(refused.value)  # a name is no secret


def test_an_empty_file_is_no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config(monkeypatch, tmp_path, "# nothing yet\n")
    assert load().port == 8080


def test_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_TREEHERDER_TOKENS", f"[{SECRET}")
    with pytest.raises(SettingsError, match="TC_TREEHERDER_TOKENS is not JSON; for example") as refused:
        load()
    assert SECRET not in str(refused.value)


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(tmp_path / "nothing.yml"))
    with pytest.raises(SettingsError, match=r"nothing\.yml"):
        load()


def test_repr_shows_no_secret() -> None:
    settings = load(
        database_url=f"postgresql+psycopg://me:{SECRET}@db/x",
        tokens=[{"name": "a", "value": SECRET}],
        webhook_secrets=[WEBHOOK],
        taskcluster={"client_id": "me", "access_token": SECRET, "certificate": SECRET},
        environments={"t": {"url": "https://t.example.com", "client_id": "me", "secret": SECRET}},
        pulse={"url": f"amqps://me:{SECRET}@pulse/%2F"},
    )
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert SECRET not in text
        assert WEBHOOK not in text
        assert "127.0.0.1" in text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.25", 0.25), (5, 5), ("PT1H30M", 5400), ("P1D", 86400), ("00:10:00", 600)]
)
def test_durations(text: Any, seconds: float) -> None:
    assert load(hg_timeout=text).hg_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("values", "redirect"),
    [
        ({"public_url": "https://us.example.com"}, "https://us.example.com/sign-in/taskcluster/done"),
        ({"public_url": "https://us.example.com/below/"}, "https://us.example.com/below/sign-in/taskcluster/done"),
        ({"web_sign_in": {"redirect_url": "http://a/sign-in/taskcluster/done"}}, "http://a/sign-in/taskcluster/done"),
    ],
)
def test_people_are_led_back_to_the_page(values: dict[str, Any], redirect: str) -> None:
    sign_in = {"client_id": "page", **values.pop("web_sign_in", {})}
    settings = load(web_sign_in=sign_in, **values)
    assert settings.sign_in_redirect == redirect
    assert settings.has_credentials
    assert settings.web_sign_in.scopes == ["tc-treeherder:*"]


@pytest.mark.parametrize(
    ("sign_in", "named"),
    [
        ({"client_id": "page"}, "web_sign_in.client_id needs public_url"),
        (
            {"client_id": "page", "redirect_url": "https://a.example.com/elsewhere"},
            "must end with /sign-in/taskcluster",
        ),
        ({"client_id": ""}, "web_sign_in.client_id"),
        ({"client_id": "page", "scopes": []}, "web_sign_in.scopes"),
    ],
)
def test_a_sign_in_that_cannot_work_is_refused(sign_in: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(web_sign_in=sign_in)

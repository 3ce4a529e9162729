"""Reading settings: what service and listeners share. What each of them reads is tested with it."""

from pathlib import Path

import pytest

from listeners.settings import ListenerSettings
from service.contract.configuration import SettingsError, proxy_for, read, unknown
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


SECRET = "hush"

FILE_PROBLEMS = [
    ("database_uri: x\n", "there is no setting database_uri; did you mean database_url? ", ", line 1)"),
    ("port: 1\npoll:\n  intervall: 5\n", "no setting poll.intervall; did you mean poll.interval? ", ", line 3)"),
    ("root_url: x\n", "there is no setting root_url; did you mean taskcluster.root_url? ", ", line 1)"),
    ("zzz: x\n", "there is no setting zzz; `tc-treeherder settings` lists all settings", ", line 1)"),
    ("poll:\n  interval: fast\n", 'poll.interval "fast" is no duration: give seconds, such as 5', ", line 2)"),
    ("poll:\n  renew: 14\n", "poll: renew must be more than 0 and at most half of shift", ", line 1)"),
    (
        f"tokens:\n- name: a\n  scopes: []\n  value: {SECRET}\n",
        "tokens[0].value has 4 characters, at least 16 are needed",
        ", line 4)",
    ),
    (f"tokens:\n- {{name: a, valeu: {SECRET}}}\n", "did you mean tokens[0].value?", ", line 2)"),
    (f"tokens: {SECRET}\n", "tokens is a text, and must be a list ([…])", ", line 1)"),
    (f"\nwebhook_secrets: [{SECRET}]\n", "webhook_secrets[0]: a webhook secret is whsec_ and base64", ", line 2)"),
    ("environments:\n  x:\n    pushes: off\n", "environments.x.url is missing", ", line 2)"),
    ("a: [\n b: c", "it is no YAML: expected ',' or ']'", ", line 2: "),
    ("- 1\n", "it is no mapping of settings, such as `port: 8080`", ".yml: "),
]


@pytest.mark.parametrize(("text", "reason", "place"), FILE_PROBLEMS, ids=[reason for _, reason, _ in FILE_PROBLEMS])
def test_a_problem_of_a_file_names_its_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str, place: str
) -> None:
    file = tmp_path / "settings.yml"
    file.write_text(text)
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    with pytest.raises(SettingsError) as error:
        read(Settings)
    assert reason in str(error.value)
    assert f"{file}{place.removeprefix('.yml')}" in str(error.value)
    assert SECRET not in str(error.value)
    assert "default factory" not in str(error.value)


VARIABLES = [
    ("POLL__INTERVAL", "fast", 'poll.interval "fast" is no duration: give seconds'),
    ("TOKENS", '[{"name": "a", "value": "hush"}]', "tokens[0].value has 4 characters, at least 16 are needed"),
    ("TOKENS", "hush", 'TC_TREEHERDER_TOKENS is not JSON; for example: TC_TREEHERDER_TOKENS=\'[{"name": '),
    ("ALLOWED_HOSTS", "hg.mozilla.org", """TC_TREEHERDER_ALLOWED_HOSTS='["hg.mozilla.org"]'"""),
    ("TASKCLUSTER", "{hush", "TC_TREEHERDER_TASKCLUSTER is not JSON; for example: TC_TREEHERDER_TASKCLUSTER='{"),
    ("TASKCLUSTER__ROOT_URL", "ftp://me:hush@x", "taskcluster.root_url is no URL with http or https"),
    ("PULSE__URLL", "hush", "there is no setting pulse.urll; did you mean pulse.url?"),
    ("ENVIRONMENTS__X__JOBS", "rset", 'environments.x.jobs "rset" is none of rest, pulse, off (rest?)'),
]


@pytest.mark.parametrize(("name", "value", "reason"), VARIABLES, ids=[reason for *_, reason in VARIABLES])
def test_a_problem_of_a_variable_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, reason: str
) -> None:
    file = tmp_path / "settings.yml"
    file.write_text("poll: {interval: 3}\n")  # which the variable overrides
    monkeypatch.setenv("TC_TREEHERDER_CONFIG", str(file))
    monkeypatch.setenv(f"TC_TREEHERDER_{name}", value)
    with pytest.raises(SettingsError) as error:
        read(Settings)
    assert reason in str(error.value)
    assert f"TC_TREEHERDER_{name}" in str(error.value)
    assert SECRET not in str(error.value)


def test_what_is_missing_names_the_variable_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TC_TREEHERDER_WEBHOOK_SECRETS", raising=False)
    with pytest.raises(SettingsError, match="webhook_secrets is missing: set TC_TREEHERDER_WEBHOOK_SECRETS"):
        read(ListenerSettings)

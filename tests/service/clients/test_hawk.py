"""Replacements in mohawk: the names exist, mohawk uses them, and their replacements work."""

import inspect
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import mohawk
import mohawk.base
import mohawk.exc
import mohawk.util
import pytest

from service import clock
from service.clients import hawk

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def sign(content: str = "") -> str:
    credentials: dict[str, Any] = {"id": "a", "key": "b", "algorithm": "sha256"}
    sender = mohawk.Sender(credentials, "https://x.example.com/", "PUT", content=content, content_type="text/plain")
    return str(sender.request_header)


@pytest.mark.parametrize(
    ("module", "name"), [(mohawk.base, "utc_now"), (mohawk.base, "pprint"), (mohawk.util, "pprint")]
)
def test_mohawk_has_and_uses_the_names_that_we_replace(module: ModuleType, name: str) -> None:
    source = inspect.getsource(module)
    call = "utc_now()" if name == "utc_now" else f"{name}.pformat("
    assert hasattr(module, name), f"{module.__name__} has no {name} any more: see service/clients/hawk.py"
    assert call in source, f"{module.__name__} does not call {name} any more: see service/clients/hawk.py"


def test_signatures_have_the_databases_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hawk.use_database_time()
    monkeypatch.setattr(clock, "process_clock", clock.Clock(lambda: NOON, lambda: 0.0))
    assert f'ts="{int(NOON.timestamp())}"' in sign()


def test_signing_formats_no_payload() -> None:
    hawk.skip_payload_dumps()
    assert len(mohawk.util.pprint.pformat([b"a payload" * 1000])) < 100
    assert "hash=" in sign("{}")


BAD_MAC = "Bad mac: the key is not that of this client, or a proxy changed the request's address"


def receive(key: str, content: str) -> str:
    """Return why mohawk refuses a request that was signed with the key b and without content."""
    credentials = {"id": "a", "key": key, "algorithm": "sha256"}
    with pytest.raises(mohawk.exc.HawkFail) as refused:
        mohawk.Receiver(
            lambda _: credentials, sign(), "https://x.example.com/", "PUT", content=content, content_type="text/plain"
        )
    return f"{type(refused.value).__name__}: {refused.value}"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (receive("wrong", ""), BAD_MAC),
        (receive("b", "x"), "the body is not the one that was signed"),
        ("Hawk authentication failed: MacMismatch", f"Hawk authentication failed: {BAD_MAC}"),
        ("Bad mac", BAD_MAC),
        ("no such client: a", "no such client: a"),
        ("Bad machine", "Bad machine"),
    ],
)
def test_a_refusal_is_told_without_macs_and_hashes(answer: str, text: str) -> None:
    assert hawk.explain_refusal(answer) == text

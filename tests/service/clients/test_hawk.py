"""Replacements in mohawk: the names exist, mohawk uses them, and their replacements work."""

import inspect
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import mohawk
import mohawk.base
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

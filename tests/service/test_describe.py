"""Description of all settings: names, defaults and meanings, without any deployment's values."""

from datetime import timedelta
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from listeners.settings import ListenerSettings
from service.describe import HEAD, describe
from service.settings import Settings


class Inner(BaseModel):
    seconds: float = Field(2.5, description="time limit")


class Example(BaseModel):
    required: str = Field(description="must be set")
    flag: bool = Field(True, description="on or off")
    choice: Literal["a", "b"] = Field("a", description="one of two")
    wait: timedelta = Field(timedelta(minutes=1.5), description="a duration")
    secret: SecretStr | None = Field(None, description="hidden | shown")
    names: list[str] = Field([], description="several")
    computed: str = Field(default_factory=lambda: "x", description="depends")
    template: dict[str, Any] = Field({"a": 1}, description="a task")
    inner: Inner = Inner()
    maybe: Inner | None = None


ROWS = [
    "| `required` | required | must be set |",
    "| `flag` | `true` | on or off |",
    "| `choice` | `a` | a \\| b. one of two |",
    "| `wait` | `90` | a duration |",
    "| `secret` | none | hidden \\| shown |",
    "| `names` | none | several |",
    "| `computed` | see meaning | depends |",
    "| `template` | a task on `built-in/fail` | a task |",
    "| `inner.seconds` | `2.5` | time limit |",
    "| `maybe.seconds` | `2.5` | time limit |",
]


def test_each_field_is_a_row_and_each_model_a_chapter() -> None:
    page = describe(example=Example, other=Inner)
    chapter = "\n".join(["## Example", "", "| setting | default | meaning |", "|---|---|---|", *ROWS, ""])
    assert page.startswith(HEAD)
    assert chapter in page
    assert page.endswith(
        "## Other\n\n| setting | default | meaning |\n|---|---|---|\n| `seconds` | `2.5` | time limit |\n"
    )


@pytest.mark.parametrize("model", [Settings, ListenerSettings])
def test_each_setting_has_a_meaning(model: type[BaseModel]) -> None:
    rows = [line for line in describe(settings=model).splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.endswith("|  |")] == []


def test_settings_that_are_lists_show_their_elements_fields() -> None:
    page = describe(service=Settings)
    for name in ("tokens", "tokens[].scopes", "environments", "environments.<prefix>.url", "poll.interval"):
        assert f"| `{name}` |" in page


def test_a_secret_without_a_password_is_shown_as_its_default() -> None:
    assert "| `database_url` | `sqlite+aiosqlite:///tc-treeherder.sqlite` |" in describe(service=Settings)

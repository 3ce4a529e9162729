"""Read what a task says about itself in `extra.treeherder`, cut to what Treeherder stores."""

import unicodedata
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from service.contract.validation import problems_of
from service.flow.tasks.definition import parse_date

log = structlog.get_logger()

LENGTHS = {
    "name": 100,
    "symbol": 25,
    "group_name": 100,
    "group_symbol": 25,
    "product": 100,
    "reason": 125,
    "owner": 50,
    "platform": 100,
    "os": 25,
    "architecture": 25,
    "machine": 100,
}
"""Characters that Treeherder stores of each field."""


class UnshowableTaskError(Exception):
    """The task cannot be shown in Treeherder; the message says why, and what would make it showable."""


def _numeric(value: Any) -> Any:
    """Return a number as text: the older form of the section has numbers for symbols."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value) if type(value) in {int, float} else value


Symbol = Annotated[str, BeforeValidator(_numeric)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True, alias_generator=to_camel)


class Machine(_Section):
    """The `machine` or `build` of a section: a platform."""

    platform: str | None = None
    os: str | None = None
    architecture: str | None = None


class TreeherderSection(_Section):
    """`task.extra.treeherder` as task-treeherder-config.yml has it, and the older form that tasks still have."""

    symbol: Symbol
    group_symbol: Symbol = "?"
    group_name: str = "unknown"
    product_name: str = "unknown"
    reason: str = "scheduled"
    tier: int = Field(1, ge=1, le=3)
    job_kind: Literal["build", "test", "other"] | None = None
    labels: list[Annotated[str, StringConstraints(min_length=1)]] = []
    collection: dict[str, Any] = {}
    machine: Machine = Machine()
    build: Machine = Machine()

    @model_validator(mode="after")
    def _one_collection(self) -> "TreeherderSection":
        names = [name for name, value in self.collection.items() if value is True]
        if len(names) > 1:
            raise ValueError(f"collection has {len(names)} true keys ({', '.join(sorted(names))}): it may have one")
        return self

    @property
    def options(self) -> list[str]:
        """Return the labels; in the older form the one collection; otherwise opt."""
        return self.labels or [name for name, value in self.collection.items() if value is True] or ["opt"]


class TaskFacts:
    """The values of a task's definition that its jobs need, cut to what Treeherder stores."""

    __slots__ = (
        "build",
        "created",
        "description",
        "group_name",
        "group_symbol",
        "job_kind",
        "machine",
        "name",
        "options",
        "owner",
        "product",
        "reason",
        "symbol",
        "tier",
    )

    def __init__(self, task_id: str, definition: dict[str, Any]) -> None:
        """Read a definition. Raises UnshowableTaskError if it has no usable `extra.treeherder`."""
        section = _section(definition)
        metadata = definition["metadata"]

        def fit(field: str, value: str, default: str = "unknown") -> str:
            return cut(value, LENGTHS[field], task_id, field) or default

        def platform(first: Machine, second: Machine) -> dict[str, str]:
            name = (
                first.platform
                or second.platform
                or str(definition.get("workerType") or definition["taskQueueId"].split("/")[-1])
            )
            return {
                "platform": fit("platform", name),
                "os_name": fit("os", first.os or second.os or "-"),
                "architecture": fit("architecture", first.architecture or second.architecture or "-"),
            }

        self.name = fit("name", metadata["name"])
        self.description: str = metadata["description"]
        self.owner = fit("owner", metadata["owner"])
        self.created = int(parse_date(definition["created"]).timestamp())
        self.symbol = fit("symbol", section.symbol, "")
        self.group_symbol = fit("group_symbol", section.group_symbol, "?")
        self.group_name = fit("group_name", section.group_name)
        self.product = fit("product", section.product_name)
        self.reason = fit("reason", section.reason, "scheduled")
        self.tier = section.tier
        self.job_kind = section.job_kind
        self.options = section.options
        self.machine = platform(section.machine, section.build)
        self.build = platform(section.build, section.machine)


def _section(definition: dict[str, Any]) -> TreeherderSection:
    extra = definition.get("extra")
    section = extra.get("treeherder") if isinstance(extra, dict) else None
    if not isinstance(section, dict):
        raise UnshowableTaskError("its definition has no extra.treeherder, which says how it is shown")
    try:
        return TreeherderSection.model_validate(section)
    except ValidationError as error:
        raise UnshowableTaskError(
            f"its extra.treeherder is not usable: {problems_of(error, TreeherderSection)}"
        ) from None


def cut(text: str, length: int, task_id: str, field: str) -> str:
    """Return `text` cut to `length` characters, never between a letter and what combines with it, and log a cut."""
    if len(text) <= length:
        return text
    end = length
    while end and (unicodedata.combining(text[end]) or text[end] in "\u200d\ufe0e\ufe0f" or text[end - 1] == "\u200d"):
        end -= 1
    log.info("field-cut", task_id=task_id, field=field, characters=len(text), kept=end)
    return text[:end]

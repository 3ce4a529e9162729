"""Parts that all schemas of the API share. A schema is never a table: those are not validated, and hold secrets."""

import math
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from service.flow.tasks.definition import SLUGID
from service.sanitize import MAX_NESTING


class Schema(BaseModel):
    """The base of all schemas: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


def storable_text(text: str) -> str:
    """Return the text if a database can store it. Raises ValueError."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("it holds a NUL or half of a surrogate pair, which cannot be stored")
    return text


def storable_json(value: Any) -> Any:
    """Return JSON of any kind if a database can store it, and others can read it. Raises ValueError."""
    waiting = [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        if isinstance(item, str):
            storable_text(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("it holds NaN, or a number that is too large: JSON has no such numbers")
        elif isinstance(item, dict | list):
            if level > MAX_NESTING:
                raise ValueError(f"it has more than {MAX_NESTING} levels of objects and lists")
            waiting += [(inside, level + 1) for inside in item]  # of an object, the keys
            waiting += [(inside, level + 1) for inside in item.values()] if isinstance(item, dict) else []
    return value


Text = Annotated[str, Field(max_length=1_000), AfterValidator(storable_text)]


def _number(value: Any) -> Any:
    """JSON's numbers alone, 1.0 among them: not a text or a boolean, which pydantic would turn into one."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("it must be a number")
    return value


Cursor = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_number)]
PushId = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_number)]
RunId = Annotated[int, Field(ge=0, le=1_000), BeforeValidator(_number)]
Bool = Annotated[bool, Field(strict=True)]

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Some of a list. `next` goes into `after` for the following ones; null: there are no more.

    A page can be shorter than its limit, even empty, while there are more.
    """

    items: list[T]
    next: str | None = None


Working = Annotated[bool, Field(description="a worker is at it just now, so `next_attempt_at` is null")]


class StepState(StrEnum):
    """The states of a push's steps and of job reports."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


TaskId = Annotated[str, Field(pattern=SLUGID, description="a taskId: 22 characters, a slugid")]


EXAMPLE_TASK, EXAMPLE_COPY = "fN1SbArXTPSVFNUvaOlinQ", "TqW1Kq2eQ0mX3v8h0cFJbA"
EXAMPLE_NODE = "3d0f1c5b2a4e6978869504132231405f6e7d8c9b"
"""Ids that the examples of several schemas name."""


def example(**values: Any) -> ConfigDict:
    """Return the configuration of a schema that shows these values as its example."""
    return ConfigDict(json_schema_extra={"examples": [values]})


def examples() -> dict[type[BaseModel], dict[str, Any]]:
    """Return the examples of all schemas that have one of their own."""
    schemas: list[type[BaseModel]] = [Schema]
    for schema in schemas:  # which grows meanwhile
        schemas += schema.__subclasses__()
    shown: dict[type[BaseModel], dict[str, Any]] = {}
    for schema in schemas:
        extra: Any = vars(schema).get("model_config", {}).get("json_schema_extra")
        if extra:
            (shown[schema],) = extra["examples"]
    return shown

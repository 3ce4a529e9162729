"""Errors of validation as people read them: the place, the value, what is wrong, and what was probably meant."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from service.contract.validation import (
    beginning_of,
    closest,
    explain,
    keys_at,
    may_be_secret,
    named_pattern,
    path_of,
    problems_of,
    reason_of,
    root_causes,
)

COLOUR = named_pattern(r"^#[0-9a-f]{6}$", "colour (# and 6 hex digits)")


class Fill(StrEnum):
    SOLID = "solid"
    DOTTED = "dotted"


class Corner(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    angle_degrees: int = Field(ge=0, lt=180)
    note: Annotated[str, Field(min_length=2, max_length=5)] | None = None


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sides: list[int] = Field([], max_length=3)
    corners: list[Corner] = Field([], min_length=0)
    by_name: dict[str, Corner] = {}
    colour: str | None = Field(None, pattern=COLOUR)
    other: str | None = Field(None, pattern=r"^x$")
    line: Literal["thick", "thin", 3] = "thin"
    fill: Fill = Fill.SOLID
    visible: bool = True
    fade: timedelta = timedelta(0)
    home: HttpUrl | None = None
    key: SecretStr | None = Field(None, min_length=8)
    keys: list[SecretStr] = []
    scale: float = Field(1.0, gt=0, le=2.5, allow_inf_nan=False)
    label: str = Field(default_factory=lambda values: str(values["colour"]))

    @model_validator(mode="after")
    def _closed(self) -> "Shape":
        if len(self.sides) == 1:
            raise ValueError("one side closes nothing")
        return self


def problems(value: Any, **options: Any) -> str:
    with pytest.raises(ValidationError) as error:
        Shape.model_validate(value)
    return problems_of(error.value, Shape, **options)


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"corners": [{"angleDegrees": 1, "not": "x"}]}, "unknown key corners[0].not (note?)"),
    ({"corners": [{}]}, "corners[0].angleDegrees is missing"),
    ({"by_name": {"a": {"angleDegrees": 1, "zzz": 1}}}, "unknown key by_name.a.zzz"),
    ({"corners": [{"angleDegrees": 180}]}, "corners[0].angleDegrees 180 is too large: it must be less than 180"),
    ({"corners": [{"angleDegrees": -1}]}, "corners[0].angleDegrees -1 is too small: it must be at least 0"),
    ({"corners": [{"angleDegrees": 1, "note": "x"}]}, "corners[0].note has 1 character, at least 2 are needed"),
    ({"corners": [{"angleDegrees": 1, "note": "x" * 6}]}, "corners[0].note has 6 characters, at most 5 are allowed"),
    ({"corners": [7]}, "corners[0] 7 is no object ({…})"),
    ({"corners": None}, "corners is null, and must be a list ([…])"),
    ({"sides": [1, 2, 3, 4]}, "sides has 4 items, at most 3 are allowed"),
    ({"sides": ["x"]}, 'sides[0] "x" is no whole number'),
    ({"sides": [1.5]}, "sides[0] 1.5 is no whole number"),
    ({"sides": [{}]}, "sides[0] is an object, and must be a whole number"),
    ({"sides": [1]}, "one side closes nothing"),
    ({"colour": "red"}, 'colour "red" is no colour (# and 6 hex digits)'),
    ({"colour": 5}, "colour 5 is no text: put it in quotes"),
    ({"other": "y"}, 'other "y" is no text of the form ^x$'),
    ({"line": "thik"}, 'line "thik" is none of thick, thin, 3 (thick?)'),
    ({"line": [1]}, "line is none of thick, thin, 3"),
    ({"fill": "solidd"}, 'fill "solidd" is none of solid, dotted (solid?)'),
    ({"visible": "maybe"}, 'visible "maybe" is no truth value: true or false'),
    ({"fade": "fast"}, 'fade "fast" is no duration: give seconds, such as 5, or ISO 8601, such as PT5S'),
    ({"home": "ftp://x"}, "home is no URL with http or https, such as https://example.com"),
    ({"home": "x"}, "home is no URL with http or https, such as https://example.com"),
    ({"home": "ftp://me:pass@x"}, "home is no URL with http or https, such as https://example.com"),
    ({"scale": 3}, "scale 3 is too large: it must be at most 2.5"),
    ({"scale": "inf"}, 'scale "inf" is no finite number'),
    ({"key": "hush"}, "key has 4 characters, at least 8 are needed"),
    ({"key": 5}, "key is a number, and must be a text"),
    ({"keys": ["a", ["hush"]]}, "keys[1] is a list, and must be a text"),
    ({"keys": "hush"}, "keys is a text, and must be a list ([…])"),
]


@pytest.mark.parametrize(("value", "text"), MESSAGES, ids=[f"{value}" for value, _ in MESSAGES])
def test_a_problem_is_a_sentence_with_the_place_and_the_value(value: dict[str, Any], text: str) -> None:
    assert problems(value, quote=True) == text
    assert "hush" not in problems(value, quote=True)


def test_a_missing_and_an_unknown_key_stand_side_by_side() -> None:
    text = problems({"corners": [{"angleDegree": 1}]})
    assert text == "corners[0].angleDegrees is missing; unknown key corners[0].angleDegree (angleDegrees?)"


def test_values_are_quoted_on_request_only_and_if_they_are_short() -> None:
    several = problems({"sides": ["hush", 2, *["hush"] * 1_000]})
    assert several == "sides has 1,002 items, at most 3 are allowed"
    assert problems({"colour": "hush"}) == "colour is no colour (# and 6 hex digits)"
    assert problems({"colour": "x" * 101}, quote=True) == "colour is no colour (# and 6 hex digits)"


def test_a_key_of_any_length_is_named_shortly_and_at_once() -> None:
    text = problems({"x" * 20_000_000: 1, "line": "y" * 20_000_000}, quote=True)
    assert text == f"line is none of thick, thin, 3; unknown key {'x' * 100}…"


def test_only_the_first_problems_are_named() -> None:
    assert problems({"corners": [{}] * 1_000}).count("missing") == 5


def test_a_problem_that_follows_from_another_is_not_named() -> None:
    with pytest.raises(ValidationError) as error:
        Shape.model_validate({"colour": "red"})
    assert len(error.value.errors()) == 2
    assert [problem["loc"] for problem in root_causes(error.value)] == [("colour",)]


def test_why_something_is_not_understood_is_told_of_any_error() -> None:
    assert reason_of(ValueError("not JSON: x")) == "not understood: not JSON: x"
    with pytest.raises(ValidationError) as error:
        Shape.model_validate({"sides": 1})
    assert reason_of(error.value) == "not understood: sides is a number, and must be a list ([…])"


def test_a_type_that_is_not_known_here_is_named_as_pydantic_does() -> None:
    problem = {"type": "uuid_parsing", "loc": ("a",), "input": "x", "msg": "…"}
    assert explain(problem, quote=True) == 'a "x" is no valid value (uuid_parsing)'


def test_a_place_is_written_as_in_a_program() -> None:
    assert path_of(("tokens", 0, "value")) == "tokens[0].value"
    assert path_of(("body", "tokens", 0)) == "tokens[0]"
    assert path_of(("query", "state")) == "state"
    assert path_of(("body",)) == "the body"


def test_of_a_short_name_one_letter_may_be_wrong() -> None:
    assert closest("tri", ["mozilla-central", "try"]) == "try"
    assert closest("nowhere", ["other"]) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'<p class="x">', '"<p class=\\"x\\">"'),
        (b"caf\xe9\n", '"caf\ufffd\\n"'),
        (b"x" * 500, f'"{"x" * 100}"'),
        (b"", '""'),
    ],
)
def test_an_unexpected_answer_is_quoted_as_a_text(body: bytes, text: str) -> None:
    assert beginning_of(body) == text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shcedulerId", "schedulerId"),
        ("scheduler_id", "schedulerId"),
        ("workertype", "workerType"),
        ("colour", None),
        ("paylod", "payload"),
        ("other", None),
    ],
)
def test_the_closest_name_is_found_in_any_spelling(name: str, meant: str | None) -> None:
    assert closest(name, ["schedulerId", "workerType", "payload"]) == meant


def test_secrets_are_known_by_their_type_and_what_has_no_known_type_may_be_one() -> None:
    assert may_be_secret(Shape, ("key",))
    assert may_be_secret(Shape, ("keys", 3))
    assert may_be_secret(Shape, ("keys",))
    assert may_be_secret(Shape, ("kye",))
    assert not may_be_secret(Shape, ("colour",))
    assert not may_be_secret(Shape, ("by_name", "a", "note"))
    assert not may_be_secret(Corner, ("zzz",))
    assert not may_be_secret(None, ("zzz",))


def test_keys_are_those_of_the_aliases() -> None:
    assert keys_at(Shape, ("corners", 0)) == ["angleDegrees", "note"]
    assert keys_at(Shape, ("by_name", "a")) == ["angleDegrees", "note"]
    assert keys_at(Shape, ("colour", 0)) == []
    assert keys_at(None, ()) == []

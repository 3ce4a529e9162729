"""The child that renders templates: what it reads, refuses, and is limited to."""

import json
import os
import re
from importlib import import_module
from typing import Any

import psutil
import pytest
from jsone.parser import Parser

from service.engine.render import Renderer
from service.engine.render_child import NICE, _parse, _render
from tests.service.engine.rendering import CONTEXT, NESTED, children, error, ids, renderer_of, tasks


@pytest.mark.parametrize(
    ("yaml", "meant"),
    [
        ("on", "on"),
        ("Yes", "Yes"),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("2001-01-01", "2001-01-01"),
        ("2030-01-30T12:00:00Z", "2030-01-30T12:00:00Z"),
        ("2001-12-14 21:59:43.10 -5", "2001-12-14 21:59:43.10 -5"),
        ("~", None),
        ("'on'", "on"),
        ("1.5", 1.5),
        ("0x10", 16),
        ("'\u00e4'", "\u00e4"),
        ("010", 10),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("=", "="),
        ("{$eval: '5 / 1'}", 5),
        ("{$eval: '5 / 2'}", 2.5),
        ("'${10 / 2} ${1.0}'", "5 1"),
        ("{$eval: 'str(6 / 3)'}", "2"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\ud83d"', "\\ud83d"),
        (".inf", "inf"),
        (".nan", "nan"),
        ('"a\\0b"', "a\\u0000b"),
        ("{2: a, true: b, null: c}", {"2": "a", "true": "b", "null": "c"}),
        ("{on: 1}", {"on": 1}),
    ],
)
async def test_yaml_values(renderer: Renderer, yaml: str, meant: Any) -> None:
    (task,) = await tasks(renderer, f"tasks: [{yaml}]")
    assert json.dumps(task) == json.dumps(meant)


async def test_anchors_and_merges(renderer: Renderer) -> None:
    text = "x: &x {a: 1, b: 2}\ntasks: [{<<: *x, b: 3}, *x]"
    assert await tasks(renderer, text) == [{"a": 1, "b": 3}, {"a": 1, "b": 2}]


async def test_no_tasks_are_none(renderer: Renderer) -> None:
    assert await tasks(renderer, "reporting: checks") == []
    assert await tasks(renderer, "tasks: {$if: 'false', else: []}") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version: 1\ntasks: [", "^not YAML: .*line 3"),
        ("version: 1\ntasks: [{a: 1,\n b: 2, a: 3}]", "^cannot be read: the key 'a' is repeated, in lines 2 and 3$"),
        ("version: 1\ntasks: []\ntasks: []", "^cannot be read: the key 'tasks' is repeated, in lines 2 and 3$"),
        ("version: 1\ntasks: [{$eval: '1 )'}]", r"^does not render: at tasks\[0\] \(line 2\): "),
        (
            "version: 1\ntasks: [{$eval: 'sqrt(-1)'}]",
            r"^does not render: at tasks\[0\] \(line 2\): .*'sqrt\(-1\)' cannot be",
        ),
        ("version: 1\ntasks: ['${1 )}']", r"^does not render: at tasks\[0\] \(line 2\): "),
        ("version: 1\ntasks: [{x: {$map: 5, 'each(y)': 1}}]", r"^does not render: at tasks\[0\]\.x \(line 2\): "),
        ("version: 1\ntasks: [{$match: 5}]", r"^does not render: at tasks\[0\] \(line 2\): "),
        (
            "version: 1\ntasks:\n  - payload:\n      x: 1\n      env: {$eval: nope}",
            r"^does not render: at tasks\[0\]\.payload\.env \(line 5\): ",
        ),
        (
            "version: 1\ntasks:\n  - {}\n  - {'a b': {$eval: nope}}",
            r"^does not render: at tasks\[1\]\[\"a b\"\] \(line 4\): ",
        ),
        (
            "version: 1\ntasks:\n  $if: 'true'\n  then:\n    - a: {$eval: nope}",
            r"^does not render: at tasks\[0\]\.a \(in what begins in line 2\): ",
        ),
        ("version: 1\ntasks: [{$fromNow: {}}]", r"^does not render: at tasks\[0\] \(line 2\): "),
        ("version: 0\nmetadata: {{no}} yaml", "^version is 0: only version 1 is understood"),
        ("version: 0  # old\ntasks: []", "^version is 0"),
        ("version: 1\ntasks: !!python/object/apply:os.system [true]", "^not YAML: .*python/object"),
        ("version: 1\ntasks: [!!set {a}]", "^a value of type set has no place in JSON"),
        ("version: 1\ntasks: [!!binary aGVsbG8=]", "^a value of type bytes has no place in JSON"),
        ("- a", "^not a mapping"),
        ("", "^not a mapping"),
        ("tasks: []", "^version is None: only version 1 is understood"),
        ("version: 0\ntasks: []", "^version is 0"),
        ("version: true\ntasks: []", "^version is True"),
        ("version: '1'\ntasks: []", "^version is '1'"),
        ("version: 1\ntasks: {a: 1}", "^`tasks` is rendered as dict: it must be a list"),
        ("version: 1\ntasks: null", "^`tasks` is rendered as NoneType"),
        ("version: 1\ntasks: [{$eval: nothing}]", "^does not render: .*nothing"),
        ("version: 1\ntasks: [{$eval: 'as_slugid([])'}]", "^does not render: at .*as_slugid takes a text or a number"),
        ("version: 1\ntasks: [{$eval: 'as_slugid()'}]", "^does not render: "),
        ("version: 1\ntasks: [{$eval: '1/0'}]", "^does not render: "),
        ("version: 1\ntasks: [&a [*a]]", "^nested too deeply"),
        ("version: 1\ntasks: [\x01]", "^not YAML"),
    ],
)
async def test_what_cannot_be_used_is_told(renderer: Renderer, text: str, why: str) -> None:
    assert re.search(why, await error(renderer, text), re.DOTALL)


async def test_a_template_that_is_json_already(renderer: Renderer) -> None:
    rendered = await renderer.template({"a": {"$eval": "error"}, "b": "${error}"}, {"error": "${no} \u00e4"})
    assert rendered.parse(ids).result == [{"a": "${no} \u00e4", "b": "${no} \u00e4"}]


async def test_too_many_values_are_refused_before_they_are_sent() -> None:
    async with renderer_of(1, seconds=20) as renderer:
        await renderer.start()
        before = psutil.Process().memory_info().rss
        assert await error(renderer, NESTED) == (
            "renders to more than 1,000,000 values: so many are not taken for one push"
        )
        assert psutil.Process().memory_info().rss - before < 8 * 1024 * 1024
        (child,) = children()
        assert child.memory_info().rss < 256 * 1024 * 1024


@pytest.mark.parametrize(("limit", "taken"), [(8, True), (7, False)])
async def test_values_are_counted(limit: int, taken: bool) -> None:
    text = "version: 1\ntasks: [{a: [1, two, {}]}, {}]"  # with the list of tasks, and ownTaskId's label
    async with renderer_of(nodes=limit, seconds=5) as renderer:
        if taken:
            assert len((await renderer.taskcluster_yml(text, CONTEXT)).parse(ids).result) == 2
        else:
            assert "more than 7 values" in await error(renderer, text)


async def test_too_many_tasks_are_refused() -> None:
    text = "version: 1\ntasks: {$map: {$eval: 'range(0, 40000)'}, each(x): {}}"
    async with renderer_of(1, seconds=20) as renderer:
        assert await error(renderer, text) == "renders to 40,000 tasks: at most 10,000 are taken for one push"


async def test_the_child_has_no_secret(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_TREEHERDER_TASKCLUSTER__ACCESS_TOKEN", "hush-hush")
    assert await tasks(renderer, "tasks: [1]") == [1]  # it is through with its start
    (child,) = children()
    assert set(child.environ()) <= {"PATH", "LC_CTYPE"}
    assert "hush" not in " ".join(child.cmdline())
    assert {link for link in os.listdir(f"/proc/{child.pid}/fd") if int(link) > 2} == set()


async def test_the_child_is_limited() -> None:
    async with renderer_of(memory_mib=200, seconds=3) as renderer:
        assert await tasks(renderer, "tasks: [1]") == [1]
        (child,) = children()
        assert child.rlimit(psutil.RLIMIT_AS)[0] == 200 * 1024 * 1024
        assert child.rlimit(psutil.RLIMIT_CORE)[0] == 0
        # a child whose parent was killed in the middle of a render ends by itself
        assert 3 <= child.rlimit(psutil.RLIMIT_CPU)[0] <= 10


async def test_the_child_leaves_the_processor_to_others(renderer: Renderer) -> None:
    assert await tasks(renderer, "tasks: [1]") == [1]
    (child,) = children()
    assert child.nice() == os.nice(0) + NICE


async def test_a_file_that_was_parsed_before_is_rendered_anew(renderer: Renderer) -> None:
    text = (
        "x: &x [3, {b: 2, a: 1}]\n"
        "tasks: [{$mergeDeep: [{a: *x}, {a: ['${now}'], b: {$reverse: *x}}]}, {$sort: [2, 1]}, {$eval: push.owner}]"
    )
    first = await tasks(renderer, text)
    other = {**CONTEXT, "now": "later", "push": {"owner": "other@example.com"}}
    second = (await renderer.taskcluster_yml("version: 1\n" + text, other)).parse(ids).result
    assert second == [{**first[0], "a": [*first[0]["a"][:-1], "later"]}, [1, 2], "other@example.com"]
    assert await tasks(renderer, "tasks: []") == []
    assert await tasks(renderer, text) == first
    assert len(children()) == 1


def test_small_files_are_parsed_once() -> None:
    small, large = "version: 1\ntasks: [{a: 1}]", "a: [" + "x, " * 200_000 + "]"
    assert _parse(small) is _parse(small)
    assert _parse(large) is not _parse(large)


async def test_an_expression_that_was_parsed_before_is_evaluated_anew(renderer: Renderer) -> None:
    loop = "tasks: {$map: [1, 2], each(n): {a: {$eval: 'n + 1'}, b: '${n}-${n + 1}', c: {$eval: '[n, {k: n}]'}}}"
    for wrong in ("n +", "n n", "n + 1"):
        assert await error(renderer, f"tasks: [{{$eval: '{wrong}'}}]") == await error(
            renderer, f"tasks: [{{$eval: '{wrong}'}}]"
        )
    expected = [{"a": n + 1, "b": f"{n}-{n + 1}", "c": [n, {"k": n}]} for n in (1, 2)]
    assert await tasks(renderer, loop) == expected
    assert await tasks(renderer, loop) == expected


def test_a_loop_parses_its_expressions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("jsone.render")
    parsed: list[str] = []

    def parser(source: str, tokenizer: Any) -> Any:
        parsed.append(source)
        return Parser(source, tokenizer)

    monkeypatch.setattr(module, "Parser", parser)
    template = {"$map": list(range(100)), "each(loop)": {"a": {"$eval": "loop + 17"}, "b": "${loop} of 17"}}
    assert len(_render(template, {})) == 100
    assert parsed == ["loop + 17", "loop} of 17"]


async def test_a_file_that_is_not_yaml_is_refused_each_time(renderer: Renderer) -> None:
    assert await error(renderer, "tasks: [") == await error(renderer, "tasks: [")

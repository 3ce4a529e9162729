"""Templates, rendered in child processes: what they mean, and that none of them does harm."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
import pytest

from service.engine.render import Renderer, TemplateError
from service.engine.render_child import NICE
from service.flow.tasks.ids import slugid
from service.settings import RenderLimits
from tests.service.test_sanitize import check_storable

KEY = b"k" * 32
CONTEXT: dict[str, Any] = {
    "push": {"owner": "dev@example.com", "comment": "Bug 1 - \u00e4 ${x}"},
    "now": "2030-01-30T12:00:00.000Z",
}


def ids(label: str) -> str:
    return slugid(KEY, label)


@asynccontextmanager
async def renderer_of(processes: int = 2, **limits: Any) -> AsyncIterator[Renderer]:
    made = Renderer(RenderLimits(**limits), processes)
    try:
        yield made
    finally:
        await made.close()
    assert children() == []


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    async with renderer_of(seconds=5) as made:
        yield made


def children() -> list[psutil.Process]:
    """Our children that render."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "service.engine.render_child" in child.cmdline()
    ]


async def tasks(renderer: Renderer, text: str) -> list[Any]:
    return (await renderer.taskcluster_yml("version: 1\n" + text, CONTEXT)).parse(ids).result


async def error(renderer: Renderer, text: str) -> str:
    with pytest.raises(TemplateError) as refused:
        await renderer.taskcluster_yml(text, CONTEXT)
    check_storable(str(refused.value))
    return str(refused.value)


# What it means


async def test_json_e_with_our_context(renderer: Renderer) -> None:
    text = """
tasks:
  $map: {$eval: "range(0, 2)"}
  each(n):
    taskId: {$eval: "as_slugid('build' + str(n))"}
    owner: ${push.owner}
    comment: {$eval: push.comment}
    created: {$fromNow: "1 hour"}
    own: ${ownTaskId}
"""
    assert await tasks(renderer, text) == [
        {
            "taskId": slugid(KEY, f"build{n}"),
            "owner": "dev@example.com",
            "comment": "Bug 1 - \u00e4 ${x}",
            "created": "2030-01-30T13:00:00.000Z",
            "own": slugid(KEY, "decision"),
        }
        for n in range(2)
    ]


async def test_labels_become_ids_in_the_parent(renderer: Renderer) -> None:
    text = "version: 1\ntasks: [\"${as_slugid('a')}-${as_slugid('b')}\", {$eval: as_slugid('a')}]"
    rendered = await renderer.taskcluster_yml(text, CONTEXT)
    for key in (KEY, b"x" * 32):
        rendering = rendered.parse(lambda label, key=key: slugid(key, label))  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
        assert rendering.result == [f"{slugid(key, 'a')}-{slugid(key, 'b')}", slugid(key, "a")]
        assert rendering.ids == {slugid(key, label) for label in ("a", "b", "decision")}
        assert slugid(key, "a").encode() not in rendered.answer, "the child cannot know it"


@pytest.mark.parametrize(
    ("label", "text"),
    [("1", "1"), ("1.0", "1"), ("2.5", "2.5"), ("true", "true"), ("null", "null"), ("'1'", "1"), ("10 * 10", "100")],
)
async def test_a_label_may_be_any_scalar_and_is_read_as_javascript_does(
    renderer: Renderer, label: str, text: str
) -> None:
    assert await tasks(renderer, f'tasks: [{{$eval: "as_slugid({label})"}}]') == [ids(text)]


async def test_a_template_that_makes_placeholders_of_placeholders_gets_no_id(renderer: Renderer) -> None:
    text = "tasks: [{$eval: \"as_slugid('a')[0:21] + 'B'\"}, {$eval: \"as_slugid('a')[1:22]\"}]"
    for made in await tasks(renderer, text):
        assert made not in {ids("a"), ids("decision")}


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
    (found,) = await tasks(renderer, f"tasks: [{yaml}]")
    assert json.dumps(found) == json.dumps(meant)


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
        ("version: 1\ntasks: [{$eval: '1 )'}]", r"^does not render: at tasks\[0\]: "),
        ("version: 1\ntasks: [{$eval: 'sqrt(-1)'}]", r"^does not render: at tasks\[0\]: .*'sqrt\(-1\)' cannot be"),
        ("version: 1\ntasks: ['${1 )}']", r"^does not render: at tasks\[0\]: "),
        ("version: 1\ntasks: [{x: {$map: 5, 'each(y)': 1}}]", r"^does not render: at tasks\[0\]\.x: "),
        ("version: 1\ntasks: [{$match: 5}]", r"^does not render: at tasks\[0\]: "),
        ("version: 1\ntasks: [{$fromNow: {}}]", r"^does not render: at tasks\[0\]: "),
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


# Harm


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "version: 1\ntasks: []\n" + "\n".join(lines)


BOMBS = {
    "aliases": laughs(10),
    "range": 'version: 1\ntasks: {$map: {$eval: "range(0, 1000000000)"}, each(x): {$eval: x}}',
    "ranges": "version: 1\ntasks:\n  $map: {$eval: 'range(0, 3000)'}\n  each(x):\n"
    "    $map: {$eval: 'range(0, 3000)'}\n    each(y): ${x} ${y}",
    "doubling": "version: 1\ntasks: {$let: {a: "
    + json.dumps("x" * 1000)
    + "}, in: {$reduce: {$eval: 'range(0, 64)'}, each(acc, n): {$eval: acc + acc}, initial: {$eval: a}}}",
    "flow nesting": "version: 1\ntasks: " + "[" * 200_000,
    "nesting": "version: 1\ntasks: " + "[" * 5_000 + "]" * 5_000,
    "expression nesting": "version: 1\ntasks: [{$eval: '" + "(" * 50_000 + "1" + ")" * 50_000 + "'}]",
    "power": "version: 1\ntasks: [{$eval: '9 ** 9 ** 9 ** 9'}]",
    "reduce nesting": "version: 1\ntasks:\n  $reduce: {$eval: 'range(0, 5000)'}\n"
    "  each(acc, n): [{$eval: acc}]\n  initial: []",
}


@contextmanager
def responsive(most: float) -> Iterator[None]:
    """Fail if this thread's event loop stood still for longer than so many seconds."""
    longest, last = 0.0, time.monotonic()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    beating = asyncio.ensure_future(beat())
    yield
    beating.cancel()
    assert longest < most


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_harms_nobody(bomb: str) -> None:
    async with renderer_of(1, seconds=0.7, memory_mib=128, output_mib=1) as renderer:
        await renderer.start()
        began, before = time.monotonic(), psutil.Process().memory_info().rss
        with responsive(0.5):
            why = await error(renderer, BOMBS[bomb])
        assert time.monotonic() - began < 5
        assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
        assert any(
            word in why for word in ("longer than 0.7 s", "memory", "nested too deeply", "bytes: more than", "render")
        ), why
        assert len(why) < 11_000
        # whatever became of the child, the next push is rendered
        assert await tasks(renderer, "tasks: [1]") == [1]
        assert len(children()) == 1


async def test_one_that_takes_too_long_is_killed_and_told_so() -> None:
    async with renderer_of(seconds=0.3) as renderer:
        await renderer.start()
        (child,) = children()
        why = await error(renderer, BOMBS["aliases"])
        assert why in {"takes longer than 0.3 s to render", "needs more memory than it may have"}
        assert not child.is_running()


@pytest.mark.parametrize(("mib", "taken"), [(1, False), (2, True)])
async def test_output_that_is_too_large(mib: int, taken: bool) -> None:
    text = "tasks: {$map: {$eval: 'range(0, 1100)'}, each(x): " + "x" * 1000 + "}"
    async with renderer_of(output_mib=mib, seconds=5) as renderer:
        if taken:
            assert len(await tasks(renderer, text)) == 1100
        else:
            assert "bytes: more than 1,048,576 are not taken" in await error(renderer, "version: 1\n" + text)
        assert len(children()) == 1


def _list(value: str, times: int) -> str:
    return "[" + ", ".join([value] * times) + "]"


NESTED = (
    f"version: 1\ntasks: {{$let: {{a: {_list('{}', 100)}}}, in: {{$let: {{b: {_list('{$eval: a}', 100)}}}, "
    f"in: {{$let: {{c: {_list('{$eval: b}', 100)}}}, in: {_list('{$eval: c}', 4)}}}}}}}"
)
"""Small, and renders to four million values."""


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


async def test_a_large_answer_does_not_hold_up_the_loop() -> None:
    async with renderer_of(output_mib=8, tasks=50_000, seconds=20) as renderer:
        text = "version: 1\ntasks: {$map: {$eval: 'range(0, 50000)'}, each(x): {n: '" + "x" * 100 + "'}}"
        with responsive(0.5):
            rendered = await renderer.taskcluster_yml(text, CONTEXT)
            assert not rendered.small
            assert len((await asyncio.to_thread(rendered.parse, ids)).result) == 50_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_kept_child_that_died_costs_no_push(renderer: Renderer, number: signal.Signals) -> None:
    """Of the kernel's want of memory, say; the template that comes next has nothing to do with it."""
    assert await tasks(renderer, "tasks: [1]") == [1]
    (child,) = children()
    os.kill(child.pid, number)
    assert await tasks(renderer, "tasks: [2]") == [2]


async def test_children_are_kept_and_shared() -> None:
    async with renderer_of(2) as renderer:
        answers = await asyncio.gather(*(tasks(renderer, f"tasks: [{n}]") for n in range(12)))
        assert answers == [[n] for n in range(12)]
        assert 1 <= len(children()) <= 2


async def test_a_file_cannot_say_that_its_child_is_spent(renderer: Renderer) -> None:
    assert await tasks(renderer, "tasks: [1]") == [1]
    (child,) = children()
    assert await tasks(renderer, 'tasks: [{"spent": true}]') == [{"spent": True}]
    assert children() == [child], "it is kept"


async def test_a_render_that_is_cancelled_leaves_no_child() -> None:
    async with renderer_of(1, seconds=30) as renderer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(renderer.taskcluster_yml(BOMBS["ranges"], CONTEXT), 0.4)
        assert children() == []
        assert await tasks(renderer, "tasks: [1]") == [1]


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

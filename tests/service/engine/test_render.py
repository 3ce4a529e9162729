"""Templates, rendered in child processes: what they mean, and that none of them does harm."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from service.engine.render import Renderer
from service.flow.tasks.ids import slugid
from tests.service.engine.rendering import CONTEXT, KEY, children, error, ids, renderer_of, tasks

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
    for task in await tasks(renderer, text):
        assert task not in {ids("a"), ids("decision")}


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


async def test_a_large_answer_does_not_hold_up_the_loop() -> None:
    async with renderer_of(output_mib=8, tasks=50_000, seconds=20) as renderer:
        text = "version: 1\ntasks: {$map: {$eval: 'range(0, 50000)'}, each(x): {n: '" + "x" * 100 + "'}}"
        with responsive(0.5):
            rendered = await renderer.taskcluster_yml(text, CONTEXT)
            assert not rendered.small
            assert len((await asyncio.to_thread(rendered.parse, ids)).result) == 50_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_kept_child_that_died_costs_no_push(renderer: Renderer, number: signal.Signals) -> None:
    """A child can be killed for the kernel's want of memory, which is no fault of the next template."""
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

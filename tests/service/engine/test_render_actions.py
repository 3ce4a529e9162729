"""In-tree actions in the render child: which are relevant, their input, and what hostile files come to."""

import json
from typing import Any

import pytest

from service.engine.render import Renderer, TemplateError
from service.engine.render_actions import first_relevant, is_relevant
from tests.service.engine.rendering import ids, renderer_of

GROUP, TASK = "ZjbGX94zS6y-YFEDpZKCrw", "fN1SbArXTPSVFNUvaOlinQ"

RETRIGGER: dict[str, Any] = {
    "name": "retrigger",
    "title": "Retrigger",
    "description": "Create a clone.",
    "kind": "hook",
    "context": [{}],
    "hookGroupId": "project-gecko",
    "hookId": "in-tree-action-1-generic/abc",
    "hookPayload": {
        "decision": {"action": {"name": "retrigger", "taskGroupId": {"$eval": "taskGroupId"}}, "owner": "${owner}"},
        "user": {"input": {"$eval": "input"}, "taskId": {"$eval": "taskId"}},
    },
    "schema": {
        "type": "object",
        "properties": {
            "downstream": {"type": "boolean", "default": False},
            "times": {"type": "integer", "default": 1, "minimum": 1, "maximum": 100},
        },
        "additionalProperties": False,
    },
}


def file_of(*actions: Any, **more: Any) -> bytes:
    return json.dumps({"version": 1, "variables": {"owner": "dev@example.com"}, "actions": actions, **more}).encode()


async def listed(renderer: Renderer, document: bytes) -> list[Any]:
    (actions,) = (await renderer.actions(document)).parse(ids).result
    assert isinstance(actions, list)
    return actions


async def rendered(
    renderer: Renderer,
    *actions: Any,
    name: str = "retrigger",
    told: Any = None,
    tags: dict[str, str] | None = None,
    **context: Any,
) -> dict[str, Any]:
    wanted = {
        "name": name,
        "tags": {} if tags is None else tags,
        "input": {} if told is None else told,
        "own": ["cancel"],
        "context": {"taskGroupId": GROUP, "taskId": TASK, **context},
    }
    (result,) = (await renderer.action(file_of(*actions), wanted)).parse(ids).result
    assert isinstance(result, dict)
    return result


# --- which actions are relevant -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "tags", "relevant"),
    [
        ([], None, True),
        ([], {}, False),
        ([], {"kind": "test"}, False),
        ([{}], None, False),
        ([{}], {}, True),
        ([{}], {"kind": "test"}, True),
        ([{"kind": "test"}], {"kind": "test", "os": "linux"}, True),
        ([{"kind": "test"}], {"kind": "build"}, False),
        ([{"kind": "test"}], {}, False),
        ([{"kind": "test"}], None, False),
        ([{"kind": "test", "os": "mac"}], {"kind": "test", "os": "linux"}, False),
        ([{"kind": "build"}, {"kind": "test"}], {"kind": "test"}, True),
    ],
)
def test_a_context_fits_a_task_or_a_group(
    context: list[dict[str, str]], tags: dict[str, str] | None, relevant: bool
) -> None:
    assert is_relevant(context, tags) is relevant


def test_the_first_relevant_action_of_each_name_counts_in_the_order_of_the_file() -> None:
    actions = [
        {"name": name, "context": context, "number": number}
        for number, (name, context) in enumerate(
            [
                ("b", [{"kind": "build"}]),
                ("b", [{}]),
                ("a", [{}]),
                ("b", [{"kind": "test"}]),
                ("c", []),
                ("a", [{"kind": "test"}]),
            ]
        )
    ]
    assert [action["number"] for action in first_relevant(actions, {"kind": "test"})] == [1, 2]
    assert [action["number"] for action in first_relevant(actions, {"kind": "build"})] == [0, 2]
    assert [action["number"] for action in first_relevant(actions, None)] == [4]


async def test_what_is_listed_of_an_action(renderer: Renderer) -> None:
    (action,) = await listed(renderer, file_of(RETRIGGER))
    assert action == {
        **{name: RETRIGGER[name] for name in ("name", "title", "description", "kind", "context", "schema")},
        "hook": ["project-gecko", "in-tree-action-1-generic/abc"],
        "broken": None,
    }


async def test_an_action_for_another_kind_of_task_is_not_offered(renderer: Renderer) -> None:
    backfill = {**RETRIGGER, "name": "backfill", "context": [{"kind": "test"}]}
    refused = await rendered(renderer, RETRIGGER, backfill, name="backfil", tags={"kind": "build"})
    assert refused == {"rejected": "there is no action 'backfil' for this task: it offers retrigger"}
    refused = await rendered(renderer, RETRIGGER, backfill, name="backfil", tags={"kind": "test"})
    assert refused == {
        "rejected": "there is no action 'backfil' for this task (backfill?): it offers retrigger, backfill"
    }
    refused = await rendered(renderer, RETRIGGER, name="cancle")
    assert refused == {"rejected": "there is no action 'cancle' for this task (cancel?): it offers retrigger"}


# --- rendering ----------------------------------------------------------------------------------------------------


async def test_a_hook_gets_the_context_the_variables_and_the_input_with_defaults(renderer: Renderer) -> None:
    assert await rendered(renderer, RETRIGGER, told={"times": 3}) == {
        "kind": "hook",
        "hook": ["project-gecko", "in-tree-action-1-generic/abc"],
        "input": {"times": 3, "downstream": False},
        "rendered": {
            "decision": {"action": {"name": "retrigger", "taskGroupId": GROUP}, "owner": "dev@example.com"},
            "user": {"input": {"times": 3, "downstream": False}, "taskId": TASK},
        },
    }


async def test_without_a_schema_the_input_is_null(renderer: Renderer) -> None:
    plain = {**RETRIGGER, "schema": None}
    assert (await rendered(renderer, plain))["rendered"]["user"] == {"input": None, "taskId": TASK}
    refused = await rendered(renderer, plain, told={"times": 2})
    assert refused == {"rejected": 'input of retrigger: it takes none, and {"times": 2} is given'}


async def test_a_task_has_the_old_task_and_an_id_of_its_own(renderer: Renderer) -> None:
    action = {
        **RETRIGGER,
        "kind": "task",
        "task": {"taskId": {"$eval": "ownTaskId"}, "name": "${task.metadata.name} again", "group": "${taskGroupId}"},
    }
    result = await rendered(renderer, action, task={"metadata": {"name": "build"}})
    assert (result["kind"], result["hook"]) == ("task", None)
    assert result["rendered"] == {"taskId": ids("decision"), "name": "build again", "group": GROUP}


async def test_a_template_that_does_not_render_says_where(renderer: Renderer) -> None:
    broken = {**RETRIGGER, "hookPayload": {"user": {"$eval": "nobody"}}}
    with pytest.raises(TemplateError, match="does not render: at user"):
        await rendered(renderer, broken)


# --- input --------------------------------------------------------------------------------------------------------


REQUESTS = {
    "type": "object",
    "required": ["requests"],
    "properties": {
        "requests": {"type": "array", "maxItems": 2, "items": {"$ref": "#/definitions/request"}},
        "kind": {"enum": ["a", "b"]},
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "one": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "definitions": {
        "request": {
            "type": "object",
            "properties": {"tasks": {"type": "array"}, "times": {"type": "integer", "default": 1, "maximum": 9}},
            "required": ["tasks"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({}, "requests is missing"),
        ({"requests": 1}, "requests is a number, and must be a list ([…])"),
        ({"requests": [{}]}, "requests[0].tasks is missing"),
        ({"requests": [{"tasks": [], "times": 10}]}, "requests[0].times 10 is too large: it must be at most 9"),
        ({"requests": [{"tasks": [], "time": 10}]}, "unknown key requests[0].time (times?)"),
        ({"requests": [{"tasks": []}] * 3}, "requests has 3 items, at most 2 are allowed"),
        ({"requests": [], "kind": "c"}, 'kind is "c", and none of "a", "b"'),
        ({"requests": [], "name": "A"}, 'name "A" is no text of the form ^[a-z]+$'),
        ({"requests": [], "name": "abcdef"}, "name has 6 characters, at most 5 are allowed"),
        ({"requests": [], "one": None}, "one fits none of its forms: one is null, and must be a text"),
        ({"requests": 1, "kind": 2}, 'requests is a number, and must be a list ([…]); kind is 2, and none of "a", "b"'),
    ],
)
async def test_an_input_that_does_not_fit_is_explained_in_words(renderer: Renderer, told: Any, problem: str) -> None:
    refused = await rendered(renderer, {**RETRIGGER, "schema": REQUESTS}, told=told)
    assert refused == {"rejected": f"input of retrigger: {problem}"}


async def test_defaults_are_filled_in_where_objects_and_lists_are(renderer: Renderer) -> None:
    action = {**RETRIGGER, "schema": REQUESTS}
    result = await rendered(renderer, action, told={"requests": [{"tasks": ["a"]}, {"tasks": [], "times": 2}]})
    assert result["input"] == {"requests": [{"tasks": ["a"], "times": 1}, {"tasks": [], "times": 2}]}


@pytest.mark.parametrize(
    ("schema", "told", "result"),
    [
        ({"type": "array", "items": {"type": "string"}}, ["a"], ["a"]),
        ({"type": "array"}, [], []),
        ({"type": "array", "default": ["b"]}, {}, ["b"]),
        ({"type": "array", "default": ["b"]}, [], []),
        ({"type": "string"}, "", ""),
        ({"type": "integer", "default": 3}, 0, 0),
        ({"type": "boolean"}, False, False),
        ({"type": ["null", "string"], "default": None}, {}, None),
    ],
)
async def test_an_input_may_be_any_json_that_the_schema_allows(
    renderer: Renderer, schema: Any, told: Any, result: Any
) -> None:
    assert (await rendered(renderer, {**RETRIGGER, "schema": schema}, told=told))["rendered"]["user"]["input"] == result


async def test_an_input_of_another_type_is_rejected(renderer: Renderer) -> None:
    refused = await rendered(renderer, {**RETRIGGER, "schema": {"type": "array"}}, told={})
    assert refused == {"rejected": "input of retrigger: it is an object, and must be a list ([…])"}
    plain = {**RETRIGGER, "schema": None}
    assert await rendered(renderer, plain, told=[]) == {
        "rejected": "input of retrigger: it takes none, and [] is given"
    }


async def test_the_default_of_the_whole_input_is_taken_if_none_is_given(renderer: Renderer) -> None:
    action = {**RETRIGGER, "schema": {"type": "object", "default": {"a": 1}, "properties": {"b": {"default": 2}}}}
    assert (await rendered(renderer, action))["input"] == {"a": 1, "b": 2}
    assert (await rendered(renderer, action, told={"b": 3}))["input"] == {"b": 3}


# --- files that are no good ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "is no JSON"),
        (b"<html>", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"null", "is no JSON object"),
        (b"{}", "has the version None: only version 1 is understood"),
        (file_of(version=2), "has the version 2: only version 1 is understood"),
        (file_of(version=True), "has the version True"),
        (file_of(variables=[]), "has `variables` that are no object"),
        (json.dumps({"version": 1, "actions": {}}).encode(), "has no list of `actions`"),
        (file_of(*[RETRIGGER] * 1_001), "has 1,001 actions: 1,000 at most are taken"),
        (
            file_of(*[{**RETRIGGER, "name": f"a{n}", "schema": {"description": "x" * 30_000}} for n in range(80)]),
            "has more than 2,097,152 characters of schemas and descriptions",
        ),
        (b"[" * 100_000, "is no JSON: nested too deeply"),
        (b'{"version": 1, "actions": [' + b"[]," * 1_000_001 + b"[]]}", "has more than 1,000,000 values"),
    ],
)
async def test_a_file_that_is_nonsense_says_what_is_wrong(renderer: Renderer, document: bytes, why: str) -> None:
    with pytest.raises(TemplateError) as refused:
        await renderer.actions(document)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"context": None}, "its `context` is no list of sets of tags"),
        ({"context": [{"kind": 1}]}, "its `context` is no list of sets of tags"),
        ({"kind": "workflow"}, "its kind is 'workflow', and neither hook nor task"),
        ({"hookGroupId": "a/b"}, "its hookGroupId is 'a/b'"),
        ({"hookId": "a b"}, "its hookId is 'a b'"),
        ({"hookPayload": []}, "its `hookPayload` is no object"),
        ({"kind": "task"}, "its `task` is no object"),
        ({"schema": "string"}, "its `schema` is no JSON Schema"),
        ({"schema": {"type": "text"}}, "its `schema` is no JSON Schema: schema.type"),
        ({"schema": {"$ref": "https://example.com/x.json"}}, "refers to https://example.com/x.json"),
        ({"schema": {"items": {"$ref": "file:///etc/passwd"}}}, "refers to file:///etc/passwd"),
        ({"schema": {"pattern": "(?<a>x)("}}, "has the pattern '(?<a>x)(', which is not understood"),
        ({"schema": {"patternProperties": {"[": {}}}}, "has the pattern '[', which is not understood"),
    ],
)
async def test_an_action_that_is_nonsense_leaves_the_others_alone(renderer: Renderer, change: Any, why: str) -> None:
    broken = {**RETRIGGER, "name": "broken", **change}
    first, second = await listed(renderer, file_of(broken, RETRIGGER))
    assert (second["name"], second["broken"]) == ("retrigger", None)
    assert first["broken"].startswith("the tree's action broken cannot be used: ")
    assert why in first["broken"]
    if first["context"] is None:
        assert first_relevant([first], None) == first_relevant([first], {}) == []
    else:
        assert await rendered(renderer, broken, RETRIGGER, name="broken") == {"failed": first["broken"]}


async def test_names_that_could_be_more_than_one_part_of_a_scope_are_left_out(renderer: Renderer) -> None:
    names = ["retrigger:mc", "*", "a b", "", None, 7, "x" * 101, "é", "good-one.2"]
    actions = await listed(renderer, file_of(*[{**RETRIGGER, "name": name} for name in names], "nothing", None))
    assert [action["name"] for action in actions] == ["good-one.2"]


async def test_a_reference_that_leads_nowhere_is_the_fault_of_the_tree(renderer: Renderer) -> None:
    with pytest.raises(TemplateError, match=r"refers to /definitions/none, which it does not have"):
        await rendered(
            renderer, {**RETRIGGER, "schema": {"properties": {"a": {"$ref": "#/definitions/none"}}}}, told={"a": 1}
        )


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#"}}, "allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}},
        {"properties": {"a": {"type": "string", "pattern": "^(a|a)*b$"}}},
    ],
)
async def test_schemas_that_never_end_are_ended(schema: Any) -> None:
    async with renderer_of(1, seconds=1) as renderer:
        with pytest.raises(TemplateError, match=r"nested too deeply|takes longer than 1 s"):
            await rendered(renderer, {**RETRIGGER, "schema": schema}, told={"a": "a" * 60 + "!"})
        assert (await rendered(renderer, RETRIGGER))["kind"] == "hook"


async def test_a_template_that_grows_is_stopped(renderer: Renderer) -> None:
    bomb: Any = {
        "$let": {"a": [{}] * 100},
        "in": {"$let": {"b": [{"$eval": "a"}] * 100}, "in": {"c": [{"$eval": "b"}] * 200}},
    }
    refused = await rendered(renderer, {**RETRIGGER, "hookPayload": bomb})
    assert refused["failed"].endswith("cannot be used: it is rendered as more than 50,000 values")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": {"default": {"a": "x" * 600_000}}}, "its input has 600,008 characters with the defaults of its"),
        ({"schema": {"properties": {"a": {"default": "x" * 600_000}}}}, "524,288 at most are taken"),
        ({"hookPayload": {"a": "x" * 1_000_000}}, "it is rendered as 1,000,008 characters, and 1,000,000 at most"),
        (
            {"hookPayload": {"a": {"$map": [0] * 300, "each(x)": [0] * 170}}},
            "it is rendered as more than 50,000 values",
        ),
    ],
)
async def test_what_the_service_would_keep_or_send_is_limited(renderer: Renderer, change: Any, why: str) -> None:
    refused = await rendered(renderer, {**RETRIGGER, **change})
    assert refused["failed"].startswith("the tree's action retrigger cannot be used: ")
    assert why in refused["failed"]


async def test_a_context_of_many_sets_of_tags_is_offered_to_nobody(renderer: Renderer) -> None:
    (action,) = await listed(renderer, file_of({**RETRIGGER, "context": [{"kind": str(n)} for n in range(51)]}))
    assert first_relevant([action], None) == first_relevant([action], {"kind": "1"}) == []
    assert "its `context` has 51 sets of tags, and 50 at most are taken" in action["broken"]


async def test_a_file_of_ten_megabytes_is_read(renderer: Renderer) -> None:
    large = {**RETRIGGER, "hookPayload": {"text": "x" * 10_000_000}}
    (action,) = await listed(renderer, file_of(large))
    assert action["name"] == "retrigger"

"""The OpenAPI document: complete, true to what routes do, and the same as the copy that is checked in."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from service.api import openapi
from service.api.schemas.common import examples
from service.app import create_app
from service.contract import events
from service.settings import Settings
from tests.service.asgi import ADMIN, Api, is_problem, signature

ROOT = Path(__file__).resolve().parents[3]
METHODS = {"get", "post", "patch", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings.model_construct()).openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, each) for path, of in document["paths"].items() for method, each in of.items()]


def test_docs_openapi_is_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "service", "openapi"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    again = "the API has changed: run `tc-treeherder openapi > docs/openapi.json`"
    assert (ROOT / "docs" / "openapi.json").read_text() == printed, again


def test_no_setting_changes_it(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_TREEHERDER_PORT", "1")
    assert create_app(Settings(public_reads=True)).openapi() == document


def test_every_operation_has_an_id_of_its_own_a_tag_and_a_description(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids) > 25
    assert all(re.fullmatch("[a-z]+[A-Za-z]*", each) for each in ids), "clients are generated from them"
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    for path, method, operation in operations(document):
        assert method in METHODS
        assert len(operation["tags"]) == 1
        assert set(operation["tags"]) <= described, path
        assert operation["description"], path


def test_it_says_where_the_api_is(document: dict[str, Any]) -> None:
    assert [server["url"] for server in document["servers"]] == ["/"]


def test_every_operation_says_who_may_call_it(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    for path, method, operation in operations(document):
        if not path.startswith("/api/v1/"):
            assert operation["security"] == [], "open to all, and said so"
            continue
        assert "401" in operation["responses"]
        named = [set(each) for each in operation["security"]]
        assert set().union(*named) <= set(schemes)
        if operation["tags"] == ["internal"]:
            assert named == [{"webhookId", "webhookTimestamp", "webhookSignature", "webhookRouteSignature"}]
        else:
            assert {"bearer"} in named
            assert {"hawk"} in named
            assert ({"bewit"} in named) is (method == "get")
            assert "It is `tc-treeherder:" in operation["responses"]["403"]["description"]


def test_errors_are_problems_and_nothing_else(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for path, method, operation in operations(document):
        if not path.startswith("/api/v1/"):
            continue
        expected = {"401", "422"} if method == "get" else {"400", "401", "408", "413", "422"}
        if operation["tags"] != ["internal"]:
            expected |= {"403", "503"} | (set() if method == "get" else {"429"})
        assert expected <= set(operation["responses"]), (method, path)
        if "{" in path:
            assert "404" in operation["responses"]
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                assert status == "204" or "application/json" in response["content"]
                continue
            if "$ref" in response:
                assert response == {"$ref": f"#/components/responses/{status}"}
                response = document["components"]["responses"][status]  # noqa: PLW2901 - what is meant
            assert list(response["content"]) == ["application/problem+json"]


def test_what_is_referred_to_is_there_and_what_is_there_is_referred_to(document: dict[str, Any]) -> None:
    named = set(re.findall(r'"#/components/([^"]+)"', json.dumps(document)))
    there = {f"{kind}/{name}" for kind in ("schemas", "responses") for name in document["components"][kind]}
    assert named == there


def test_examples_are_what_the_models_take(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(openapi.EXAMPLES["Problem"]) <= set(schemas["Problem"]["properties"])
    models: dict[type[BaseModel], dict[str, Any]] = {**examples(), events.Verdicts: openapi.EXAMPLES["Verdicts"]}
    assert len(models) > 12
    for model, example in models.items():
        name = model.__name__
        assert schemas[name]["examples"] == [example]
        read = model.model_validate_json(json.dumps(example), strict=False)
        assert json.loads(read.model_dump_json(include=set(example))).keys() == example.keys()
        if name.endswith(("Read", "Summary", "Plan")):
            assert set(model.model_fields) == set(example), "whole, as the API answers"


async def test_merge_patch_is_taken_by_its_own_name_too(sqlite_api: Api, document: dict[str, Any]) -> None:
    body = document["paths"]["/api/v1/repositories/{alias}"]["patch"]["requestBody"]["content"]
    assert set(body) == {"application/merge-patch+json"}, "two types of one schema break generated clients"
    await sqlite_api.add()
    for level, kind in enumerate(("application/merge-patch+json", "application/json")):
        raw = json.dumps({"level": str(level)}).encode()
        path = "/api/v1/repositories/mc"
        answer = await sqlite_api.call("PATCH", path, content=raw, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json()["level"] == str(level)
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await sqlite_api.call("PATCH", path, content=raw, headers={"Content-Type": kind})
        is_problem(answer, 422)


async def test_location_is_where_it_is_said_to_be(sqlite_api: Api) -> None:
    answer = await sqlite_api.post("/repositories", {"alias": "mc", "url": "https://hg.mozilla.org/mc", "level": "1"})
    assert (await sqlite_api.call("GET", answer.headers["location"])).json() == answer.json()


async def test_the_document_is_served(sqlite_api: Api, document: dict[str, Any]) -> None:
    answer = await sqlite_api.client.get("/openapi.json", headers={"Authorization": f"Bearer {ADMIN}"})
    assert answer.json() == document


async def test_an_example_of_each_body_is_taken(sqlite_api: Api) -> None:
    bodies = {schema.__name__: example for schema, example in examples().items()}
    await sqlite_api.add("mozilla-central")
    is_problem(await sqlite_api.post("/repositories", bodies["RepositoryCreate"]), 409)
    action = await sqlite_api.post("/actions", bodies["ActionCreate"])
    assert action.status_code == 202, action.text
    patched = await sqlite_api.patch("/repositories/mozilla-central", bodies["RepositoryPatch"])
    assert patched.status_code == 200
    report = {"queue": "queue/us/tc-treeherder/tasks", "events": "tasks", "found": "new"}
    raw = json.dumps(report).encode()
    answer = await sqlite_api.client.post(
        "/api/v1/listeners/report", content=raw, headers=signature(raw, path="/listeners/report")
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/repositories", "GET, POST"),
        ("DELETE", "/api/v1/repositories", "GET, POST"),
        ("POST", "/api/v1/repositories/mc", "DELETE, GET, PATCH"),
        ("GET", "/api/v1/events/tasks", "POST"),
        ("POST", "/__lbheartbeat__", "GET"),
    ],
)
async def test_a_405_lists_what_the_path_takes(sqlite_api: Api, method: str, path: str, allowed: str) -> None:
    answer = await sqlite_api.call(method, path)
    is_problem(answer, 405, f"{path} accepts {allowed}, and not {method}")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("body", [{"enabled": 0}, {"graph": "true"}, {"last_push_id": "1"}, {"last_push_id": True}])
async def test_a_number_is_no_truth_and_a_text_no_number(sqlite_api: Api, body: dict[str, Any]) -> None:
    where = {"alias": "mc", "url": "https://hg.mozilla.org/mc", "level": "1"}
    is_problem(await sqlite_api.post("/repositories", {**where, **body}), 422, next(iter(body)))
    assert (await sqlite_api.post("/repositories", {**where, "last_push_id": 7.0})).json()["last_push_id"] == 7

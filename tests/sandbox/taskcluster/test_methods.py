"""API methods, compared with our list of schemas and with the published reference."""

from typing import Any

import pytest

from sandbox.taskcluster import Taskcluster
from sandbox.taskcluster.methods import api_methods
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.models import ANSWERS, REQUESTS
from tests.sandbox.taskcluster.support import Api


async def test_expand_scopes_brings_roles(api: Api) -> None:
    api.tc.auth.set_roles({"role-x": ["from-role"]})
    answer = await api("expandScopes", body={"scopes": ["assume:role-x"]}, service="auth")
    assert answer["scopes"] == ["assume:role-x", "from-role"]


async def test_each_service_answers_ping(api: Api) -> None:
    for service in ("queue", "auth", "hooks"):
        assert (await api("ping", service=service, client=None))["alive"] is True


def test_a_method_takes_a_body_if_it_has_a_schema_for_it(tc: Taskcluster) -> None:
    for _, method in api_methods(tc):
        assert method.takes_body == (method.name in REQUESTS)


@pytest.mark.published
def test_every_method_here_is_a_published_one(tc: Taskcluster) -> None:
    references: dict[str, dict[str, Any]] = {}
    for service in ("queue", "auth", "hooks"):
        entries = read_published(f"taskcluster/references/{service}/v1/api.json")["entries"]
        references[service] = {entry["name"]: entry for entry in entries}
    for service, method in api_methods(tc):
        published = references[service][method.name]
        assert method.verb == published["method"].upper()
        template = method.path.replace(":path}", "}").replace("{", "<").replace("}", ">")
        assert template == published["route"]
        assert method.takes_body == ("input" in published)
        assert method.public == ("scopes" not in published)
        for schemas, key in ((REQUESTS, "input"), (ANSWERS, "output")):
            schema = f"{service}/{published[key].removesuffix('#')}" if key in published else None
            assert schemas.get(method.name) == schema

"""API methods, compared with the published reference."""

from sandbox.taskcluster import Taskcluster
from tests.sandbox.taskcluster.support import Api, reference


async def test_expand_scopes_brings_roles(api: Api) -> None:
    api.tc.auth.set_roles({"role-x": ["from-role"]})
    answer = await api("expandScopes", body={"scopes": ["assume:role-x"]}, service="auth")
    assert answer["scopes"] == ["assume:role-x", "from-role"]


async def test_both_services_answer_ping(api: Api) -> None:
    for service in ("queue", "auth"):
        assert (await api("ping", service=service, client=None))["alive"] is True


def test_every_method_here_is_a_published_one(tc: Taskcluster) -> None:
    from sandbox.taskcluster.methods import api_methods

    for service, method in api_methods(tc):
        published = reference(service)[method.name]
        assert method.verb == published["method"].upper()
        template = method.path.replace(":path}", "}").replace("{", "<").replace("}", ">")
        assert template == published["route"]
        assert method.takes_body == ("input" in published)
        assert method.public == ("scopes" not in published)

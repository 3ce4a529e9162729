"""A signed client of the Treeherder stand-in, and bodies to submit."""

import hashlib
import json
from typing import Any

import httpx
from mohawk import Sender

from sandbox.treeherder.app import create_app
from sandbox.treeherder.state import State
from sandbox.treeherder.store import Repository, Store

REVISION = "219d38523a321229f7f48aca6592f76b993fb1aa"


GUID = "037e6659-346e-426c-a3f3-cc8c9c81747c/0"


HEADERS = {"User-Agent": "tc-treeherder/test", "Accept": "application/json; version=1.0"}


RESULTSET = "/api/project/autoland/resultset/"


JOBS = "/api/project/autoland/jobs/"


PUSH = "/api/project/autoland/push/"


class Treeherder(httpx.AsyncClient):
    """A client that signs what it posts, and that has the state of the other side at hand."""

    def __init__(self) -> None:
        repositories = [Repository("autoland", "https://hg.example/autoland"), Repository("try")]
        self.state = State(Store(repositories), {"tc": "secret", "other": "secret"})
        app = create_app(self.state)
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://treeherder", headers=HEADERS)

    def sign(self, path: str, body: str, client_id: str = "tc", key: str = "secret") -> dict[str, str]:
        credentials = {"id": client_id, "key": key, "algorithm": "sha256"}
        url = f"http://treeherder{path}"
        sender = Sender(credentials, url, "POST", content=body, content_type="application/json")
        return {"Authorization": str(sender.request_header), "Content-Type": "application/json"}

    async def submit(self, path: str, body: Any, **credentials: str) -> httpx.Response:
        text = json.dumps(body)
        return await self.post(path, content=text, headers=self.sign(path, text, **credentials))

    async def behave(self, **changes: Any) -> None:
        answer = await self.patch("/__control__/behaviour", json=changes)
        assert answer.status_code == 200, answer.text

    async def inside(self, **query: str) -> Any:
        return (await self.get("/__control__/state", params=query)).json()

    async def outcomes(self) -> list[str]:
        (job,) = (await self.inside(job_guid=GUID))["jobs"]
        return [entry["outcome"] for entry in job["history"]]


def resultset(**changes: Any) -> dict[str, Any]:
    revisions = [
        {
            "revision": node,
            "author": "Ada <ada@example.com>",
            "comment": "Bug 1 - <b>count</b>",
            "files": ["a/b.c"],
            "branch": "default",
            "repository": "autoland",
        }
        for node in ("1" * 40, REVISION)
    ]
    return {
        "revision": REVISION,
        "revision_hash": hashlib.sha1(f"{'1' * 40}default{REVISION}default".encode()).hexdigest(),
        "push_timestamp": 1561576431,
        "author": "ada@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": revisions,
    } | changes


def entry(**changes: Any) -> dict[str, Any]:
    platform = {"platform": "linux64", "os_name": "-", "architecture": "-"}
    job = {
        "job_guid": GUID,
        "name": "build-linux64/debug",
        "desc": "",
        "job_symbol": "B",
        "group_name": "Builds",
        "group_symbol": "?",
        "product_name": "firefox",
        "state": "pending",
        "result": "unknown",
        "reason": "scheduled",
        "who": "ada@example.com",
        "submit_timestamp": 1561576431,
        "machine": "i-0123",
        "build_system_type": "taskcluster",
        "build_platform": platform,
        "machine_platform": platform,
        "option_collection": {"debug": True},
        "tier": 1,
        "log_references": [],
        "artifacts": [],
    }
    return {"project": "autoland", "revision": REVISION, "superseded": [], "job": job | changes}


RUNNING = {"state": "running", "start_timestamp": 1561576440}


COMPLETED = RUNNING | {"state": "completed", "result": "success", "end_timestamp": 1561576450}


PRESS = {"project": "autoland", "job_guid": GUID, "action": "retrigger", "requester": "ada@example.com"}

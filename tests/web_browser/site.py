"""A running system with a browser before it, which all stories share."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from sandbox.credentials import LEVEL, TRUST_DOMAIN
from sandbox.demo import PATH, REPOSITORY, TASKCLUSTER_YML
from sandbox.stack import Stack, wait_for
from tests.service.asgi import signature
from tests.system.conftest import SHORT
from tests.system.warm import WarmProcess

ADMIN, READER = "admin-0123456789abcdef", "reader-0123456789abcdef"

SECRET = "whsec_" + "bmV3" * 10

TOKENS = [
    {"name": "sheriff@example.com", "value": ADMIN, "scopes": ["*"]},
    {"name": "reader", "value": READER, "scopes": ["tc-treeherder:read"]},
]

ARGUMENTS = [
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--disable-extensions", "--disable-sync", "--no-first-run", "--no-sandbox"),
    *("--disable-dev-shm-usage", "--disable-gpu"),
]
"""Of the browser: it asks nobody but the service, and runs as root in a container."""

QUICK_YML = TASKCLUSTER_YML.replace("once: failed", "once: completed")
"""The file of the demo, with a test that passes."""

PATIENCE = 20_000
"""Milliseconds that the browser waits for what is to come."""


def taskcluster_of(stack: Stack) -> str:
    """Return the root URL of Taskcluster under a name that makes it another site than the page."""
    root: str = stack.sandbox["taskcluster"]
    return root.replace("127.0.0.1", "localhost")


class Site:
    """The service, what stands behind it, and a browser."""

    def __init__(self, stack: Stack, browser: Browser, hg: httpx.Client, api: httpx.Client) -> None:
        self.stack, self.browser, self._hg, self.api = stack, browser, hg, api
        self.url = stack.service_url
        self.taskcluster = taskcluster_of(stack)
        self._state: Any = None
        self.problems: list[str] = []

    def push(self, file: str = TASKCLUSTER_YML, message: str = "Bug 1 - a change") -> int:
        """Push a commit; return the id of the push."""
        changeset = {"message": message, "files": {".taskcluster.yml": file}}
        body = {"repository": PATH, "user": "dev@example.com", "changesets": [changeset]}
        return int(self._hg.post("/push", json=body).raise_for_status().json()["id"])

    def read_push(self, number: int) -> dict[str, Any]:
        """Return a push as the API has it; empty if it is not there yet."""
        answer = self.api.get(f"/pushes/{REPOSITORY}/{number}")
        push: dict[str, Any] = answer.json() if answer.is_success else {}
        return push

    def path(self, number: int) -> str:
        return f"/pushes/{REPOSITORY}/{number}"

    def wait_for_graph(self, number: int, state: str = "done") -> dict[str, Any]:
        """Wait until the graph of a push is in this state, and return the push."""

        def ended() -> bool:
            return bool((push := self.read_push(number)) and push["graph"]["state"] == state)

        wait_for(ended, PATIENCE / 1_000)
        return self.read_push(number)

    def bury(self, name: str) -> None:
        """Send an event that cannot be understood, so that it becomes a dead letter."""
        raw = json.dumps({"events": [{"strange": name}]}).encode()
        headers = signature(raw, SECRET)
        self.api.post("/events/pushes", content=raw, headers=headers).raise_for_status()

    @contextmanager
    def visitor(self, *, signed_in: bool = True, **options: Any) -> Iterator[Page]:
        """Open a browser of somebody, who has signed in as sheriff unless told otherwise."""
        state = self._state if signed_in else None
        context: BrowserContext = self.browser.new_context(base_url=self.url, storage_state=state, **options)
        context.set_default_timeout(PATIENCE)
        self.problems.clear()
        page = context.new_page()
        page.on("console", self._note_error)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._note_stranger)
        try:
            if signed_in and self._state is None:
                self.sign_in(page, ADMIN)
                self._state = context.storage_state()
            yield page
        finally:
            context.close()
        assert not self.problems, self.problems

    def _note_error(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"{message.location.get('url')}: {message.text}")

    def _note_stranger(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.problems.append(f"the page asks {request.url}")

    def sign_in(self, page: Page, token: str) -> None:
        """Sign in by the form."""
        page.goto("/sign-in")
        page.get_by_label("Token").fill(token)
        page.get_by_role("main").get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/")


@contextmanager
def open_site(folder: Path, program: Path, amqp_url: str) -> Iterator[Site]:
    """Start everything, with one repository; stop it at the end."""
    settings = {
        **SHORT,
        "TC_TREEHERDER_TOKENS": json.dumps(TOKENS),
        "TC_TREEHERDER_WEBHOOK_SECRETS": json.dumps([SECRET]),
        "TC_TREEHERDER_WRITES_PER_MINUTE": "0",
    }
    with Stack(folder, amqp_url=amqp_url, settings=settings, process=WarmProcess) as stack, sync_playwright() as driver:
        stack.token = ADMIN
        stack.service(TC_TREEHERDER_TASKCLUSTER__ROOT_URL=taskcluster_of(stack))
        stack.listener("pushlog-listener")
        stack.listener("pulse-listener", "pulse")
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        with stack.api() as api, stack.control("hg") as hg:
            url = stack.sandbox["repositories"][REPOSITORY]
            body = {"alias": REPOSITORY, "url": url, "level": LEVEL, "trust_domain": TRUST_DOMAIN, "last_push_id": 0}
            api.post("/repositories", json=body).raise_for_status()
            yield Site(stack, browser, hg, api)
        browser.close()

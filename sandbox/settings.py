"""Write a configuration for the service and both listeners that fits a running sandbox."""

import secrets
from base64 import b64encode
from pathlib import Path
from typing import Any

import yaml

from sandbox import broker
from sandbox.credentials import SIGN_IN, SIGN_IN_PATH
from sandbox.taskcluster.tasks import EXCHANGES
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE

STANDARD_OUTPUT = Path("-")
"""Names standard output instead of a file."""

_MARKER = "# Written by bin/sandbox"
"""Begin of a file that is the sandbox's own, and may be overwritten."""

ENVIRONMENT = "tc-treeherder"
"""The route prefix of the one Treeherder."""


def is_foreign(path: Path) -> bool:
    """Return True if the file exists and is not one that a sandbox wrote. Raises OSError."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not file.readline().startswith(_MARKER.encode())


def configuration(sandbox: dict[str, Any], folder: Path, port: int, amqp_url: str | None, user: str) -> str:
    """Return the YAML file for a sandbox with this ready file, with a new token and a new webhook secret.

    The database is a file in `folder`, and the service listens on `port`. With `amqp_url`, the exchanges are those of
    the Pulse user `user`.
    """
    client, hawk = sandbox["credentials"]["taskcluster"], sandbox["credentials"]["treeherder"]
    listeners: dict[str, Any] = {"service_url": f"http://127.0.0.1:{port}"}
    settings: dict[str, Any] = {
        "database_url": f"sqlite+aiosqlite:///{folder / 'tc-treeherder.sqlite'}",
        "port": port,
        "tokens": [{"name": "sandbox", "value": secrets.token_urlsafe(24), "scopes": ["tc-treeherder:*"]}],
        "webhook_secrets": ["whsec_" + b64encode(secrets.token_bytes(32)).decode()],
        "allowed_hosts": [sandbox["hg"].removeprefix("http://")],
        "taskcluster": {
            "root_url": sandbox["taskcluster"],
            "client_id": client["clientId"],
            "access_token": client["accessToken"],
        },
        "web_sign_in": {"client_id": SIGN_IN, "redirect_url": f"http://127.0.0.1:{port}{SIGN_IN_PATH}"},
        "environments": {
            ENVIRONMENT: {"url": sandbox["treeherder"], "client_id": hawk["id"], "secret": hawk["key"]},
        },
        "listeners": listeners,
    }
    if amqp_url is not None:
        prefix = broker.exchange_prefix(user)
        settings["pulse"] = {"url": amqp_url, "user": user}
        listeners |= {"pulse_job_actions": prefix + JOB_ACTIONS_EXCHANGE, "pulse_tasks": prefix + EXCHANGES}
    head = f"{_MARKER}, for the service and the listeners while it runs. The secrets are good for nothing else.\n"
    return head + yaml.safe_dump(settings, sort_keys=False)

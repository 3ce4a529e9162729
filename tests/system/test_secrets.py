"""No secret is ever told: they are planted in every setting, all goes wrong that can, and all output is searched."""

import base64
import gzip
import json
import secrets
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import mohawk
import psutil
import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from listeners.settings import ListenerSettings
from sandbox import credentials
from sandbox.stack import free_port
from service.contract.configuration import SettingsError
from service.settings import Settings, load
from tests.service.asgi import push_event, signature
from tests.services import Amqp
from tests.system.conftest import PATH, REPOSITORY, System, graph_of

Systems = Callable[..., System]


def planted(name: str) -> str:
    """Return a secret that does not occur anywhere by chance."""
    return f"planted-{name}-{secrets.token_hex(12)}"


def webhook_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass
class Role:
    """A PostgreSQL user with a planted password, and the database's URL for it."""

    url: str
    password: str


@pytest.fixture
def role(postgres_url: str) -> Iterator[Role]:
    name, password = f"planted_{uuid.uuid4().hex[:8]}", planted("database")
    owner = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        )
        yield Role(with_user(postgres_url, name, password).render_as_string(hide_password=False), password)
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def with_user(url: str, name: str, password: str) -> URL:
    return make_url(url).set(username=name, password=password)


class Searched:
    """Everything that was said, and by whom."""

    def __init__(self, exits: ExitStack) -> None:
        self.said: dict[str, list[str]] = {}
        self._exits = exits

    def add(self, where: str, text: str) -> None:
        self.said.setdefault(where, []).append(text)

    def heard(self, answer: httpx.Response) -> None:
        answer.read()
        self.add("the API", f"{answer.status_code} {dict(answer.headers)} {answer.text}")

    def client(self, url: str, **headers: str) -> httpx.Client:
        """Return a client whose answers are searched."""
        client = httpx.Client(base_url=url, headers=headers, event_hooks={"response": [self.heard]}, timeout=30)
        return self._exits.enter_context(client)

    def run(self, environment: dict[str, str], *arguments: str) -> int:
        """Run `tc-treeherder …`, and search what it prints."""
        command = [sys.executable, "-m", "service", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)  # noqa: PLW1510 - the code is the answer
        self.add(f"tc-treeherder {' '.join(arguments)}", done.stdout + done.stderr)
        return done.returncode

    def expect_none_of(self, names: dict[str, str]) -> None:
        findings = [
            (name, where, text[max(text.find(secret) - 300, 0) : text.find(secret) + 100])
            for where, texts in self.said.items()
            for text in texts
            for name, secret in names.items()
            if secret in text and (name, where) != ("sentry key", "Sentry")  # who must know it
        ]
        assert not findings, findings[:5]


@pytest.fixture
def searched() -> Iterator[Searched]:
    with ExitStack() as exits:
        yield Searched(exits)


@pytest.fixture
def sentry(searched: Searched) -> Iterator[str]:
    """Run a Sentry whose events are searched; yield its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            searched.add("Sentry", (gzip.decompress(body) if packed else body).decode())
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def connections_lost(role: Role) -> Iterator[None]:
    """End every connection of ours in the database while inside."""
    url = make_url(role.url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        for _ in range(5):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE usename = current_user AND pid <> pg_backend_pid()"
            )
        yield


def hawk(url: str, client: str, key: str, method: str = "GET") -> str:
    sender = mohawk.Sender({"id": client, "key": key, "algorithm": "sha256"}, url, method, content="", content_type="")
    return str(sender.request_header)


def test_no_secret_is_told_whatever_goes_wrong(
    systems: Systems, role: Role, amqp: Amqp, searched: Searched, sentry: str
) -> None:
    port = free_port()
    names = {
        "database password": role.password,
        "token": planted("token"),
        "webhook secret": webhook_secret(),
        "older webhook secret": webhook_secret(),
        "pulse password": planted("pulse"),
        "sentry key": secrets.token_hex(16),
        "taskcluster access token": credentials.SERVICE.access_token,
        "treeherder hawk key": credentials.TREEHERDER_SECRET,
        "a caller's access token": credentials.PERSON.access_token,
        "a caller's wrong token": planted("wrong-token"),
        "a caller's wrong key": planted("wrong-key"),
    }
    # refused by the broker, for the user is not known to it
    pulse = f"amqp://planted:{names['pulse password']}@{make_url(amqp.url).host}:{make_url(amqp.url).port or 5672}/%2F"
    settings = {
        "TC_TREEHERDER_LOG_LEVEL": "DEBUG",
        "TC_TREEHERDER_LOG_JSON": "false",  # for people; later as JSON
        "TC_TREEHERDER_TASKCLUSTER_LOGINS": "true",
        "TC_TREEHERDER_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "TC_TREEHERDER_TOKENS": json.dumps([{"name": "stack", "value": names["token"], "scopes": ["*"]}]),
        "TC_TREEHERDER_WEBHOOK_SECRETS": json.dumps([names["webhook secret"], names["older webhook secret"]]),
        "TC_TREEHERDER_PULSE__URL": pulse,
        "TC_TREEHERDER_SENTRY_DSN": f"http://{names['sentry key']}@{sentry}/1",
        "TC_TREEHERDER_WORK__GIVE_UP": "3",
        "TC_TREEHERDER_WORK__GIVE_UP_ATTEMPTS": "1",
        "TC_TREEHERDER_PROBE_PORT": str(free_port()),
    }
    system = systems(role.url, settings=settings, service_port=port)
    stack = system.stack
    hawk_client = {"client_id": credentials.TREEHERDER_ID, "secret": names["treeherder hawk key"]}
    environments = {
        "tc-treeherder": {"url": stack.sandbox["treeherder"], **hawk_client},
        "tc-treeherder-stage": {"url": stack.sandbox["treeherder"], "pushes": "pulse", "jobs": "off", **hawk_client},
    }
    both = json.dumps(environments)
    environment = {**stack.environment, "TC_TREEHERDER_ENVIRONMENTS": both}

    service = stack.service(TC_TREEHERDER_ENVIRONMENTS=both)
    stack.listener(TC_TREEHERDER_ENVIRONMENTS=both)
    stack.listener("pulse", "pulse", TC_TREEHERDER_ENVIRONMENTS=both)
    api_url = f"{stack.service_url}/api/v1"
    api = searched.client(api_url, Authorization=f"Bearer {names['token']}")
    repository = {
        "alias": REPOSITORY,
        "url": stack.sandbox["repositories"][REPOSITORY],
        "level": "3",
        "last_push_id": 0,
    }
    assert api.post("/repositories", json=repository).status_code == 201

    # it works, then each upstream breaks in turn
    def push(text: str) -> None:
        changeset = {"message": "a change", "files": {".taskcluster.yml": text}}
        system.hg.post("/push", json={"repository": PATH, "user": "dev", "changesets": [changeset]}).raise_for_status()

    def settled(pushes: int) -> bool:
        stored = api.get("/pushes").json()["items"]
        return len(stored) == pushes and all(push["graph"]["state"] != "pending" for push in stored)

    push(graph_of(2))
    system.wait(lambda: settled(1))
    system.treeherder.patch("/behaviour", json={"error": 1.0})
    system.taskcluster.post("/faults", json={"kind": "before", "method": "createTask", "status": 403, "times": 1})
    system.taskcluster.post("/faults", json={"kind": "drop", "method": "status", "times": 1})
    push(graph_of(2))
    push("version: 1\ntasks: {$eval: 'no_such_thing'}")
    system.hg.post("/faults", json={"repository": PATH, "kind": "status", "status": 500, "times": 2})
    system.wait(lambda: settled(3), 40)
    with connections_lost(role):
        for _ in range(5):
            api.get("/repositories")
    system.treeherder.delete("/behaviour")
    service.stop()
    service = stack.service("again", TC_TREEHERDER_ENVIRONMENTS=both, TC_TREEHERDER_LOG_JSON="true")
    with connections_lost(role):
        for _ in range(5):
            api.get("/repositories")
    bad = {**push_event(9), "push": "nonsense"}
    raw = json.dumps({"events": [bad]}).encode()
    api.post("/events/pushes", content=raw, headers=signature(raw, names["webhook secret"]))
    api.post("/events/pushes", content=raw, headers=signature(raw, names["older webhook secret"]))
    api.post("/events/pushes", content=raw, headers=signature(raw, webhook_secret()))
    api.post("/events/pushes", content=raw[:-1], headers=signature(raw, names["webhook secret"]))
    action = {
        "action": "retrigger",
        "project": REPOSITORY,
        "task_id": api.get("/pushes").json()["items"][-1]["graph"]["tasks"][0]["task_id"],
    }
    api.post("/actions/plan", json=action)
    api.post("/actions", json=action)
    api.post("/actions", json={**action, "project": "other"})

    # callers of every kind
    url = f"{api_url}/repositories"
    headers = [
        "Bearer " + names["a caller's wrong token"],
        hawk(url, credentials.PERSON.client_id, names["a caller's access token"]),
        hawk(url, credentials.PERSON.client_id, names["a caller's wrong key"]),
        hawk(f"{url}/elsewhere", credentials.PERSON.client_id, names["a caller's access token"]),
        "Hawk " + names["a caller's wrong key"],
    ]
    statuses = [searched.client(api_url, Authorization=header).get("/repositories").status_code for header in headers]
    assert statuses == [401, 200, 401, 401, 401]
    bewit = planted("bewit")
    names["a bewit"] = bewit
    searched.client(api_url).get("/repositories", params={"bewit": bewit})
    for path in (
        "/__heartbeat__",
        "/__lbheartbeat__",
        "/__version__",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/nowhere",
    ):
        searched.client(stack.service_url).get(path)
    for path in ("/pushes", "/actions", "/dead-letters", "/repositories"):
        api.get(path)
    assert api.get("/dead-letters").json()["items"]

    searched.run(environment, "doctor", "--seconds", "3")
    searched.run(environment, "repositories", "list")
    searched.run(environment, "settings")
    away = with_user(role.url, "planted", names["database password"]).set(port=9).render_as_string(hide_password=False)
    assert searched.run({**environment, "TC_TREEHERDER_DATABASE_URL": away}, "db", "upgrade") == 2
    assert searched.run({**environment, "TC_TREEHERDER_PORT": "nonsense"}, "serve") == 2

    key = secret_of_task_ids(role)
    names |= {"key of task ids, hex": key.hex(), "the same, base64": base64.b64encode(key).decode()}
    for child in psutil.Process(service.pid).children(recursive=True):
        searched.add("a child's environment", json.dumps(child.environ()))
    service.stop()
    for name, process in stack.processes.items():
        if name != "sandbox":  # which holds what everybody knows
            searched.add(f"the log of {name}", process.log.read_text(errors="replace"))
    logs = {where: "".join(text) for where, text in searched.said.items() if where.startswith("the log")}
    for name, debug in (("service", "[debug"), ("again", '"Severity": 7')):
        log = logs[f"the log of {name}"]
        assert "Traceback" in log, "without failures this shows nothing"
        assert debug in log
    assert searched.said["Sentry"], "it was told of failures"
    searched.expect_none_of(names)
    for log in logs.values():
        for word in ("Bearer ", 'mac="', "webhook-signature"):
            assert word not in log, log[max(log.find(word) - 300, 0) : log.find(word) + 100]


def secret_of_task_ids(role: Role) -> bytes:
    url = make_url(role.url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        row = connection.execute("SELECT value FROM secret").fetchone()
    assert row is not None
    return bytes(row[0])


# --- settings ------------------------------------------------------------------------------------------------------


def everything(names: dict[str, str]) -> dict[str, Any]:
    return {
        "database_url": f"postgresql+psycopg://u:{names['database']}@127.0.0.1/x",
        "tokens": [{"name": "me", "value": names["token"], "scopes": ["*"]}],
        "webhook_secrets": [names["webhook"]],
        "taskcluster": {"client_id": "c", "access_token": names["access"], "certificate": names["certificate"]},
        "environments": {"t": {"url": "https://t.example.com", "client_id": "c", "secret": names["hawk"]}},
        "pulse": {"url": f"amqps://u:{names['pulse']}@127.0.0.1/%2F"},
        "sentry_dsn": f"https://{names['sentry']}@127.0.0.1/1",
    }


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("TC_TREEHERDER_CONFIG", raising=False)
    kinds = ("database", "token", "access", "certificate", "hawk", "pulse", "sentry")
    return {kind: planted(kind) for kind in kinds} | {"webhook": webhook_secret()}


def test_settings_show_no_secret(names: dict[str, str]) -> None:
    service = Settings(**everything(names))
    listeners = ListenerSettings(
        webhook_secrets=[names["webhook"]],
        pulse_url=f"amqps://u:{names['pulse']}@127.0.0.1/%2F",
        environments=everything(names)["environments"],
        sentry_dsn=everything(names)["sentry_dsn"],
    )
    for settings in (service, listeners):
        outputs = [
            repr(settings),
            str(settings),
            f"{settings!r:>5}",
            settings.model_dump_json(),
            str(settings.model_dump()),
        ]
        for text in outputs:
            assert not [name for name, secret in names.items() if secret in text]


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": "x"},
        {"database_url": "mysql://u:{database}@127.0.0.1/x"},
        {"database_url": ["{database}"]},
        {"tokens": [{"name": "me", "value": ["{token}"]}]},
        {"tokens": [{"name": "me", "value": "{token}", "scops": []}]},
        {"tokens": {"me": "{token}"}},
        {"tokens": "{token}"},
        {"webhook_secrets": ["{token}"]},
        {"webhook_secrets": "{webhook}"},
        {"taskcluster": {"acess_token": "{access}"}},
        {"taskcluster": "{access}"},
        {"taskcluster": {"access_token": {"x": "{access}"}}},
        {"environments": {"t": {"url": "https://u:{hawk}@t.example.com", "secrt": "{hawk}"}}},
        {"environments": {"t": {"url": "{hawk}", "client_id": "c", "secret": "{hawk}"}}},
        {"environments": ["{hawk}"]},
        {"pulse": {"url": ["{pulse}"]}},
        {"pulse": "{pulse}"},
        {"sentry_dsn": ["{sentry}"]},
    ],
    ids=str,
)
def test_what_is_said_of_wrong_settings_names_no_secret(names: dict[str, str], wrong: dict[str, Any]) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for name, secret in names.items():
                value = value.replace(f"{{{name}}}", secret)
            return value
        if isinstance(value, list):
            return [filled(each) for each in value]
        return {key: filled(each) for key, each in value.items()}

    with pytest.raises(SettingsError) as refused:
        load(**{**everything(names), **filled(wrong)})
    assert next(iter(wrong)) in str(refused.value)
    assert not [name for name, secret in names.items() if secret in str(refused.value)]
    assert not [name for name, secret in names.items() if secret in repr(refused.value.__cause__)]

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
from sandbox.stack import Process, free_port
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


@dataclass
class PlantedSystem:
    """A running system in which every secret is planted, and everything that it says is searched."""

    names: dict[str, str]  # the secrets by what they are
    system: System
    role: Role
    searched: Searched
    environments: str  # a setting of every process
    api: httpx.Client

    @property
    def environment(self) -> dict[str, str]:
        return {**self.system.stack.environment, "TC_TREEHERDER_ENVIRONMENTS": self.environments}

    def push(self, text: str) -> None:
        changeset = {"message": "a change", "files": {".taskcluster.yml": text}}
        push = {"repository": PATH, "user": "dev", "changesets": [changeset]}
        self.system.hg.post("/push", json=push).raise_for_status()

    def wait_for_graphs(self, pushes: int, seconds: float = 60) -> None:
        def settled() -> bool:
            stored = self.api.get("/pushes").json()["items"]
            return len(stored) == pushes and all(push["graph"]["state"] != "pending" for push in stored)

        self.system.wait(settled, seconds)

    def lose_the_database(self) -> None:
        with connections_lost(self.role):
            for _ in range(5):
                self.api.get("/repositories")


@pytest.fixture
def planted_system(systems: Systems, role: Role, amqp: Amqp, searched: Searched, sentry: str) -> PlantedSystem:
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
        "a bewit": planted("bewit"),
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
    }
    system = systems(role.url, settings=settings, service_port=port)
    stack = system.stack
    hawk_client = {"client_id": credentials.TREEHERDER_ID, "secret": names["treeherder hawk key"]}
    environments = {
        "tc-treeherder": {"url": stack.sandbox["treeherder"], **hawk_client},
        "tc-treeherder-stage": {"url": stack.sandbox["treeherder"], "pushes": "pulse", "jobs": "off", **hawk_client},
    }
    both = json.dumps(environments)
    stack.service(TC_TREEHERDER_ENVIRONMENTS=both)
    for name, what in (("listener", "pushlog"), ("pulse", "pulse")):
        stack.listener(name, what, TC_TREEHERDER_ENVIRONMENTS=both, TC_TREEHERDER_PROBE_PORT=str(free_port()))
    api = searched.client(f"{stack.service_url}/api/v1", Authorization=f"Bearer {names['token']}")
    url = stack.sandbox["repositories"][REPOSITORY]
    repository = {"alias": REPOSITORY, "url": url, "level": "3", "last_push_id": 0}
    assert api.post("/repositories", json=repository).status_code == 201
    return PlantedSystem(names, system, role, searched, both, api)


def test_no_secret_is_told_whatever_goes_wrong(planted_system: PlantedSystem) -> None:
    it = planted_system
    service = break_everything(it)
    send_bad_events(it)
    ask_for_actions(it)
    call_as_everybody(it)
    read_every_page(it)
    run_commands(it)
    key = secret_of_task_ids(it.role)
    it.names |= {"key of task ids, hex": key.hex(), "the same, base64": base64.b64encode(key).decode()}
    for child in psutil.Process(service.pid).children(recursive=True):
        it.searched.add("a child's environment", json.dumps(child.environ()))
    service.stop()
    logs = read_logs(it)
    for name, debug in (("service", "[debug"), ("again", '"Severity": 7')):
        log = logs[f"the log of {name}"]
        assert "Traceback" in log, "without failures this shows nothing"
        assert debug in log
    assert it.searched.said["Sentry"], "it was told of failures"
    it.searched.expect_none_of(it.names)
    for log in logs.values():
        for word in ("Bearer ", 'mac="', "webhook-signature"):
            assert word not in log, log[max(log.find(word) - 300, 0) : log.find(word) + 100]


def break_everything(it: PlantedSystem) -> Process:
    """Let it work, then break each upstream and the database in turn; return the service that runs in the end."""
    system = it.system
    it.push(graph_of(2))
    it.wait_for_graphs(1)
    system.treeherder.patch("/behaviour", json={"error": 1.0})
    system.taskcluster.post("/faults", json={"kind": "before", "method": "createTask", "status": 403, "times": 1})
    system.taskcluster.post("/faults", json={"kind": "drop", "method": "status", "times": 1})
    it.push(graph_of(2))
    it.push("version: 1\ntasks: {$eval: 'no_such_thing'}")
    system.hg.post("/faults", json={"repository": PATH, "kind": "status", "status": 500, "times": 2})
    it.wait_for_graphs(3, 40)
    it.lose_the_database()
    system.treeherder.delete("/behaviour")
    system.stack.processes["service"].stop()
    service = system.stack.service("again", TC_TREEHERDER_ENVIRONMENTS=it.environments, TC_TREEHERDER_LOG_JSON="true")
    it.lose_the_database()
    return service


def send_bad_events(it: PlantedSystem) -> None:
    """Send an event that is not understood, signed with each secret, with a wrong one, and cut off."""
    raw = json.dumps({"events": [{**push_event(9), "push": "nonsense"}]}).encode()
    for body, secret in (
        (raw, it.names["webhook secret"]),
        (raw, it.names["older webhook secret"]),
        (raw, webhook_secret()),
        (raw[:-1], it.names["webhook secret"]),
    ):
        it.api.post("/events/pushes", content=body, headers=signature(raw, secret))


def ask_for_actions(it: PlantedSystem) -> None:
    """Plan a retrigger, ask for it, and ask for one in a project that there is not."""
    task_id = it.api.get("/pushes").json()["items"][-1]["graph"]["tasks"][0]["task_id"]
    action = {"action": "retrigger", "project": REPOSITORY, "task_id": task_id}
    it.api.post("/actions/plan", json=action)
    it.api.post("/actions", json=action)
    it.api.post("/actions", json={**action, "project": "other"})


def call_as_everybody(it: PlantedSystem) -> None:
    """Call with good and wrong credentials of every kind."""
    api_url, names = f"{it.system.stack.service_url}/api/v1", it.names
    url = f"{api_url}/repositories"
    headers = [
        "Bearer " + names["a caller's wrong token"],
        hawk(url, credentials.PERSON.client_id, names["a caller's access token"]),
        hawk(url, credentials.PERSON.client_id, names["a caller's wrong key"]),
        hawk(f"{url}/elsewhere", credentials.PERSON.client_id, names["a caller's access token"]),
        "Hawk " + names["a caller's wrong key"],
    ]
    answers = [it.searched.client(api_url, Authorization=header).get("/repositories") for header in headers]
    assert [answer.status_code for answer in answers] == [401, 200, 401, 401, 401]
    it.searched.client(api_url).get("/repositories", params={"bewit": names["a bewit"]})


def read_every_page(it: PlantedSystem) -> None:
    """Read what is open to all, and each list of the API."""
    for path in ("__heartbeat__", "__lbheartbeat__", "__version__", "metrics", "openapi.json", "docs", "nowhere"):
        it.searched.client(it.system.stack.service_url).get(f"/{path}")
    for path in ("/pushes", "/actions", "/dead-letters", "/repositories"):
        it.api.get(path)
    assert it.api.get("/dead-letters").json()["items"]


def run_commands(it: PlantedSystem) -> None:
    """Run commands that succeed, and some that cannot."""
    run, environment = it.searched.run, it.environment
    run(environment, "doctor", "--seconds", "3")
    run(environment, "repositories", "list")
    run(environment, "settings")
    password = it.names["database password"]
    away = with_user(it.role.url, "planted", password).set(port=9).render_as_string(hide_password=False)
    assert run({**environment, "TC_TREEHERDER_DATABASE_URL": away}, "db", "upgrade") == 2
    assert run({**environment, "TC_TREEHERDER_PORT": "nonsense"}, "serve") == 2


def read_logs(it: PlantedSystem) -> dict[str, str]:
    """Search the logs of all processes, and return them."""
    for name, process in it.system.stack.processes.items():
        if name != "sandbox":  # which holds what everybody knows
            it.searched.add(f"the log of {name}", process.log.read_text(errors="replace"))
    return {where: "".join(text) for where, text in it.searched.said.items() if where.startswith("the log")}


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

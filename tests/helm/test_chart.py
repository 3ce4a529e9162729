"""Check the chart, rendered by Helm's own engine: Kubernetes accepts each manifest, and each starts what exists."""

import copy
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

import listeners.settings
import service.settings
from listeners.probe import ProbeServer
from listeners.settings import ListenerSettings
from service.app import create_app
from service.cli import app as cli
from service.contract.configuration import proxy_for
from service.settings import Settings
from service.web.install import page_routes
from tests.helm import schema

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "tc-treeherder"

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one where it is there: thousands of manifests are read."""

Values = dict[str, Any]
Manifest = dict[str, Any]

WEBHOOK = "whsec_" + "c2VjcmV0" * 5
PLANTED = {
    "database": "postgresql+psycopg://tc:planted-database@db/tc",
    "webhook": WEBHOOK,
    "token": "planted-token-0123456789",
    "access_token": "planted-access-token",
    "certificate": '{"planted": "certificate"}',
    "pulse": "amqps://tc:planted-pulse@pulse.example.com:5671/%2F",
    "environment": "planted-treeherder-secret",
    "sentry": "https://planted-sentry@sentry.example.com/1",
}

MINIMAL: Values = {
    "image": {"repository": "registry.example.com/tc-treeherder"},
    "database": {"url": PLANTED["database"]},
    "secrets": {
        "webhook": [WEBHOOK],
        "tokens": [{"name": "ops", "value": PLANTED["token"], "scopes": ["*"]}],
        "pulse": {"url": PLANTED["pulse"]},
    },
}

EXISTING_SECRET: Values = {"image": MINIMAL["image"], "existingSecret": "mine"}

EVERYTHING: Values = {
    **MINIMAL,
    "fullnameOverride": "builds",
    "image": {"repository": "registry.example.com/tc-treeherder", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "secrets": {
        **MINIMAL["secrets"],
        "taskcluster": {"accessToken": PLANTED["access_token"], "certificate": PLANTED["certificate"]},
        "environments": {"tc-treeherder": PLANTED["environment"]},
        "sentryDsn": PLANTED["sentry"],
    },
    "settings": {
        "database_pool": 20,
        "allowed_hosts": ["hg.mozilla.org", "hg.example.com"],
        "public_reads": True,
        "public_url": "https://tc-treeherder.example.com",
        "taskcluster_logins": True,
        "taskcluster": {"root_url": "https://tc.example.com", "client_id": "project/tc-treeherder"},
        "environments": {
            "tc-treeherder": {
                "url": "https://treeherder.example.com",
                "client_id": "tc-treeherder",
                "timeout": "PT20S",
            },
            "tc-treeherder-stage": {"url": "https://stage.example.com", "pushes": "pulse", "jobs": "off"},
        },
        "work": {"drain": 30, "lease": 100.5},
        "max_push_age": 1_000_000,
        "log_level": "DEBUG",
        "listeners": {"poll_workers": 4, "max_listing": 100_000_000, "log_level": "WARNING"},
    },
    "listeners": {"mode": "deployment", "pushlog": {"replicas": 1}},
    "service": {"type": "NodePort", "port": 8000, "annotations": {"a": "b"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "32m"},
        "hosts": ["tc-treeherder.example.com", "builds.example.com"],
        "tls": [{"secretName": "tls", "hosts": ["tc-treeherder.example.com"]}],
    },
    "serviceAccount": {"name": "runner", "annotations": {"a": "b"}},
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"prometheus": "main"}},
        "prometheusRule": {"enabled": True, "labels": {"prometheus": "main"}},
    },
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "ci"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "ci", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "high",
    "terminationGracePeriodSeconds": 90,
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
}


def over(values: Values, changes: Values) -> Values:
    """Merge `changes` into `values`, mapping by mapping, as Helm does with one file of values over another."""
    merged = copy.deepcopy(values)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = over(merged[name], value) if both else copy.deepcopy(value)
    return merged


SQLITE = over(MINIMAL, {"database": {"url": ""}, "persistence": {"enabled": True}, "replicas": 1})
WITHOUT_PULSE = over(MINIMAL, {"listeners": {"pulse": {"enabled": False}}, "secrets": {"pulse": {"url": ""}}})

ALL = {
    "minimal": MINIMAL,
    "deployment": over(MINIMAL, {"listeners": {"mode": "deployment"}}),
    "existing secret": EXISTING_SECRET,
    "sqlite": SQLITE,
    "existing claim": over(SQLITE, {"persistence": {"existingClaim": "mine"}}),
    "without pulse": WITHOUT_PULSE,
    "everything": EVERYTHING,
    "everything beside": over(EVERYTHING, {"listeners": {"mode": "sidecar"}}),
}

every = pytest.mark.parametrize("values", ALL.values(), ids=ALL)


@cache
def chart() -> helm.Chart:
    return helm.Chart.load(CHART)


def files(values: Values) -> dict[str, str]:
    return chart().render(values, name="tc-treeherder", namespace="ci")


def render(values: Values) -> list[Manifest]:
    return [
        manifest
        for name, text in files(values).items()
        if name.endswith(".yaml")
        for manifest in yaml.load_all(text, LOADER)
        if manifest is not None
    ]


def of(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests of that kind, by name."""
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the specs of all pod templates, by the name of their owner."""
    return {name: deployment["spec"]["template"]["spec"] for name, deployment in of(manifests, "Deployment").items()}


def containers(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return all containers by name; no two pods have a container of the same name."""
    in_pods = [
        container for pod in pods(manifests).values() for container in pod["containers"] + pod.get("initContainers", [])
    ]
    assert len({container["name"] for container in in_pods}) == len(in_pods)
    return {container["name"]: container for container in in_pods}


def refused(values: Values) -> str:
    with pytest.raises(helm.HelmError) as error:
        files(values)
    return str(error.value)


# --- Helm and Kubernetes ---------------------------------------------------------------------------------------------


@every
def test_lint_finds_nothing(values: Values) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert not report["errors"]
    assert not [message for message in report["messages"] if message["severity"] > 1]


@every
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_takes_every_manifest(values: Values, version: str) -> None:
    manifests = render(values)
    assert {"Deployment", "Service", "ConfigMap", "ServiceAccount"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # of Prometheus' operator, which publishes no such schema
        kubernetes_validate.validate(manifest, version, strict=True)
    assert len({(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}) == len(manifests)


def test_the_validation_is_strict() -> None:
    service = of(render(MINIMAL), "Service")["tc-treeherder"]
    service["spec"]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, "1.29", strict=True)


@every
def test_selectors_find_their_pods_and_no_others(values: Values) -> None:
    manifests = render(values)
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"] for name, each in of(manifests, "Deployment").items()
    }

    def found(selector: Mapping[str, str]) -> set[str]:
        return {name for name, its in labels.items() if selector.items() <= its.items()}

    for name, deployment in of(manifests, "Deployment").items():
        assert found(deployment["spec"]["selector"]["matchLabels"]) == {name}
    (service,) = of(manifests, "Service").values()
    (main,) = found(service["spec"]["selector"])
    assert "service" in [each["name"] for each in pods(manifests)[main]["containers"]]
    budgets = [found(each["spec"]["selector"]["matchLabels"]) for each in of(manifests, "PodDisruptionBudget").values()]
    assert sorted(budgets, key=str) == sorted(({name} for name in labels), key=str)
    for policy in of(manifests, "NetworkPolicy").values():
        assert found(policy["spec"]["podSelector"]["matchLabels"]) == set(labels)
    for monitor in of(manifests, "ServiceMonitor").values():
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    for monitor in of(manifests, "PodMonitor").values():
        assert found(monitor["spec"]["selector"]["matchLabels"]) == set(labels)


@every
def test_notes_say_what_to_do_next(values: Values) -> None:
    (notes,) = [text for name, text in files(values).items() if name.endswith("NOTES.txt")]
    (service,) = of(render(values), "Service")
    assert f"deployment/{service}" in notes
    assert "/__heartbeat__" in notes
    assert "<no value>" not in notes
    assert not [secret for secret in PLANTED.values() if secret in notes]


NOTES = "tc-treeherder/templates/NOTES.txt"
ADDRESSES: dict[str, tuple[Values, str]] = {
    "in the cluster": ({}, "http://127.0.0.1:8080"),
    "without TLS": ({"ingress": {"enabled": True, "hosts": ["a.example.com"]}}, "http://a.example.com"),
    "with TLS": (
        {"ingress": {"enabled": True, "hosts": ["a.example.com"], "tls": [{"hosts": ["a.example.com"]}]}},
        "https://a.example.com",
    ),
    "with a certificate for all": (
        {"ingress": {"enabled": True, "hosts": ["a.example.com"], "tls": [{"hosts": ["*.example.com"]}]}},
        "https://a.example.com",
    ),
    "with a certificate for another": (
        {"ingress": {"enabled": True, "hosts": ["a.example.com"], "tls": [{"hosts": ["b.example.com"]}]}},
        "http://a.example.com",
    ),
    "behind something else": ({"settings": {"public_url": "https://ci.example.com/"}}, "https://ci.example.com"),
}


@pytest.mark.parametrize(("changes", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_notes_have_the_address_at_which_people_reach_it(changes: Values, address: str) -> None:
    notes = files(over(MINIMAL, changes))[NOTES]
    assert f"export TC_TREEHERDER_SERVICE_URL={address}\n" in notes
    if "ingress" in changes:
        assert f"reach it at: {address}/\n" in notes


def test_the_commands_of_the_notes_exist() -> None:
    notes = files(MINIMAL)[NOTES]
    commands = re.findall(r"tc-treeherder ((?:repositories|doctor)[^\n]*)", notes)
    assert len(commands) == 3
    for command in commands:
        words = command.split()
        answer = CliRunner().invoke(cli, [*(word for word in words[:2] if word.isalpha()), "--help"])
        assert answer.exit_code == 0, command
        assert all(word in answer.output for word in words if word.startswith("--")), command


def test_notes_warn_of_one_replica() -> None:
    assert "one replica" in files(over(MINIMAL, {"replicas": 1}))[NOTES]
    assert "one replica" not in files(MINIMAL)[NOTES]


# --- pods ------------------------------------------------------------------------------------------------------------


@every
def test_pods_satisfy_the_restricted_profile(values: Values) -> None:
    """See https://kubernetes.io/docs/concepts/security/pod-security-standards/ (restricted)."""
    manifests = render(values)
    for pod in pods(manifests).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == image_user()
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] in of(manifests, "ServiceAccount")
    for container in containers(manifests).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
        assert {"/tmp", "/etc/tc-treeherder"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    for account in of(manifests, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


def image_user() -> int:
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = re.findall(r"^USER (\w+)$", dockerfile, re.M)[-1]
    return int(re.findall(rf"useradd --uid (\d+) .* {user}\b", dockerfile)[-1])


@every
def test_kubernetes_sets_no_variables_that_the_settings_read(values: Values) -> None:
    """For a Service tc-treeherder it would set TC_TREEHERDER_PORT=tcp://…, which is no port."""
    assert all(pod["enableServiceLinks"] is False for pod in pods(render(values)).values())


@every
def test_each_container_runs_a_command_that_exists(values: Values) -> None:
    for name, container in containers(render(values)).items():
        assert "command" not in container, "the image's entry point is tc-treeherder"
        answer = CliRunner().invoke(cli, [*container["args"], "--help"])
        assert answer.exit_code == 0, f"{name}: {container['args']}: {answer.output}"


def test_sidecars_start_after_the_migration_and_stay() -> None:
    manifests = render(MINIMAL)
    (pod,) = pods(manifests).values()
    names = [container["name"] for container in pod["initContainers"]]
    assert names == ["db-upgrade", "pushlog-listener", "pulse-listener"]
    assert [container.get("restartPolicy") for container in pod["initContainers"]] == [None, "Always", "Always"]
    assert [container["name"] for container in pod["containers"]] == ["service"]


def test_listeners_of_their_own() -> None:
    manifests = render(ALL["deployment"])
    specs = pods(manifests)
    assert set(specs) == {"tc-treeherder", "tc-treeherder-pushlog-listener", "tc-treeherder-pulse-listener"}
    assert [container["name"] for container in specs["tc-treeherder"]["initContainers"]] == ["db-upgrade"]
    for name in ("pushlog-listener", "pulse-listener"):
        (container,) = specs[f"tc-treeherder-{name}"]["containers"]
        assert container["name"] == name
        assert "restartPolicy" not in container
    beside = containers(render(MINIMAL))
    for name, container in containers(manifests).items():
        assert {**container, "restartPolicy": 0} == {**beside[name], "restartPolicy": 0}


@pytest.mark.parametrize("mode", ["sidecar", "deployment"])
def test_a_listener_can_be_left_out(mode: str) -> None:
    rendered = containers(render(over(WITHOUT_PULSE, {"listeners": {"mode": mode}})))
    assert set(rendered) == {"db-upgrade", "service", "pushlog-listener"}


@every
def test_listeners_send_to_the_service(values: Values) -> None:
    manifests = render(values)
    ((name, service),) = of(manifests, "Service").items()
    for container in containers(manifests).values():
        for variable in container["env"]:
            if variable["name"] == "TC_TREEHERDER_SERVICE_URL":
                assert variable["value"] == f"http://{name}:{service['spec']['ports'][0]['port']}"
                break
        else:
            assert container["name"] in {"service", "db-upgrade"}


@every
def test_an_update_ends_what_it_began(values: Values) -> None:
    manifests = render(values)
    for name, deployment in of(manifests, "Deployment").items():
        strategy = deployment["spec"]["strategy"]
        pod = deployment["spec"]["template"]["spec"]
        if pod["containers"][0]["name"] == "service":
            drain = values.get("settings", {}).get("work", {}).get("drain", 20)
            sleep = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
            # uvicorn waits for requests under way for 10 s: service/cli.py
            assert pod["terminationGracePeriodSeconds"] >= sleep + 10 + drain + 10
        if values.get("persistence", {}).get("enabled"):
            assert strategy == {"type": "Recreate"}, name
        else:
            assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}, name


def test_pods_roll_when_what_they_read_changes() -> None:
    def annotations(values: Values) -> dict[str, dict[str, str]]:
        deployments = of(render(values), "Deployment")
        return {
            name: deployment["spec"]["template"]["metadata"]["annotations"] for name, deployment in deployments.items()
        }

    base = ALL["deployment"]
    same, before = annotations(base), annotations(base)
    assert same == before
    for change in (
        {"settings": {"public_reads": True}},
        {"settings": {"listeners": {"poll_workers": 3}}},
        {"secrets": {"webhook": ["whsec_" + "bmV3" * 10]}},
        {"database": {"url": "postgresql+psycopg://tc:new@db/tc"}},
    ):
        after = annotations(over(base, change))
        assert all(after[name] != before[name] for name in before), change


# --- probes ----------------------------------------------------------------------------------------------------------


@cache
def app_paths() -> set[str]:
    return set(create_app(Settings()).openapi()["paths"])


@cache
def page_paths() -> set[str]:
    """Return the paths of the page, each up to its first parameter."""
    paths = {route.path.partition("{")[0].rstrip("/") or "/" for route in page_routes()}
    assert {"/", "/static"} <= paths
    return paths


@every
def test_probes_ask_what_answers(values: Values) -> None:
    manifests = render(values)
    rendered = containers(manifests)
    container = rendered["service"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Settings.model_fields["port"].default}
    for name, path in {
        "startupProbe": "/__lbheartbeat__",
        "livenessProbe": "/__lbheartbeat__",
        "readinessProbe": "/__readiness__",
    }.items():
        assert container[name]["httpGet"] == {"path": path, "port": "http"}
        assert path in app_paths()
    for monitor in of(manifests, "ServiceMonitor").values():
        assert monitor["spec"]["endpoints"][0]["path"] in app_paths()
    ports_of_listeners = {
        port["name"] for name, each in rendered.items() if name.endswith("-listener") for port in each["ports"]
    }
    for monitor in of(manifests, "PodMonitor").values():
        endpoints = monitor["spec"]["podMetricsEndpoints"]
        assert ports_of_listeners <= {endpoint["port"] for endpoint in endpoints}
        assert {endpoint["path"] for endpoint in endpoints} == {"/metrics"}
    (service,) = of(manifests, "Service").values()
    assert service["spec"]["ports"][0]["targetPort"] == "http"


@every
def test_listeners_that_share_a_pod_listen_on_ports_of_their_own(values: Values) -> None:
    manifests = render(values)
    secret = OF_THE_SECRET if "existingSecret" in values else None
    ports = []
    for name, container in containers(manifests).items():
        if name.endswith("-listener"):
            variables = environment(container, manifests, secret)
            (port,) = container["ports"]
            assert variables["TC_TREEHERDER_PROBE_HOST"] == "0.0.0.0"
            assert int(variables["TC_TREEHERDER_PROBE_PORT"]) == port["containerPort"]
            ports.append(port["containerPort"])
    assert len({8080, *ports}) == len(ports) + 1 > 1
    for policy in of(manifests, "NetworkPolicy").values():
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == {8080, *ports}


def test_the_pulse_listeners_probe_answers_where_it_is_asked() -> None:
    manifests = render(MINIMAL)
    container = containers(manifests)["pulse-listener"]
    request = container["livenessProbe"]["httpGet"]
    (port,) = container["ports"]
    assert request["port"] == port["name"]
    settings = load(container, manifests)
    assert isinstance(settings, ListenerSettings)
    assert (settings.probe_host, settings.probe_port) == ("0.0.0.0", port["containerPort"])
    with ProbeServer("127.0.0.1", 0, lambda: {"status": "ok"}) as probe:
        import httpx

        assert httpx.get(f"http://127.0.0.1:{probe.port}{request['path']}", trust_env=False).status_code == 200


def test_a_pulse_listener_without_a_broker_is_not_restarted_ever_more_slowly() -> None:
    """Kubernetes forgets earlier restarts only of a container that ran for ten minutes."""
    probe = containers(render(MINIMAL))["pulse-listener"]["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


# --- settings and secrets --------------------------------------------------------------------------------------------


def load(container: Manifest, manifests: list[Manifest], secret: dict[str, str] | None = None) -> BaseSettings:
    """Return the settings that this container's process reads from its real variables, Secret and file."""
    variables = environment(container, manifests, secret)
    (config,) = of(manifests, "ConfigMap").values()
    path = Path(variables["TC_TREEHERDER_CONFIG"])
    assert path.parent == Path("/etc/tc-treeherder")
    package = listeners.settings if container["args"][0] == "listen" else service.settings
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TC_TREEHERDER_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("TC_TREEHERDER_CONFIG", str(_file(config["data"][path.name])))
        return cast(BaseSettings, package.load())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    _FILES.append(tmp_path)
    yield
    _FILES.clear()


_FILES: list[Path] = []


def _file(text: str) -> Path:
    path = _FILES[0] / "settings.yaml"
    path.write_text(text)
    return path


def environment(container: Manifest, manifests: list[Manifest], secret: dict[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a container. `secret` replaces the chart's own."""
    variables = {}
    own = of(manifests, "Secret")
    for variable in container["env"]:
        assert variable["name"] not in variables
        if "value" in variable:
            variables[variable["name"]] = variable["value"]
            continue
        source = variable["valueFrom"]["secretKeyRef"]
        data = secret if secret is not None else own[source["name"]]["stringData"]
        if source["key"] in data or not source.get("optional"):
            variables[variable["name"]] = data[source["key"]]
    return variables


def known(model: type[BaseModel], names: list[str]) -> bool:
    """Return True if a variable of these parts reaches a setting."""
    field = model.model_fields.get(names[0])
    if field is None or len(names) == 1:
        return field is not None
    nested = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    return any(known(kind, names[1:]) for kind in nested if issubclass(kind, BaseModel))


@every
def test_variables_are_settings(values: Values) -> None:
    for container in containers(render(values)).values():
        model: type[BaseModel] = ListenerSettings if container["args"][0] == "listen" else Settings
        for name in (variable["name"] for variable in container["env"]):
            if name.startswith("TC_TREEHERDER_") and name != "TC_TREEHERDER_CONFIG":
                assert known(model, name.removeprefix("TC_TREEHERDER_").lower().split("__")), name


OF_THE_SECRET = {
    "TC_TREEHERDER_DATABASE_URL": PLANTED["database"],
    "TC_TREEHERDER_WEBHOOK_SECRETS": json.dumps([WEBHOOK]),
    "TC_TREEHERDER_TOKENS": json.dumps(MINIMAL["secrets"]["tokens"]),
    "TC_TREEHERDER_PULSE__URL": PLANTED["pulse"],
}
"""The keys that an existingSecret must have, by README.md."""


@every
def test_every_process_starts_with_its_settings(values: Values) -> None:
    manifests = render(values)
    secret = OF_THE_SECRET if "existingSecret" in values else None
    for container in containers(manifests).values():
        settings = load(container, manifests, secret)
        assert cast(Any, settings).webhook_secrets[0].get_secret_value() == WEBHOOK
        if isinstance(settings, Settings):
            assert settings.has_credentials
            assert settings.port == 8080


def test_everything_arrives() -> None:
    manifests = render(EVERYTHING)
    rendered = containers(manifests)
    of_service = load(rendered["service"], manifests)
    assert isinstance(of_service, Settings)
    assert of_service.database_url.get_secret_value() == PLANTED["database"]
    assert of_service.tokens[0].value.get_secret_value() == PLANTED["token"]
    assert of_service.taskcluster.client_id == "project/tc-treeherder"
    assert of_service.taskcluster.access_token is not None
    assert of_service.taskcluster.access_token.get_secret_value() == PLANTED["access_token"]
    assert of_service.taskcluster.certificate is not None
    assert of_service.taskcluster.certificate.get_secret_value() == PLANTED["certificate"]
    assert of_service.environments["tc-treeherder"].secret is not None
    assert of_service.environments["tc-treeherder"].secret.get_secret_value() == PLANTED["environment"]
    assert of_service.environments["tc-treeherder"].timeout.total_seconds() == 20
    assert of_service.environments["tc-treeherder-stage"].pushes == "pulse"
    assert of_service.pulse.url is not None
    assert of_service.pulse.url.get_secret_value() == PLANTED["pulse"]
    assert of_service.max_push_age.total_seconds() == 1_000_000
    assert (of_service.log_level, of_service.database_pool) == ("DEBUG", 20)
    assert load(rendered["db-upgrade"], manifests) == of_service

    of_pushlog = load(rendered["pushlog-listener"], manifests)
    assert isinstance(of_pushlog, ListenerSettings)
    assert (of_pushlog.poll_workers, of_pushlog.max_listing, of_pushlog.log_level) == (4, 100_000_000, "WARNING")
    of_pulse = load(rendered["pulse-listener"], manifests)
    assert isinstance(of_pulse, ListenerSettings)
    assert of_pulse.environments == ["tc-treeherder"]
    assert of_pulse.pulse.url is not None
    assert of_pulse.pulse.url.get_secret_value() == PLANTED["pulse"]


def test_a_listener_gets_no_secret_that_it_has_no_use_for() -> None:
    manifests = render(EVERYTHING)
    rendered = containers(manifests)
    for name, its in {
        "pushlog-listener": {"webhook", "sentry"},
        "pulse-listener": {"webhook", "sentry", "pulse"},
        "service": set(PLANTED),
    }.items():
        values = "\n".join(environment(rendered[name], manifests).values()).replace('\\"', '"')
        assert {kind for kind, secret in PLANTED.items() if secret in values} == its, name


@every
def test_secrets_stand_in_the_secret_alone(values: Values) -> None:
    for manifest in render(values):
        text = json.dumps(manifest, ensure_ascii=False)
        if manifest["kind"] == "Secret":
            assert set(manifest) == {"apiVersion", "kind", "metadata", "type", "stringData"}
        else:
            assert not [secret for secret in PLANTED.values() if secret in text or json.dumps(secret)[1:-1] in text]


def test_an_existing_secret_is_used_and_none_made() -> None:
    manifests = render(EXISTING_SECRET)
    assert not of(manifests, "Secret")
    used = {
        variable["valueFrom"]["secretKeyRef"]["name"]: variable["valueFrom"]["secretKeyRef"]["key"]
        for container in containers(manifests).values()
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert set(used) == {"mine"}


def test_the_readme_lists_the_keys_of_an_existing_secret() -> None:
    rows = re.findall(r"^\| `(TC_TREEHERDER_\w+)` \| (.*?) \|", (CHART / "README.md").read_text(), re.M)
    references: dict[str, bool] = {}
    for container in containers(render(EXISTING_SECRET)).values():
        for variable in container["env"]:
            if "valueFrom" in variable:
                source = variable["valueFrom"]["secretKeyRef"]
                references[source["key"]] = references.get(source["key"], False) or not source.get("optional")
    assert set(dict(rows)) == set(references)
    needed = {key for key, description in rows if description.startswith(("yes", "unless"))}
    assert needed == {key for key, must in references.items() if must} == set(OF_THE_SECRET)


def secret_fields(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the paths of all settings that hold secrets; `*` stands for the keys of a mapping."""
    for name, field in model.model_fields.items():
        pending, kinds = [field.annotation], []
        while pending:
            kind = pending.pop()
            pending += get_args(kind)
            kinds.append(kind)
        path = (*prefix, name)
        if SecretStr in kinds:
            yield path
        mapping = any(getattr(kind, "__origin__", None) is dict for kind in kinds)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from secret_fields(kind, (*path, "*") if mapping else path)


SECRETS_OF_SETTINGS = sorted(set(secret_fields(Settings)))
SECRETS_OF_LISTENERS = sorted(set(secret_fields(ListenerSettings)))


def test_the_fields_that_hold_secrets_are_found() -> None:
    assert {("database_url",), ("webhook_secrets",), ("pulse", "url"), ("environments", "*", "secret")} <= set(
        SECRETS_OF_SETTINGS
    )
    assert {("tokens", "value"), ("taskcluster", "access_token"), ("taskcluster", "certificate")} <= set(
        SECRETS_OF_SETTINGS
    )


@pytest.mark.parametrize(
    ("place", "path"),
    [("settings", path) for path in SECRETS_OF_SETTINGS]
    + [("settings.listeners", path) for path in SECRETS_OF_LISTENERS if len(path) == 1],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_a_secret_among_the_settings_is_refused_without_showing_it(place: str, path: tuple[str, ...]) -> None:
    value: Any = "planted"
    for name in reversed(path):
        value = {"x" if name == "*" else name: value}
    if path[0] == "tokens":
        value = {"tokens": [{"name": "x", "value": "planted"}]}
    if path[0] == "webhook_secrets":
        value = {"webhook_secrets": ["planted"]}
    if path[0] == "environments":
        value["environments"]["x"]["url"] = "https://treeherder.example.com"
    message = refused(over(MINIMAL, {"settings": value if place == "settings" else {"listeners": value}}))
    displayed = ".".join("x" if name == "*" else name for name in path if path[0] != "tokens" or name == "tokens")
    assert f"{place}.{displayed} does not belong there: put" in message
    assert "planted" not in message


# --- values ----------------------------------------------------------------------------------------------------------


NONSENSE: dict[str, tuple[Values, list[str]]] = {
    "replicas on SQLite": ({**SQLITE, "replicas": 2}, ["/replicas", "maximum: got 2, want 1"]),
    "scaling SQLite": ({**SQLITE, "autoscaling": {"enabled": True}}, ["/autoscaling/enabled", "must be false"]),
    "both databases": ({"persistence": {"enabled": True}, "replicas": 1}, ["database.url", "persistence.enabled"]),
    "no database": ({"database": {"url": ""}}, ["database.url is empty", "persistence.enabled"]),
    "no image": ({"image": {"repository": ""}}, ["image.repository", "bin/build-image"]),
    "no webhook secret": ({"secrets": {"webhook": []}}, ["secrets.webhook", "openssl rand"]),
    "no token": ({"secrets": {"tokens": []}}, ["secrets.tokens", "scopes"]),
    "no pulse": ({"secrets": {"pulse": {"url": ""}}}, ["secrets.pulse.url", "listeners.pulse.enabled"]),
    "a secret of nothing": (
        {"secrets": {"environments": {"stage": "s"}}},
        ["secrets.environments.stage", "settings.environments.stage"],
    ),
    "two tokens of one name": (
        {"secrets": {"tokens": [MINIMAL["secrets"]["tokens"][0], {"name": "ops", "value": "planted-0123456789"}]}},
        ["secrets.tokens[1] and secrets.tokens[0]", '"ops"', "rename one"],
    ),
    "an environment without credentials": (
        {"settings": {"environments": {"stage": {"url": "https://stage.example.com"}}}},
        ["settings.environments.stage.client_id is missing", "secrets.environments.stage", "pulse or off"],
    ),
    "an environment without a client": (
        {
            "settings": {"environments": {"stage": {"url": "https://stage.example.com"}}},
            "secrets": {"environments": {"stage": "planted"}},
        },
        ["settings.environments.stage.client_id is missing: pushes is rest"],
    ),
    "an environment without a secret": (
        {"settings": {"environments": {"stage": {"url": "https://stage.example.com", "client_id": "c"}}}},
        ["settings.environments.stage.pushes is rest", "put it into secrets.environments.stage"],
    ),
    "an environment without a URL": (
        {"settings": {"environments": {"stage": {"pushes": "off"}}}},
        ["settings.environments.stage.url is missing"],
    ),
    "logins without an address": (
        {"settings": {"taskcluster_logins": True}},
        ["settings.taskcluster_logins needs settings.public_url"],
    ),
    "a sign-in without an address": (
        {"settings": {"web_sign_in": {"client_id": "tc-treeherder"}}},
        ["settings.web_sign_in.client_id needs settings.public_url"],
    ),
    "a client of Taskcluster without its token": (
        {"settings": {"taskcluster": {"client_id": "project/x"}}},
        ["settings.taskcluster.client_id", "secrets.taskcluster.accessToken"],
    ),
    "a token of Taskcluster of nobody": (
        {"secrets": {"taskcluster": {"accessToken": "planted"}}},
        ["secrets.taskcluster.accessToken", "settings.taskcluster.client_id"],
    ),
    "two Secrets": ({"existingSecret": "mine"}, ["existingSecret", "database.url", "secrets"]),
    "another database": ({"database": {"url": "mysql://u:planted@h"}}, ["postgresql+psycopg://"]),
    "another broker": ({"secrets": {"pulse": {"url": "http://u:planted@h"}}}, ["secrets.pulse.url", "amqps://"]),
    "a weak webhook secret": ({"secrets": {"webhook": ["whsec_planted"]}}, ["secrets.webhook[0]", "24"]),
    "a short token": ({"secrets": {"tokens": [{"name": "n", "value": "planted"}]}}, ["/secrets/tokens/0/value"]),
    "a slow drain": ({"settings": {"work": {"drain": 50}}}, ["terminationGracePeriodSeconds", "75"]),
    "a wrong mode": ({"listeners": {"mode": "both"}}, ["/listeners/mode", "sidecar", "deployment"]),
    "a misspelt value": ({"replica": 3}, ["replica"]),
    "a misspelt setting": ({"settings": {"poll": {"intervall": 5}}}, ["/settings/poll", "intervall"]),
    "a wrong setting": ({"settings": {"environments": {"a": {"jobs": True}}}}, ["/settings/environments/a/jobs"]),
    "a misspelt word": ({"settings": {"environments": {"a": {"jobs": "of"}}}}, ["/settings/environments/a/jobs"]),
    "a listener's misspelt setting": ({"settings": {"listeners": {"poll_worker": 3}}}, ["/settings/listeners"]),
    "a listener's setting for all": ({"settings": {"poll_workers": 3}}, ["/settings", "poll_workers"]),
    "a wrong duration": ({"settings": {"work": {"lease": "soon"}}}, ["/settings/work/lease"]),
    "the port": ({"settings": {"port": 80}}, ["settings.port", "service.port"]),
    "a shrinking scale": ({"autoscaling": {"enabled": True, "minReplicas": 9}}, ["minReplicas is 9", "6"]),
    "no host": ({"ingress": {"enabled": True}}, ["ingress.hosts"]),
    "a URL for a host": ({"ingress": {"hosts": ["https://x"]}}, ["/ingress/hosts/0"]),
}


@pytest.mark.parametrize(("changes", "expected"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_with_words_that_help(changes: Values, expected: list[str]) -> None:
    message = refused(over(MINIMAL, changes))
    for words in expected:
        assert words in message
    assert "planted" not in message


@pytest.mark.parametrize(
    "environment",
    [
        {"url": "https://stage.example.com", "pushes": "off"},
        {"url": "https://stage.example.com", "pushes": False},  # what YAML makes of off
        {"url": "https://stage.example.com", "pushes": "pulse", "jobs": "pulse"},
    ],
)
def test_an_environment_without_credentials_is_taken_where_it_needs_none(environment: Values) -> None:
    manifests = render(over(MINIMAL, {"settings": {"environments": {"stage": environment}}}))
    assert isinstance(load(containers(manifests)["service"], manifests), Settings)


def test_publishing_to_pulse_needs_a_broker() -> None:
    environment = {"url": "https://stage.example.com", "pushes": "pulse"}
    message = refused(over(WITHOUT_PULSE, {"settings": {"environments": {"stage": environment}}}))
    assert "settings.environments.stage.pushes is pulse, which needs secrets.pulse.url" in message


@pytest.mark.parametrize(
    ("extra", "excepted"),
    [
        ([], None),
        ([{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}], "tc-treeherder"),
        (
            [{"name": "http_proxy", "value": "http://proxy:3128"}, {"name": "no_proxy", "value": "db,.example.com"}],
            "db,.example.com,tc-treeherder",
        ),
        ([{"name": "ALL_PROXY", "value": "http://proxy:3128"}, {"name": "NO_PROXY", "value": "*"}], "*"),
    ],
)
def test_listeners_reach_the_service_past_a_proxy(
    extra: list[Values], excepted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render(over(MINIMAL, {"extraEnv": extra}))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for container in containers(manifests).values():
        variables = environment(container, manifests)
        for variable in extra:
            assert variable["name"] in variables
        assert variables.get("NO_PROXY", variables.get("no_proxy")) == excepted
        for name, value in variables.items():
            if name.lower().endswith("_proxy"):
                monkeypatch.setenv(name, value)
        assert proxy_for("http://tc-treeherder:80/api/v1/events/pushes") is None
        expected = None if not extra or excepted == "*" else "http://proxy:3128"
        url = "http://hg.mozilla.org/" if "http_proxy" in variables else "https://hg.mozilla.org/"
        assert proxy_for(url) == expected


def test_all_that_is_missing_is_said_at_once() -> None:
    message = refused({})
    for name in ("image.repository", "database.url", "secrets.webhook", "secrets.tokens", "secrets.pulse.url"):
        assert f"- {name} is empty" in message


@pytest.mark.parametrize("setting", [{"taskcluster_logins": True}, {"web_sign_in": {"client_id": "tc-treeherder"}}])
def test_callers_of_taskcluster_need_no_token(setting: dict[str, Any]) -> None:
    logins = {**setting, "public_url": "https://tc-treeherder.example.com"}
    manifests = render(over(MINIMAL, {"secrets": {"tokens": []}, "settings": logins}))
    settings = load(containers(manifests)["service"], manifests)
    assert isinstance(settings, Settings)
    assert settings.has_credentials


def test_sqlite_lies_on_the_volume() -> None:
    manifests = render(SQLITE)
    (claim,) = of(manifests, "PersistentVolumeClaim").values()
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (pod,) = pods(manifests).values()
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "data"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for name in ("service", "db-upgrade"):
        container = containers(manifests)[name]
        settings = load(container, manifests)
        assert isinstance(settings, Settings)
        assert settings.database_url.get_secret_value() == "sqlite+aiosqlite:////data/tc-treeherder.sqlite"
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    (pod,) = pods(render(ALL["existing claim"])).values()
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if volume["name"] == "data"] == [
        "mine"
    ]
    assert not of(render(ALL["existing claim"]), "PersistentVolumeClaim")


def test_the_ingress_leads_to_all_but_what_is_the_clusters() -> None:
    (ingress,) = of(render(EVERYTHING), "Ingress").values()
    hosts = [rule["host"] for rule in ingress["spec"]["rules"]]
    assert hosts == EVERYTHING["ingress"]["hosts"]
    for rule in ingress["spec"]["rules"]:
        paths = rule["http"]["paths"]
        assert [entry["path"] for entry in paths if entry["pathType"] == "Exact"] == ["/"]
        led = [entry["path"] for entry in paths if entry["pathType"] == "Prefix"]
        open_to_all = (app_paths() | page_paths() | {"/problems", "/alerts"}) - {"/", "/metrics", "/__readiness__"}
        assert not [path for path in open_to_all if not any(f"{path}/".startswith(f"{begin}/") for begin in led)]
        assert not [path for path in ("/metrics", "/__readiness__") if any(path.startswith(begin) for begin in led)]
        assert {"/docs", "/openapi.json"} <= set(led)


def test_nobody_sets_the_replicas_that_the_autoscaler_sets() -> None:
    manifests = render(EVERYTHING)
    (scaler,) = of(manifests, "HorizontalPodAutoscaler").values()
    target = of(manifests, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]
    (metric,) = scaler["spec"]["metrics"]
    containers_there = [container["name"] for container in target["spec"]["template"]["spec"]["containers"]]
    assert metric["containerResource"]["container"] in containers_there
    assert of(render(MINIMAL), "Deployment")["tc-treeherder"]["spec"]["replicas"] == 2


def test_what_is_optional_is_off() -> None:
    kinds = {manifest["kind"] for manifest in render(MINIMAL)}
    assert kinds == {"ConfigMap", "Secret", "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}


def test_the_network_policy_lets_in_who_is_named_and_the_listeners() -> None:
    (policy,) = of(render(EVERYTHING), "NetworkPolicy").values()
    (rule,) = policy["spec"]["ingress"]
    assert {"protocol": "TCP", "port": 8080} in rule["ports"]
    assert EVERYTHING["networkPolicy"]["from"][0] in rule["from"]
    assert {"podSelector": policy["spec"]["podSelector"]} in rule["from"]
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 5432, 5671, 8080}


def test_the_image_is_named_by_tag_or_digest() -> None:
    (image,) = {container["image"] for container in containers(render(MINIMAL)).values()}
    assert image == f"registry.example.com/tc-treeherder:{project_version()}"
    (image,) = {container["image"] for container in containers(render(EVERYTHING)).values()}
    assert image == f"registry.example.com/tc-treeherder@sha256:{'a' * 64}"


def project_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def test_names_stay_short_enough() -> None:
    long = "r" * 53  # the longest release name that Helm takes
    manifests = [
        manifest
        for name, text in chart().render(over(EVERYTHING, {"fullnameOverride": ""}), name=long).items()
        if name.endswith(".yaml")
        for manifest in yaml.load_all(text, LOADER)
        if manifest
    ]
    assert (
        max(len(manifest["metadata"]["name"]) for manifest in manifests) <= 63 + 4
    )  # Deployments may be longer than Services
    (service,) = of(manifests, "Service")
    assert len(service) <= 63


# --- what else the chart says ----------------------------------------------------------------------------------------


def test_the_chart_has_the_projects_version() -> None:
    assert chart().metadata["appVersion"] == project_version()


def test_the_schema_has_the_settings() -> None:
    text = schema.FILE.read_text()
    assert text == schema.written(text), "run bin/chart-schema"


def leaves(values: Values, prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = prefix + name
        whole = path.split(".")[-1] in {"resources", "podSecurityContext", "securityContext"}
        if isinstance(value, dict) and value and not whole:
            yield from leaves(value, f"{path}.")
        else:
            yield path


def test_the_readme_has_every_value_with_its_default() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    text = (CHART / "README.md").read_text().split("## Values")[1]
    rows = dict(re.findall(r"^\| `(\S+?)` \| (.*?) \|", text, re.M))
    assert list(rows) == list(leaves(defaults))
    for name, description in rows.items():
        value = defaults
        for part in name.split("."):
            value = value[part]
        if description.startswith("`"):
            default = json.dumps(value) if value == "" or not isinstance(value, str) else value
            assert description == f"`{default}`", name


def test_the_readmes_example_is_taken() -> None:
    example = re.search(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.S)
    assert example is not None
    values = yaml.safe_load(example[1].replace("whsec_…", WEBHOOK))
    render(values)

"""Check the alerts and the dashboard of the chart: what they ask for exists, and Prometheus itself takes it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from listeners import metrics as listener_metrics
from listeners.settings import ListenerSettings
from service import metrics
from service.api.health import FORGOTTEN, UNREAD
from tests.helm.test_chart import CHART, EVERYTHING, MINIMAL, ROOT, Manifest, Values, of, over, render

DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text())


def metric_names() -> set[str]:
    """Return the names of all samples that `/metrics` of the service or of a listener may have."""
    return {
        sample
        for registry in (metrics.REGISTRY, listener_metrics.REGISTRY)
        for family in registry.collect()
        for sample in (
            [f"{family.name}_{end}" for end in ("bucket", "sum", "count")]
            if family.type == "histogram"
            else [f"{family.name}_total" if family.type == "counter" else family.name]
        )
    } | {"tc_treeherder_build_info", "tc_treeherder_listener_build_info", "up"}


def asked_for(expression: str) -> list[str]:
    """Return the names of the metrics in an expression, as often as they are there."""
    return re.findall(r"\b((?:tc_treeherder|process)_\w+|up)\b", expression)


def rendered_alerts(values: Values) -> list[Manifest]:
    (rule,) = of(render(values), "PrometheusRule").values()
    (group,) = rule["spec"]["groups"]
    alerts: list[Manifest] = group["rules"]
    return alerts


ALERTS = {alert["alert"]: alert for alert in rendered_alerts(EVERYTHING)}
every_alert = pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
WITH_ALERTS = over(MINIMAL, {"monitoring": {"prometheusRule": {"enabled": True}}})


# --- alerts ----------------------------------------------------------------------------------------------------------


@every_alert
def test_an_alert_asks_for_metrics_that_there_are(alert: Manifest) -> None:
    assert set(asked_for(alert["expr"])) <= metric_names()
    (service,) = of(render(EVERYTHING), "Service")
    assert alert["expr"].count(f'job="{service}", namespace="ci"') == len(asked_for(alert["expr"]))
    assert "SELECTOR" not in alert["expr"]
    for other in re.findall(r"tc_treeherder_\w+", alert["annotations"]["description"]):
        assert other in metric_names() or f"{other}_count" in metric_names(), other


@every_alert
def test_an_alert_says_what_to_do(alert: Manifest) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url"} == set(alert["annotations"])


def test_each_alert_has_its_section_and_no_other_has() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs" / "alerts.md").read_text(), re.M)
    assert sorted(sections) == sorted(ALERTS)
    assert len(ALERTS) == len(rendered_alerts(EVERYTHING)) >= 5


@pytest.mark.parametrize(
    ("changes", "page"),
    [
        ({}, "http://tc-treeherder.ci:80/alerts"),
        ({"settings": {"public_url": "https://ci.example.com"}}, "https://ci.example.com/alerts"),
        ({"ingress": {"enabled": True, "hosts": ["a.example.com"]}}, "http://a.example.com/alerts"),
        (
            {"monitoring": {"prometheusRule": {"runbookUrl": "https://wiki.example.com/alerts.html"}}},
            "https://wiki.example.com/alerts.html",
        ),
    ],
)
def test_an_alert_leads_to_its_section(changes: Values, page: str) -> None:
    for alert in rendered_alerts(over(WITH_ALERTS, changes)):
        assert alert["annotations"]["runbook_url"] == f"{page}#{alert['alert'].lower()}"


def test_alert_heartbeat_and_docs_call_a_queue_unread_after_the_same_time() -> None:
    alert = ALERTS["TcTreeherderPulseQueueUnread"]
    bounds = re.fullmatch(r"time\(\) - max .* > (\d+) < (\d+)", alert["expr"])
    assert bounds is not None
    assert [int(bound) for bound in bounds.groups()] == [UNREAD.total_seconds(), FORGOTTEN.total_seconds()]
    minutes = UNREAD.total_seconds() / 60
    assert minutes == 5
    assert "five minutes" in alert["annotations"]["summary"]
    section = (ROOT / "docs" / "alerts.md").read_text().split("## TcTreeherderPulseQueueUnread")[1].split("##")[0]
    (row,) = re.findall(r"^\| Pulse \| `time.*$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    assert f"{minutes:g} minutes" in section
    assert f"{minutes:g} minutes" in row
    assert ListenerSettings.model_fields["pulse_report_every"].default < UNREAD / 2, "a report may be lost"


# --- dashboard -------------------------------------------------------------------------------------------------------

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    f"{panel['title']}, {target['legendFormat']}": target["expr"] for panel in PANELS for target in panel["targets"]
} | {annotation["name"]: annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]}
every_expression = pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)


@every_expression
def test_the_dashboard_asks_for_metrics_that_there_are(expression: str) -> None:
    names = asked_for(expression)
    assert names
    assert set(names) <= metric_names()
    of_listeners = 'job=~"${job}-listeners", namespace=~"$namespace"'
    expected = [of_listeners in expression or not name.startswith("tc_treeherder_listener_") for name in names]
    assert all(expected), "the chart's PodMonitor names them so"
    assert expression.count('job=~"$job", namespace=~"$namespace"') + expression.count(of_listeners) == len(names)


def test_the_dashboard_knows_listeners_by_the_name_that_the_chart_gives_them() -> None:
    manifests = render(EVERYTHING)
    (service,) = of(manifests, "Service")
    (monitor,) = of(manifests, "PodMonitor").values()
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert {"targetLabel": "job", "replacement": f"{service}-listeners"} in endpoint["relabelings"]


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_the_dashboard_shows_what_operators_are_told_to_watch() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().split("## What to watch")[1].split("\n## ")[0]
    shown = {name for expression in EXPRESSIONS.values() for name in asked_for(expression)}
    told = set(re.findall(r"`[^`]*?(tc_treeherder_\w+)[^`]*`", text))
    assert len(told) > 10
    for name in told:
        assert {name, f"{name}_bucket"} & shown, name


def test_the_chart_has_the_dashboard_for_grafanas_sidecar() -> None:
    values = over(MINIMAL, {"monitoring": {"dashboard": {"enabled": True, "labels": {"team": "ci"}}}})
    found = of(render(values), "ConfigMap")["tc-treeherder-dashboard"]
    assert json.loads(found["data"]["tc-treeherder.json"]) == DASHBOARD
    assert found["metadata"]["labels"].items() >= {"grafana_dashboard": "1", "team": "ci"}.items()
    assert "tc-treeherder-dashboard" not in of(render(MINIMAL), "ConfigMap")


# --- Prometheus' own opinion -----------------------------------------------------------------------------------------


def checked(promtool: Path, *arguments: str, given: str = "") -> str:
    """Run promtool. Raises AssertionError with its words unless it finds nothing wrong."""
    done = subprocess.run([promtool, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written_rules(folder: Path, rules: list[Any]) -> str:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    return str(path)


def test_prometheus_takes_the_alerts(promtool: Path, tmp_path: Path) -> None:
    rules = rendered_alerts(EVERYTHING)
    assert f"{len(rules)} rules found" in checked(promtool, "check", "rules", written_rules(tmp_path, rules))
    rules[0]["expr"] = "max by (nothing"
    with pytest.raises(AssertionError, match="unclosed left parenthesis"):
        checked(promtool, "check", "rules", written_rules(tmp_path, rules))


def test_prometheus_takes_what_the_dashboard_asks(promtool: Path, tmp_path: Path) -> None:
    rules = [
        {
            "record": f"panel:{number}",
            "expr": expression.replace("$__rate_interval", "5m").replace("${job}", "job").replace("$", ""),
        }
        for number, expression in enumerate(EXPRESSIONS.values())
    ]
    assert f"{len(rules)} rules found" in checked(promtool, "check", "rules", written_rules(tmp_path, rules))


@pytest.mark.parametrize("registry", [metrics.REGISTRY, listener_metrics.REGISTRY], ids=["service", "listener"])
def test_prometheus_takes_the_metrics(promtool: Path, registry: CollectorRegistry) -> None:
    text = generate_latest(registry).decode()
    assert "tc_treeherder_" in text
    checked(promtool, "check", "metrics", given=text)


ON = '{job="tc-treeherder", namespace="ci", instance="a"%s}'
FIRING: dict[str, tuple[dict[str, str], str]] = {
    "TcTreeherderDown": ({"up" + ON % "": "1x5 0x30"}, "8m"),
    "TcTreeherderReplicaDown": ({"up" + ON % "": "1x5 0x30"}, "16m"),
    "TcTreeherderWorkOld": (
        {"tc_treeherder_work_oldest_timestamp_seconds" + ON % ', work="step", lane="taskcluster"': "0x30"},
        "16m",
    ),
    "TcTreeherderDeadLetters": ({"tc_treeherder_dead_letters" + ON % ', kind="task"': "1x30"}, "6m"),
    "TcTreeherderPollsOld": ({"tc_treeherder_last_good_poll_timestamp_seconds" + ON % "": "0x30"}, "11m"),
    "TcTreeherderPulseQueueUnread": (
        {"tc_treeherder_pulse_queue_read_timestamp_seconds" + ON % ', queue="q"': "0x30"},
        "7m",
    ),
    "TcTreeherderPulseQueueDeleted": (
        {"tc_treeherder_pulse_queue_deletions" + ON % ', queue="q"': "0x5 1x30"},
        "10m",
    ),
    "TcTreeherderUpstreamFails": (
        {
            "tc_treeherder_upstream_seconds_count" + ON % ', system="treeherder", status="502"': "0+9x60",
            "tc_treeherder_upstream_seconds_count" + ON % ', system="treeherder", status="200"': "0+1x60",
        },
        "25m",
    ),
    "TcTreeherderGraphsSlow": (
        {
            "tc_treeherder_notice_to_graph_seconds_bucket" + ON % ', le="60"': "0x90",
            "tc_treeherder_notice_to_graph_seconds_bucket" + ON % ', le="300"': "0+1x90",
            "tc_treeherder_notice_to_graph_seconds_bucket" + ON % ', le="+Inf"': "0+1x90",
        },
        "45m",
    ),
}
"""Series that make each alert fire, and when they do."""


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires(name: str, promtool: Path, tmp_path: Path) -> None:
    series, at = FIRING[name]
    rules = written_rules(tmp_path, [ALERTS[name] | {"expr": _of_this_release(ALERTS[name]["expr"])}])
    good = {each: "0+60x90" if "_timestamp_" in each else "0x90" for each in series}  # a time goes on with the clock
    for values, fires in ((series, True), (good, False)):
        if name in {"TcTreeherderDown", "TcTreeherderReplicaDown"} and not fires:
            values = dict.fromkeys(series, "1x90")  # noqa: PLW2901 - up is good when it is 1
        expected = [{"exp_labels": _labels(name, series), "exp_annotations": ALERTS[name]["annotations"]}]
        test = {
            "rule_files": [rules],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": each, "values": value} for each, value in values.items()],
                    "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected if fires else []}],
                }
            ],
        }
        path = tmp_path / "test.yaml"
        path.write_text(yaml.safe_dump(test))
        checked(promtool, "test", "rules", str(path))


def _of_this_release(expression: str) -> str:
    return expression.replace('job="builds"', 'job="tc-treeherder"')


def _labels(name: str, series: dict[str, str]) -> dict[str, str]:
    """Return the labels that the alert has: those by which it aggregates, or all of `up`."""
    has = dict(re.findall(r'(\w+)="([^"]*)"', next(iter(series))))
    grouped = re.search(r"by \(([\w, ]+)\)", ALERTS[name]["expr"])
    kept = set(grouped[1].split(", ")) - {"le"} if grouped else set()
    if name == "TcTreeherderReplicaDown":
        kept = {"job", "namespace", "instance"}
    labels: dict[str, str] = ALERTS[name]["labels"]
    return {label: has[label] for label in kept} | labels

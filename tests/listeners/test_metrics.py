"""Metrics of listeners, as Prometheus reads them from real processes."""

import json
import time
from importlib.metadata import version
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from listeners.pushlog import PushlogListener
from sandbox.stack import free_port
from tests.listeners.broker_harness import BrokerHarness, running_pulse_listener, wait_until
from tests.listeners.fakes import Answer, quick_settings
from tests.listeners.processes import running_listener
from tests.listeners.pushlog_harness import PushlogHarness

PREFIX = "tc_treeherder_listener_"


class Scraper:
    """A client of a listener's `/metrics`."""

    def __init__(self) -> None:
        self.port = free_port()

    @property
    def settings(self) -> dict[str, str]:
        return {"probe_port": str(self.port)}

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False)
        except httpx.TransportError:  # it is starting
            return None

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return all samples: by name without the prefix, and the values of the labels in the order of their names."""
        answer = self.get("/metrics")
        if answer is None:
            return {}
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return {
            (sample.name.removeprefix(PREFIX), *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def wait_for(self, expected: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
        """Wait until the samples have these values, and return all of them."""
        samples: dict[tuple[str, ...], float] = {}

        def are_there() -> bool:
            samples.clear()
            samples.update(self.samples())
            return expected.items() <= samples.items()

        try:
            wait_until(are_there, 40)
        except AssertionError:
            assert {name: samples.get(name) for name in expected} == expected
        return samples


def test_a_pulse_listener_tells_of_queues_messages_and_the_service(broker_harness: BrokerHarness) -> None:
    scraper, queue = Scraper(), broker_harness.queue
    before = time.time()
    with running_pulse_listener(broker_harness, **scraper.settings):
        wait_until(lambda: broker_harness.service.reports, 60)
        broker_harness.press(*(json.dumps({"n": number}) for number in range(3)), "no JSON")
        samples = scraper.wait_for(
            {
                ("messages_received_total", queue, "false"): 4,
                ("messages_forwarded_total", queue): 4,
                ("messages_acknowledged_total", queue): 4,
                ("messages_waiting", queue): 0,
                ("queue_connected", queue): 1,
                ("missing_exchanges", queue): 0,
                ("events_total", "job-actions", "accepted"): 3,
                ("events_total", "job-actions", "rejected"): 1,
                ("requests_total", "accepted", "report"): 1,
                ("build_info", "", version("tc-treeherder")): 1,
            }
        )
        accepted_at = samples["last_accepted_timestamp_seconds", "job-actions"]
        assert before < accepted_at < time.time()
        assert samples["process_resident_memory_bytes",] > 1e6
        assert samples["process_cpu_seconds_total",] > 0

        broker_harness.service.override = lambda request: Answer(503)
        broker_harness.press("{}")
        broker_harness.channel.queue_delete(queue)
        samples = scraper.wait_for(
            {("queue_deletions_total", queue): 1, ("messages_received_total", queue, "false"): 5}
        )
        assert samples["requests_total", "service-away", "job-actions"] >= 1
        assert samples["last_accepted_timestamp_seconds", "job-actions"] == accepted_at, "nothing was accepted since"
        assert samples["messages_acknowledged_total", queue] == 4
        assert samples["connections_lost_total", queue] == 1


def test_a_pushlog_listener_tells_of_polls_pushes_and_the_service(pushlog_harness: PushlogHarness) -> None:
    scraper = Scraper()
    pushlog_harness.pushlog.create("secret-alias")
    for _ in range(3):
        pushlog_harness.pushlog.push("secret-alias")
    pushlog_harness.pushlog.create("broken")
    pushlog_harness.fault("broken", "status", status=500, times=None)
    pushlog_harness.monitor("secret-alias")
    pushlog_harness.monitor("broken")
    before = time.time()
    with running_listener("pushlog", pushlog_harness.url, **scraper.settings):
        samples = scraper.wait_for(
            {
                ("events_total", "pushes", "accepted"): 3,
                ("requests_total", "accepted", "pushes"): 1,
                ("build_info", "", version("tc-treeherder")): 1,
            }
        )
        wait_until(lambda: (scraper.samples().get(("polls_total", "unchanged"), 0)) > 2)
        samples = scraper.samples()
        assert samples["polls_total", "failed"] >= 1
        assert samples["repositories",] in {1, 2}, "a repository whose poll failed is given back"
        assert before < samples["last_accepted_timestamp_seconds", "pushes"] < time.time()
        assert samples["requests_total", "accepted", "lease"] > 1
        assert samples["process_resident_memory_bytes",] > 1e6
        text = scraper.get("/metrics")
        assert text is not None
        assert "secret-alias" not in text.text

        state = scraper.get("/__heartbeat__")
        assert state is not None
        assert (state.status_code, state.json()["status"]) == (200, "ok")

        pushlog_harness.service.override = lambda request: Answer(503)
        wait_until(lambda: scraper.samples().get(("requests_total", "service-away", "lease")))
        accepted = ("requests_total", "accepted", "lease"), ("last_accepted_timestamp_seconds", "lease")
        stopped = [scraper.samples()[name] for name in accepted]
        wait_until(lambda: scraper.samples()["requests_total", "service-away", "lease"] > 3)
        assert [scraper.samples()[name] for name in accepted] == stopped


def test_a_pushlog_listener_warns_while_it_does_not_reach_the_service() -> None:
    scraper = Scraper()
    with running_listener("pushlog", "http://127.0.0.1:1", unhealthy_after="0.2", **scraper.settings):

        def status() -> Any:
            answer = scraper.get("/__heartbeat__")
            return None if answer is None else (answer.status_code, answer.json()["status"])

        wait_until(lambda: status() == (200, "warning"))
        answer = scraper.get("/__lbheartbeat__")
        assert answer is not None
        assert answer.status_code == 200, "a restart would not help"


def test_without_a_port_nothing_listens(pushlog_harness: PushlogHarness) -> None:
    """Two listeners on a machine can share all settings."""

    def listening() -> int:
        return sum(each.status == psutil.CONN_LISTEN for each in psutil.Process().net_connections())

    before = listening()
    for port, sockets in ((None, before), (0, before + 1)):
        listener = PushlogListener(quick_settings(pushlog_harness.url, probe_port=port))
        assert listening() == sockets
        listener.stop()
        listener.run()
        assert listening() == before

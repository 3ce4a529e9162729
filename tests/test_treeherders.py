"""Each configuration of docs/treeherders.md, against a Treeherder of its time."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pika
import pytest
import yaml

from sandbox.treeherder.behaviour import SUBMISSION, Year
from service.clients.pulse import JOBS, exchange_name
from service.flow.pushes import resultset
from service.settings import Settings
from service.store.models import State, StepKind
from tests.service.clients.test_publisher import until_there
from tests.service.flow.jobs.report_factory import check_pulse
from tests.service.flow.report_harness import PREFIX, open_report_harness
from tests.service.flow.single_treeherder import create_resultset, own_push, upload
from tests.service.harness import node, open_harness, push_event
from tests.services import Amqp

PAGE = Path(__file__).resolve().parents[1] / "docs" / "treeherders.md"


def configuration(heading: str) -> dict[str, Any]:
    """Return what stands below a heading that begins so."""
    match = re.search(rf"^## {re.escape(heading)}.*?^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert match is not None, heading
    settings: dict[str, Any] = yaml.safe_load(match[1])
    assert Settings(**settings).environments.keys() == {PREFIX}
    return settings


def environment(heading: str) -> dict[str, Any]:
    """Return the environment below a heading, without what each test has of its own."""
    values = configuration(heading)["environments"][PREFIX]
    return {name: value for name, value in values.items() if name not in {"url", "client_id", "secret"}}


async def test_todays(sqlite_url: str, amqp: Amqp) -> None:
    user = f"{amqp.user}/{amqp.name}"
    amqp.exchanges |= {f"exchange/{user}/{name}" for name in ("v1/pushes", "v1/retrigger")}
    values = configuration("Today's")["environments"][PREFIX]
    exchange = amqp.exchange(values["pushes_exchange"].removeprefix("exchange/"))  # the broker is not this test's own
    environments = {PREFIX: {**values, "pushes_exchange": exchange}}
    async with open_harness(sqlite_url, environments=environments, pulse={"url": amqp.url, "user": user}) as harness:
        harness.th.behaviour.year = "today"
        await harness.add_repository()
        harness.hg.push("mc")
        await harness.store(push_event(1))
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            await until_there(amqp, exchange)
            channel.queue_declare(amqp.queue())
            channel.queue_bind(amqp.queue(), exchange, "#")
            await resultset.run(harness.services, await harness.lease(StepKind.RESULTSET))
            method, _, body = channel.basic_get(amqp.queue(), auto_ack=True)
        assert (await harness.step(StepKind.RESULTSET)).state == State.DONE
        assert "/hgpushes/" in method.exchange
        (push,) = json.loads(body)["payload"]["pushlog_pushes"]
        async with httpx.AsyncClient() as client:
            fetched = (await client.get(push["push_full_json_url"])).json()
        assert list(fetched["pushes"]) == ["1"]
        assert not harness.th.counters, "it reads all by itself"


@pytest.mark.parametrize("year", SUBMISSION)
async def test_rest(sqlite_url: str, year: Year) -> None:
    async with open_report_harness(sqlite_url, environment=environment("Of 2015 to 2017")) as harness:
        for state in harness.th.values():
            state.behaviour.year = year
            state.behaviour.throttle = True
        tip, _ = await own_push(harness)
        await create_resultset(harness)
        task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{tip}.1"])
        harness.claim(task_id)
        upload(harness, task_id, "public/a.txt")
        harness.tc.queue.report_failed(task_id, 0)
        await harness.deliver_all()
        (job,) = harness.th[PREFIX].store.jobs.values()
        assert job.push.revision == node("mc 1")
        assert (job.body["state"], job.body["result"]) == ("completed", "testfailed")
        assert [text for _, text in harness.links(task_id)] == [task_id, "a.txt"]


@pytest.mark.parametrize("schema", ["2015", "2026"])
async def test_jobs_by_pulse(sqlite_url: str, amqp: Amqp, schema: Any) -> None:
    user = f"{amqp.user}/{amqp.name}"
    exchange = exchange_name(user, JOBS)
    amqp.exchanges |= {exchange, *(f"exchange/{user}/{name}" for name in ("v1/pushes", "v1/retrigger"))}
    assert urlsplit(configuration("Jobs by Pulse")["pulse"]["url"]).scheme == "amqp"
    values = {**environment("Jobs by Pulse"), "jobs_schema": schema}
    async with open_report_harness(sqlite_url, environment=values, pulse={"url": amqp.url, "user": user}) as harness:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            await until_there(amqp, exchange)
            channel.queue_declare(amqp.queue())
            channel.queue_bind(amqp.queue(), exchange, f"{PREFIX}.*._")
            harness.end(harness.create(routes=[f"{PREFIX}.v2.mc.{node('mc 1')}.1"]), "completed")
            await harness.deliver_all()
            method, _, body = channel.basic_get(amqp.queue(), auto_ack=True)
        assert method.routing_key == f"{PREFIX}.mc._"
        check_pulse(json.loads(body), schema)

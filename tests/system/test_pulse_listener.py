"""Pulse, the listener and the service as real processes: buttons are heard whoever is killed, and pushes announced."""

import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pika

from tests.services import Amqp
from tests.system.conftest import REPOSITORY, System

Systems = Callable[..., System]

HOUR = {"TC_TREEHERDER_POLL__INTERVAL": "3600"}


def press(system: System, job: str) -> None:
    body = {"project": REPOSITORY, "job_guid": f"{job}/0", "action": "cancel", "requester": "dev@example.com"}
    answer = system.treeherder.post("/job-action", json=body)
    assert answer.status_code == 200, answer.text


def actions(system: System) -> list[dict[str, Any]]:
    try:
        answer = system.api.get("/actions", params={"limit": 500})
    except httpx.TransportError:  # killed just now
        return []
    return answer.json()["items"] if answer.is_success else []


def pulse_check(system: System) -> str:
    checks = httpx.get(f"{system.stack.service_url}/__heartbeat__").json()["checks"]
    return str(next(check["detail"] for check in checks if check["name"] == "pulse"))


def queue_of(system: System) -> str:
    return f"queue/{system.stack.pulse_user}/tc-treeherder/job-actions"


def test_each_press_is_one_action_whoever_is_killed_meanwhile(systems: Systems, amqp_url: str) -> None:
    system = systems(amqp_url=amqp_url)
    service, listener = system.stack.service(), system.stack.listener("pulse", "pulse")
    system.add_repository()
    channel = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
    system.wait(lambda: "connected" in listener.tail())
    chance = random.Random(7)
    jobs = [str(uuid.uuid4()) for _ in range(30)]
    for number, job in enumerate(jobs):
        press(system, job)
        if number % 6 == 5:
            time.sleep(chance.uniform(0, 0.2))
            killed = chance.choice([service, listener])
            killed.kill()
            killed.start()
    system.wait(lambda: len(actions(system)) >= len(jobs), 60)
    system.wait(lambda: channel.queue_declare(queue_of(system), passive=True).method.message_count == 0)
    time.sleep(0.5)  # what is done twice would be done now
    task_ids = Counter(action["task_id"] for action in actions(system))
    assert len(task_ids) == len(jobs)
    assert set(task_ids.values()) == {1}
    channel.connection.close()


def test_equal_presses_that_a_killed_listener_held_are_each_one_action(systems: Systems, amqp_url: str) -> None:
    """They arrive again at two others, in any order and beside new ones, and nothing in them distinguishes them."""
    system = systems(amqp_url=amqp_url)
    service = system.stack.service()
    system.add_repository()
    listeners = [system.stack.listener(f"pulse-{number}", "pulse") for number in range(3)]
    for listener in listeners:
        system.wait(lambda: "connected" in listener.tail())  # noqa: B023 - called at once
    job = str(uuid.uuid4())
    press(system, job)
    system.wait(lambda: len(actions(system)) == 1)
    # a listener that is killed takes a report with it that it has not made
    system.wait(lambda: system.api.get("/actions/1").json()["deliveries"][0]["acknowledged"])
    channel = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
    service.kill()
    for _ in range(9):
        press(system, job)
    system.wait(lambda: channel.queue_declare(queue_of(system), passive=True).method.message_count == 0)
    listeners[0].kill()
    listeners[1].kill()
    listeners[1].start()
    service.start()
    system.wait(lambda: len(actions(system)) >= 10, 60)
    press(system, job)
    system.wait(lambda: len(actions(system)) >= 11, 60)
    system.wait(lambda: channel.queue_declare(queue_of(system), passive=True).method.message_count == 0)
    listeners[1].stop()  # which finishes what it holds
    listeners[2].stop()
    assert len(actions(system)) == 11
    channel.connection.close()


def test_a_queue_that_is_deleted_is_warned_of(systems: Systems, amqp_url: str) -> None:
    system = systems(amqp_url=amqp_url, settings={"TC_TREEHERDER_PULSE_READ": '["job-actions"]'})
    system.stack.service()
    listener = system.stack.listener("pulse", "pulse")
    system.wait(lambda: "connected" in listener.tail())
    assert pulse_check(system) == ""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    connection.channel().queue_delete(queue_of(system))
    system.wait(lambda: f"{queue_of(system)} was found deleted" in pulse_check(system))
    connection.close()
    assert '"queue-deleted"' in listener.log.read_text()
    job = str(uuid.uuid4())
    press(system, job)
    system.wait(lambda: len(actions(system)) == 1)


def test_an_announced_push_is_in_treeherder_though_nobody_polls(systems: Systems, amqp_url: str, amqp: Amqp) -> None:
    exchange = amqp.exchange("hgpushes")
    channel = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    read = {"TC_TREEHERDER_PULSE_READ": '["pushes"]', "TC_TREEHERDER_PULSE_PUSHES": exchange}
    system = systems(amqp_url=amqp_url, settings={**HOUR, **read})
    system.stack.service()
    system.add_repository()
    poller = system.stack.listener("pushlog", "pushlog")
    system.wait(lambda: system.polls() > 0)
    time.sleep(0.3)
    poller.stop()
    listener = system.stack.listener("pulse", "pulse")
    system.wait(lambda: "connected" in listener.tail())
    push = system.push()
    assert not system.push_stored(push)
    url = system.stack.sandbox["repositories"][REPOSITORY]
    body = {"payload": {"type": "changegroup.1", "data": {"repo_url": url, "heads": [], "pushlog_pushes": []}}}
    channel.basic_publish(exchange, "try", json.dumps(body).encode())
    system.wait(lambda: system.push_stored(push), 10)
    system.expect_exactly_once(pushes=1, tasks=2)
    channel.connection.close()

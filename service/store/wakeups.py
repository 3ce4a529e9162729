"""Wake the loops that wait for work: those of this process at once, and on PostgreSQL those of all other processes.

A lost wake-up only costs time, because each loop also polls (`work.idle`).
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from enum import StrEnum

import structlog
from sqlalchemy.engine import make_url

from service.contract.retry import backoff

log = structlog.get_logger()

CHANNEL = "tc_treeherder_work"

FIRST_RETRY, MAX_RETRY = 0.5, 10.0
"""Seconds between two attempts to listen, while the database cannot be reached."""


class Topic(StrEnum):
    """A kind of work that becomes due."""

    WORK = "work"  # of the worker
    REPORTS = "reports"  # of the reporter


class Wakeups:
    """Events that wake this process's loops. `notify` wakes those of other processes."""

    def __init__(self, notify: Callable[[Topic], Awaitable[None]] | None) -> None:
        self._events: defaultdict[Topic, list[asyncio.Event]] = defaultdict(list)
        self._notify = notify
        self._sending: dict[Topic, asyncio.Task[None]] = {}

    def subscribe(self, topic: Topic) -> asyncio.Event:
        """Return an event that is set when work of the topic becomes due. The loop that waits for it clears it."""
        event = asyncio.Event()
        self._events[topic].append(event)
        return event

    def wake(self, topic: Topic) -> None:
        """Wake the loops of a topic. Call it after the commit."""
        self._wake_here(topic)
        if self._notify is not None and topic not in self._sending:  # a pending notification is enough
            self._sending[topic] = task = asyncio.create_task(self._send(topic, self._notify))
            task.add_done_callback(lambda _: self._sending.pop(topic, None))

    async def listen(self, url: str) -> None:
        """Receive the wake-ups of other processes until cancelled. On SQLite there are no other processes."""
        if url.startswith("sqlite"):
            return
        import psycopg  # noqa: PLC0415 - 9 MB, which SQLite does not need

        conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        failures = 0
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    failures = 0
                    for topic in Topic:  # for wake-ups that were missed while not connected
                        self._wake_here(topic)
                    async for notification in connection.notifies():
                        if notification.payload in {topic.value for topic in Topic}:
                            self._wake_here(Topic(notification.payload))
            except (psycopg.Error, OSError) as error:  # not its text, which can contain the connection's parameters
                log.warning("wakeups-not-heard", error=type(error).__name__)
            failures += 1
            await asyncio.sleep(backoff(failures, FIRST_RETRY, MAX_RETRY))

    async def close(self) -> None:
        """Wait for pending notifications."""
        await asyncio.gather(*self._sending.values())

    def _wake_here(self, topic: Topic) -> None:
        for event in self._events[topic]:
            event.set()

    async def _send(self, topic: Topic, notify: Callable[[Topic], Awaitable[None]]) -> None:
        try:
            await notify(topic)
        except Exception as error:  # noqa: BLE001 - the database cannot be reached: the other processes poll
            log.warning("wakeup-not-sent", topic=topic, error=type(error).__name__)

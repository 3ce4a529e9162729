"""The tasks of a loop and the leases that they work on: renewed while they run, drained and given back at the end."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from service.engine import leases
from service.engine.leases import Lease, LeaseLostError
from service.settings import WorkSettings
from service.store.database import Database

log = structlog.get_logger()


class Running:
    """Tasks that a loop has under way. `ended` is called with the leases of each task that is over."""

    def __init__(
        self, database: Database, settings: WorkSettings, ended: Callable[[Sequence[Lease[Any]]], None]
    ) -> None:
        self._database, self._settings, self._ended = database, settings, ended
        self.tasks: dict[asyncio.Task[None], Sequence[Lease[Any]]] = {}

    def start(self, work: Coroutine[Any, Any, None], held: Sequence[Lease[Any]]) -> None:
        """Run `work`, which holds these leases, in a task with a log context of its own."""
        task = asyncio.create_task(work, context=contextvars.Context())
        self.tasks[task] = held
        task.add_done_callback(self._over)

    @property
    def leases(self) -> list[Lease[Any]]:
        """Return all leases that are held, those that are held longest first."""
        return [lease for held in self.tasks.values() for lease in held]

    def _over(self, task: asyncio.Task[None]) -> None:
        held = self.tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work-not-recorded", exc_info=error)  # the leases end, then the work is done again
        self._ended(held)

    async def keep_renewing(self) -> None:
        """Renew the leases three times in their length, until cancelled; stop each task that has lost all of its."""
        while True:
            await asyncio.sleep(self._settings.lease.total_seconds() / 3)
            held = [lease for lease in self.leases if lease.renewable]
            if not held:
                continue
            try:
                async with self._database.writing() as session:
                    lost = set(await leases.renew(session, held, self._settings.lease))
            except Exception:  # the database is away; the leases may last until it is back
                log.exception("renew-failed")
                continue
            for task, its in list(self.tasks.items()):
                if lost and all(lease in lost and not lease.ended for lease in its):
                    log.warning("lease-lost", ids=[lease.item.id for lease in its])
                    task.cancel()

    async def drain(self) -> None:
        """Wait up to `work.drain` for what is under way; cancel what takes longer, and give it back."""
        if not self.tasks:
            return
        running = dict(self.tasks)
        log.info("draining", running=len(running))
        _, pending = await asyncio.wait(running, timeout=self._settings.drain.total_seconds())
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
            await asyncio.gather(*(give_back(lease) for task in pending for lease in running[task]))


async def give_back(lease: Lease[Any]) -> None:
    """Release a lease that this process will not end, for another to take the work at once."""
    try:
        await lease.release()
    except LeaseLostError as error:
        log.info("lease-lost", error=str(error))
    except Exception:  # the database is away: then the lease ends by itself
        log.exception("release-failed")

"""The kinds of work: each registers itself in the module that does it, so that adding one touches one place.

Worker, reporter, metrics, heartbeat and dead letters go through what is registered here. `service.flow` imports all of
its modules, so whoever imports any of them finds everything registered.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.batches import Deliverer
from service.engine.leases import Lease
from service.store.database import Session
from service.store.models import Work

Run = Callable[[Any, Lease[Any]], Awaitable[None]]
"""Does one piece of work with the services of this process, and ends its lease."""

Load = Callable[[Session, Sequence[Any]], Awaitable[dict[int, Any]]]
"""Reads what pieces of work belong to, by their ids, in the transaction that claims them."""

Step = Callable[[Any], Awaitable[float]]
"""Does something that is due now and then, with the services of this process; returns the seconds until the next."""


Replay = Callable[[Session, Any, bytes], Awaitable[None]]
"""Takes in the payload of a dead letter as if it had just come, in the caller's transaction, with the services of this
process. Raises a Problem if it cannot."""


@dataclass(frozen=True)
class WorkTable:
    """A table of leased work.

    `waiting` is a sentence for the heartbeat: where people see what old work of this table waits for. A table with a
    `deliverer` is claimed by the hundred, by a reporter for each environment; all others are the worker's.
    """

    model: type[Work]
    waiting: str
    load: Load | None = None
    deliverer: Callable[[Any, str], Deliverer] | None = None


class Registry:
    """The tables of leased work, what does each kind of it, and what is done now and then."""

    def __init__(self) -> None:
        self.tables: dict[type[Work], WorkTable] = {}
        self.steps: list[Step] = []
        self.replays: dict[str, Replay] = {}
        self._runs: dict[tuple[type[Work], str], Run] = {}
        self._early: set[tuple[type[Work], str]] = set()

    def add_table(self, table: WorkTable) -> None:
        """Add a table of leased work. Raises ValueError if it is there."""
        if table.model in self.tables:
            raise ValueError(f"{table.model.__name__} is registered already")
        self.tables[table.model] = table

    def add_kind(self, model: type[Work], name: str, run: Run, *, early: bool = False) -> None:
        """Say what does the work of a table that has this `work_name`. Raises ValueError if something does already.

        Work that is `early` may begin while it is being stored: until its first write, which waits for that, it only
        reads.
        """
        if (model, name) in self._runs:
            raise ValueError(f"{name} of {model.__name__} is registered already")
        self._runs[model, name] = run
        if early:
            self._early.add((model, name))

    def add_step(self, step: Step) -> None:
        """Have something done now and then by the reporter of each process."""
        self.steps.append(step)

    def add_replay(self, kind: str, replay: Replay) -> None:
        """Say what takes in a dead letter of this kind, whose payload is an event or names what to do."""
        self.replays[kind] = replay

    def run_of(self, item: Work) -> Run:
        """Return what does this piece of work. Raises LookupError if nothing does."""
        try:
            return self._runs[type(item), item.work_name]
        except KeyError:
            raise LookupError(f"nothing does {item.work_name} of {type(item).__name__} in this release") from None

    def is_early(self, item: Work) -> bool:
        """Return True if this piece of work may begin while it is being stored."""
        return (type(item), item.work_name) in self._early

    @property
    def worked(self) -> tuple[type[Work], ...]:
        """Return the tables of which the worker takes pieces, in the order in which they were added."""
        return tuple(model for model, table in self.tables.items() if table.deliverer is None)


WORK = Registry()
"""Everything that this service does."""

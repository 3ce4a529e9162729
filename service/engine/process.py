"""Protocol of the services that worker and reporter need; `service.services` has more, for the flow."""

from typing import Protocol

from service.engine.replica import Replica
from service.settings import Settings
from service.store.database import Database


class Process(Protocol):
    """The services of this process, as far as the engine knows them."""

    @property
    def settings(self) -> Settings:
        """Return the settings that the process was started with."""

    @property
    def database(self) -> Database:
        """Return the database that work is leased from."""

    @property
    def replica(self) -> Replica:
        """Return the name under which this process holds leases."""

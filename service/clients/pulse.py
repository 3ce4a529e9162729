"""What is published to Pulse, and where: the names of exchanges. `service.clients.publisher` does it."""

from typing import Any, Protocol

from service.settings import Settings

HGPUSHES = "hgpushes/v1"
"""Exchange of pushes in the form that a Treeherder reads. It accepts only names that contain `/hgpushes/`."""

JOBS = "v1/jobs"
"""Exchange of jobs in the form of Treeherder's pulse-job.yml."""

ANNOUNCEMENTS = "v1/pushes"
"""Exchange of announced pushes, for any consumer."""

RETRIGGERS = "v1/retrigger"
"""Exchange of retriggered tasks, for any consumer."""

ACTIONS = "v1/action"
"""Exchange of in-tree actions whose task was created, for any consumer."""


def exchange_name(user: str, name: str) -> str:
    """Return the full name of one of our exchanges; a full name is returned unchanged."""
    return name if name.startswith("exchange/") else f"exchange/{user}/{name}"


def exchanges(settings: Settings) -> list[str]:
    """Return the full names of all exchanges that a service with these settings publishes to."""
    names = {ANNOUNCEMENTS, RETRIGGERS, ACTIONS}
    for environment in settings.environments.values():
        if environment.pushes == "pulse":
            names.add(environment.pushes_exchange or HGPUSHES)
        if environment.jobs == "pulse":
            names.add(JOBS)
    return sorted(exchange_name(settings.pulse.user, name) for name in names)


class Publisher(Protocol):
    """Publishing of messages to Pulse."""

    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        """Publish a message at least once, and return when the broker has confirmed it.

        The exchange is `exchange/<user>/<exchange>`, unless `exchange` is a full name. Raises Unavailable, also if no
        queue is bound for a `mandatory` message.
        """

"""Hold all that one Treeherder stand-in remembers: its store, its credentials, its counters and its limits."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from sandbox.treeherder.behaviour import Behaviour
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from sandbox.treeherder.store import Store


@dataclass
class State:
    """One Treeherder: `credentials` are Hawk ids and keys, `amqp_url` is the broker for job actions."""

    store: Store
    credentials: dict[str, str]
    amqp_url: str | None = None
    job_actions_exchange: str = JOB_ACTIONS_EXCHANGE
    behaviour: Behaviour = field(default_factory=Behaviour)
    counters: Counter[str] = field(default_factory=Counter)
    """Requests by method, kind and status (`POST jobs 200`), and `jobs received`."""
    _accepted: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    _nonces: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget pushes, jobs, counters and what the limits counted."""
        self.store.clear()
        self.counters.clear()
        self._accepted.clear()

    def seconds_to_wait(self, client_id: str, kind: str, per_minute: int) -> float:
        """Count a request of this kind and return 0 if the credential's limit allows it, otherwise return the wait."""
        now = time.monotonic()
        accepted = self._accepted.setdefault((client_id, kind), deque())
        while accepted and accepted[0] <= now - 60:
            accepted.popleft()
        if len(accepted) >= per_minute:
            return accepted[0] + 60 - now if accepted else 60
        accepted.append(now)
        return 0

    def seen_nonce(self, client_id: str, nonce: str, timestamp: str) -> bool:
        """Return True if this signature was used in the last two minutes; Hawk's clock skew is 60 s."""
        now = time.monotonic()
        for key in list(self._nonces):  # insertion order is age
            if self._nonces[key] > now - 120:
                break
            del self._nonces[key]
        key = client_id, nonce, timestamp
        if key in self._nonces:
            return True
        self._nonces[key] = now
        return False

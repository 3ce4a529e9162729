"""Define the faults of the API, and record its calls.

A fault names an API method (`createTask`, ...; `*` for any) and a kind:

- `before`: answer `status` and do nothing
- `after`: do the work, then answer `status`
- `throttle`: answer 429, without a Retry-After unless `retry_after` (seconds) is given
- `delay`: wait `seconds`, then continue
- `hang`: never answer; it ends when the caller disconnects or the fault is removed
- `drop`: close the connection and do nothing; `drop-after`: do the work first
- `crash` (createTask only): store the task, schedule nothing, answer 500

It holds for the next `times` calls (without end if not given), each with `probability`.
"""

import asyncio
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

KINDS = ("before", "after", "throttle", "delay", "hang", "drop", "drop-after", "crash")
ANY = "*"


@dataclass
class Fault:
    """One fault; `left` counts down the calls that it still holds for (None: no end)."""

    kind: str
    method: str = ANY
    status: int = 500
    seconds: float = 0.0
    retry_after: int | None = None
    times: int | None = None
    probability: float = 1.0
    fault_id: int = 0
    left: int | None = None
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a fault has no kind {self.kind!r}: use one of {', '.join(KINDS)}")
        if self.kind == "crash" and self.method != "createTask":
            raise ValueError("only createTask can crash: set method to createTask")
        if self.kind == "throttle":
            self.status = 429
        self.left = self.times

    def describe(self) -> dict[str, Any]:
        """Return the fault as JSON."""
        described = {name: value for name, value in vars(self).items() if name not in ("removed", "fault_id")}
        return {"id": self.fault_id, **described}


class Faults:
    """Active faults. Several may hit one call; they do in the order in which they were added."""

    def __init__(self, seed: int = 0) -> None:
        self._faults: dict[int, Fault] = {}
        self._random = random.Random(seed)
        self._serial = 0

    def add(self, kind: str, method: str = ANY, **more: Any) -> Fault:
        """Add a fault; `more` are the other fields of `Fault`. It stays until its `times` are used up, or `remove`."""
        fault = Fault(kind, method, **more)
        self._serial += 1
        fault.fault_id = self._serial
        self._faults[fault.fault_id] = fault
        return fault

    def remove(self, fault_id: int | None = None) -> None:
        """Remove one fault, or all; calls that hang because of it continue."""
        for key in [fault_id] if fault_id is not None else list(self._faults):
            if (fault := self._faults.pop(key, None)) is not None:
                fault.removed.set()

    def strike(self, method: str) -> list[Fault]:
        """Return the faults that hit this call, and count them down."""
        if not self._faults:
            return []
        struck = []
        for fault in self._faults.values():
            if fault.method not in (ANY, method) or fault.left == 0:
                continue
            if fault.probability < 1 and self._random.random() >= fault.probability:
                continue
            if fault.left is not None:
                fault.left -= 1
            struck.append(fault)
        return struck

    def describe(self) -> list[dict[str, Any]]:
        """Return all faults as JSON."""
        return [fault.describe() for fault in self._faults.values()]


@dataclass
class Creation:
    """A call of createTask: its status (0 without an answer) and its time (ISO)."""

    task_id: str
    status: int
    time: str


class Journal:
    """Counts of calls and answers by API method, and the calls of createTask in order."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.creations: list[Creation] = []

    def clear(self) -> None:
        """Reset all counts."""
        self.calls.clear()
        self.answers.clear()
        self.creations.clear()

    def describe(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        answers: dict[str, dict[str, int]] = {}
        for (method, status), count in sorted(self.answers.items()):
            answers.setdefault(method, {})[str(status)] = count
        return {
            "calls": dict(self.calls),
            "answers": answers,
            "creations": [asdict(creation) for creation in self.creations],
        }

"""Things that go wrong on purpose, and the record of what was called.

A fault names an API method (`createTask`, ...; `*` for any) and a kind:

- `before`: answer `status` and do nothing
- `after`: do the work, then answer `status`
- `throttle`: 429, without a Retry-After unless `retry_after` (seconds) is given
- `delay`: wait `seconds`, then go on
- `hang`: never answer; ends when the caller goes away or the fault is removed
- `drop`: close the connection and do nothing; `drop-after`: do the work first
- `crash` (createTask only): store the task, schedule nothing, answer 500

It holds for the next `times` calls (for ever without), each with `probability`.
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
    """One thing that goes wrong; `left` counts down the calls that it still holds for (None: no end)."""

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
        """As JSON."""
        described = {name: value for name, value in vars(self).items() if name not in ("removed", "fault_id")}
        return {"id": self.fault_id, **described}


class Faults:
    """The faults that are set. Several may strike one call; they do in the order in which they were set."""

    def __init__(self, seed: int = 0) -> None:
        self._faults: dict[int, Fault] = {}
        self._random = random.Random(seed)
        self._serial = 0

    def add(self, kind: str, method: str = ANY, **more: Any) -> Fault:
        """Set a fault; `more` are the other fields of `Fault`. It stays until its `times` are used up, or `remove`."""
        fault = Fault(kind, method, **more)
        self._serial += 1
        fault.fault_id = self._serial
        self._faults[fault.fault_id] = fault
        return fault

    def remove(self, fault_id: int | None = None) -> None:
        """Take one fault away, or all; calls that hang in it go on."""
        for key in [fault_id] if fault_id is not None else list(self._faults):
            if (fault := self._faults.pop(key, None)) is not None:
                fault.removed.set()

    def strike(self, method: str) -> list[Fault]:
        """The faults that strike this call."""
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
        """All that are set, as JSON."""
        return [fault.describe() for fault in self._faults.values()]


@dataclass
class Creation:
    """A call of createTask: what it was answered (0 when it was not), and when (ISO)."""

    task_id: str
    status: int
    time: str


class Journal:
    """How often each API method was called, how it was answered, and createTask in its order."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.creations: list[Creation] = []

    def clear(self) -> None:
        """Begin anew."""
        self.calls.clear()
        self.answers.clear()
        self.creations.clear()

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        answers: dict[str, dict[str, int]] = {}
        for (method, status), count in sorted(self.answers.items()):
            answers.setdefault(method, {})[str(status)] = count
        return {
            "calls": dict(self.calls),
            "answers": answers,
            "creations": [asdict(creation) for creation in self.creations],
        }

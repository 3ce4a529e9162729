"""Slots that are shared fairly among shares: a repository and its pusher, or a project and its requester.

The share that holds the fewest slots goes first; among equals, the one that has waited longest for its turn. No share
gets the last slot, so that a small piece of work never waits for a large one of somebody else.

The number of slots for calls to an upstream adapts to its answers: additive increase, multiplicative decrease.
"""

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog

from service.errors import Unavailable

log = structlog.get_logger()


def most_of(slots: int) -> int:
    """Return the number of slots that one share may hold, of `slots` in all."""
    return max(1, slots - 1)


def deal(shares: Sequence[str], held: Mapping[str, int], slots: int, most: int) -> dict[str, int]:
    """Return how many of the free `slots` each share gets. `shares` is in the order of their turns."""
    order = [(held.get(share, 0), turn, share) for turn, share in enumerate(shares)]
    heapq.heapify(order)
    dealt: Counter[str] = Counter()
    while order and dealt.total() < slots:
        count, turn, share = heapq.heappop(order)
        if count < most:
            dealt[share] += 1
            heapq.heappush(order, (count + 1, turn, share))
    return dict(dealt)


class FairSlots:
    """Slots of one process, such as connections: `async with slots.use(share)` waits for one."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._served: dict[str, int] = {}  # the number of the turn in which each share was served last
        self._turns = 0

    @asynccontextmanager
    async def use(self, share: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it inside the block."""
        await self._take(share)
        try:
            yield
        finally:
            self._give_back(share)

    def others_wait(self, share: str) -> bool:
        """Return True if another share waits for a slot."""
        return any(other != share for other in self._waiting)

    async def _take(self, share: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(share, deque()).append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it got its slot at the same moment
                self._give_back(share)
            raise

    def _give_back(self, share: str) -> None:
        self._held[share] -= 1
        if not self._held[share]:
            del self._held[share]
        self._serve()
        self._forget(share)

    def _forget(self, share: str) -> None:
        if share not in self._held and share not in self._waiting:
            self._served.pop(share, None)

    def _serve(self) -> None:
        while self._held.total() < self.slots:
            shares = [share for share in self._waiting if self._held[share] < most_of(self.slots)]
            if not shares:
                return
            share = min(shares, key=lambda name: (self._held[name], self._served.get(name, 0)))
            turn = self._waiting[share].popleft()
            if not self._waiting[share]:
                del self._waiting[share]
            if turn.done():  # cancelled while it waited
                self._forget(share)
                continue
            turn.set_result(None)
            self._held[share] += 1
            self._turns += 1
            self._served[share] = self._turns


FIRST_SLOTS, LEAST_SLOTS = 10, 2
"""The slots at the start, and the least: with one, a share could hold the last slot."""

SLOW = 2.0
"""A call that takes this many times as long as the shortest recent call is no reason for more slots."""

FORGET = 1.002
"""Each call multiplies the shortest time by this, so that an upstream may become slower for good."""


class AdaptiveSlots(FairSlots):
    """Slots for calls to one upstream: one more while it answers fast, half as many when it is overloaded."""

    def __init__(
        self,
        ceiling: int,
        resized: Callable[[int], None] = lambda slots: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(min(FIRST_SLOTS, ceiling))
        self._ceiling, self._resized, self._clock = ceiling, resized, clock
        self._threshold = ceiling  # below it each call adds a slot; above it a whole round of calls does
        self._earned = 0.0
        self._shortest = float("inf")
        self._halved_at = float("-inf")
        resized(self.slots)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Time a call that is made in a slot, and adapt the number of slots to its end."""
        began = self._clock()
        try:
            yield
        except Unavailable as error:
            # without a status: no answer in time, or none at all
            if error.status is None or error.status in {408, 429} or error.status >= 500:
                self._halve(began, str(error))
            raise
        self._answered(self._clock() - began)

    def _answered(self, seconds: float) -> None:
        self._shortest = min(seconds, self._shortest * FORGET)
        # while nobody waits, nothing shows whether the upstream could take more
        if not self._waiting or seconds > SLOW * self._shortest or self.slots >= self._ceiling:
            return
        self._earned += 1 if self.slots < self._threshold else 1 / self.slots
        if self._earned >= 1:
            self._earned = 0.0
            self._resize(self.slots + 1)

    def _halve(self, began: float, why: str) -> None:
        if began <= self._halved_at:  # the call began with the number of slots that was halved already
            return
        self._halved_at = self._clock()
        self._earned = 0.0
        slots = max(self.slots // 2, min(LEAST_SLOTS, self._ceiling))
        self._threshold = slots
        if slots < self.slots:
            log.info("fewer-connections", connections=slots, before=self.slots, why=why)
            self._resize(slots)

    def _resize(self, slots: int) -> None:
        self.slots = slots
        self._resized(slots)
        self._serve()

"""Values that everybody may ask for, and that cost something: computed once for all who ask within some seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cached(Generic[T]):
    """A value that one request at a time computes, at most every `seconds`; other requests wait for it."""

    def __init__(
        self, compute: Callable[[], Awaitable[T]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._compute, self._seconds, self._clock = compute, seconds, clock
        self._lock = asyncio.Lock()
        self._value: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return the value. Raises what computing it raised; whoever waited then tries by itself."""
        async with self._lock:
            if self._value is None or self._clock() - self._value[0] >= self._seconds:
                value = await self._compute()
                self._value = (self._clock(), value)  # from now on: computing it may take longer than it is kept
            return self._value[1]


class Probe:
    """A call that may take long: made in the background, once at a time and at most every `seconds`."""

    def __init__(
        self, call: Callable[[], Awaitable[None]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call, self._seconds, self._clock = call, seconds, clock
        self._task: asyncio.Task[None] | None = None
        self._begun = 0.0

    async def result(self, wait: float) -> Exception | None:
        """Return why the last call failed, if it did. Raises TimeoutError when it does not end within `wait`."""
        if self._task is None or (self._task.done() and self._clock() - self._begun >= self._seconds):
            self._begun = self._clock()
            self._task = asyncio.create_task(self._run())
        await asyncio.wait({self._task}, timeout=wait)
        if not self._task.done():
            raise TimeoutError
        return self._failure

    async def _run(self) -> None:
        self._failure: Exception | None = None
        try:
            await self._call()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the probe is for
            self._failure = error

    async def close(self) -> None:
        """Cancel a call that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

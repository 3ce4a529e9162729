"""Compute once for all who ask."""

import asyncio

from service.api.cached import Cached


async def test_what_takes_longer_than_it_is_kept_is_computed_once_for_all_who_wait() -> None:
    at, computed = 0.0, 0

    async def compute() -> int:
        nonlocal at, computed
        computed += 1
        await asyncio.sleep(0)
        at += 9
        return computed

    cached = Cached(compute, 5, lambda: at)
    assert await asyncio.gather(*(cached.get() for _ in range(10))) == [1] * 10
    at += 5
    assert await cached.get() == 2

"""Odd input from strangers, for property tests, in which hypothesis calls the API many times within one test."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from tests.service.asgi import Api, node, running, settings_for

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)  # lone surrogates and NUL are among them
    | st.sampled_from(["inf", "nan", "mc", "0", node(1), 2**31 - 1, 2**63, -1, 0]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), children),
    max_leaves=6,
)
"""Values that Python can write as JSON."""


@contextmanager
def api_in_a_loop(database_url: str) -> Iterator[tuple[Api, Callable[[Coroutine[Any, Any, Any]], Any]]]:
    """Yield an API with one repository, `mc` at push 100, and a function that runs its coroutines.

    Hypothesis needs plain functions.
    """
    with asyncio.Runner() as runner:
        context = running(settings_for(database_url))
        api = runner.run(context.__aenter__())
        try:
            runner.run(api.add())
            yield api, runner.run
        finally:
            runner.run(context.__aexit__(None, None, None))

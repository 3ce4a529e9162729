"""Imports that leave out what a library takes along for its own command line.

httpx brings a command, and structlog tracebacks in colour, wherever rich and click are installed. Commands of ours
print tables with rich, so they are; a service or a listener would hold 5 MB of it for nothing.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HIDDEN = ("rich", "pygments", "click")


@contextmanager
def hidden() -> Iterator[None]:
    """Let imports of these fail meanwhile, which both libraries expect."""
    there = {name: sys.modules.get(name) for name in _HIDDEN}
    for name in _HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        for name, module in there.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with hidden():
    import structlog  # noqa: F401 - before anybody else does


def load_httpx() -> None:
    """Import httpx without its command, before a listener does."""
    with hidden():
        import httpx  # noqa: F401, PLC0415 - for whoever needs it only

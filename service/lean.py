"""Import libraries without parts that are not used here, for a terminal for example.

httpx has a command, and structlog has coloured tracebacks, which they load if rich and click are installed. Both are,
because our commands print tables. A service or a listener does not use them, and saves 5 MB of memory. structlog also
has loggers for greenlets, which SQLAlchemy brings along: without those, a listener saves 1 MB.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HIDDEN = ("rich", "pygments", "click", "greenlet")


@contextmanager
def hidden() -> Iterator[None]:
    """Let imports of these modules fail within the block. Both libraries expect that they may not be installed."""
    loaded = {name: sys.modules.get(name) for name in _HIDDEN}
    for name in _HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        for name, module in loaded.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with hidden():
    import structlog  # noqa: F401 - before any other module does


def load_httpx() -> None:
    """Import httpx without its command. Call it before a listener imports httpx."""
    with hidden():
        import httpx  # noqa: F401, PLC0415 - only for programs that need it

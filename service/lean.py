"""Import libraries without parts that are not used here, for a terminal for example.

httpx has a command, and structlog has coloured tracebacks, which they load if rich and click are installed. Both are,
because our commands print tables. A service or a listener does not use them, and saves 5 MB of memory. structlog also
has loggers for greenlets, which SQLAlchemy brings along: without those, a listener saves 1 MB. Taskcluster's library
has synchronous clients, for which it loads requests: the service uses the asynchronous ones, and saves 5 MB. FastAPI
refuses models of pydantic's first version, for which it loads that: the service has none, and saves 2 MB.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

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


class _LeftOut(ModuleType):
    """A module in place of one that is only needed by what is not used."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__name__} was left out by {__name__}, which expects that nobody uses it")


def load_taskcluster() -> None:
    """Import Taskcluster's library without requests. Call it before anything else imports the library."""
    if "requests" in sys.modules:
        return
    left_out = ("requests", "requests.exceptions")
    sys.modules.update({name: _LeftOut(name) for name in left_out})
    try:
        import taskcluster.aio  # noqa: F401, PLC0415 - only for programs that need it
    finally:
        for name in left_out:
            del sys.modules[name]


def leave_out_pydantic_v1() -> None:
    """Let imports of pydantic's first version fail, unless it is loaded. FastAPI expects that it may not be there."""
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]  # importing it raises ImportError

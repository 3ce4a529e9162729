"""Import libraries without parts that are not used here, for a terminal for example.

httpx has a command, and structlog has coloured tracebacks, which they load if rich and click are installed. Both are,
because our commands print tables. A service or a listener does not use them, and saves 5 MB of memory. structlog also
has loggers for greenlets, which SQLAlchemy brings along: without those, a listener saves 1 MB. A listener has no event
loop either, for which structlog, pydantic-settings and pika load asyncio: 1 MB. So nothing may use what structlog has
for event loops, such as `ainfo`; a service, which has one, does not.

Taskcluster's library has synchronous clients, for which it loads requests: the service uses the asynchronous ones, and
saves 5 MB. FastAPI refuses models of pydantic's first version, for which it loads that: the service has none, and saves
2 MB. uvicorn has a command, for which it loads click and multiprocessing: 1 MB. aiohttp reads all certificates of the
system for connections that verify nobody, too: 1 MB.
"""

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_HIDDEN = ("rich", "pygments", "click", "greenlet")

_SYNCHRONOUS = ("requests", "requests.exceptions", "taskcluster.generated._client_importer")


@contextmanager
def _instead(others: dict[str, Any]) -> Iterator[None]:
    """Let imports of these modules give others within the block; with None they raise ImportError."""
    loaded = {name: sys.modules.get(name) for name in others}
    sys.modules.update(others)
    try:
        yield
    finally:
        for name, module in loaded.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def _hidden() -> Iterator[None]:
    """Hide what is for terminals within the block. Both libraries expect that it may not be installed."""
    with _instead(dict.fromkeys(_HIDDEN)):
        yield


class _LeftOut(ModuleType):
    """A module in place of one that is only needed by what is not used."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__name__} was left out by {__name__}, which expects that nobody uses it")


@contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Let imports of these modules give empty ones within the block, unless they are loaded."""
    with _instead({name: _LeftOut(name) for name in names if name not in sys.modules}):
        yield


def _load(name: str) -> None:
    """Import a library without what is for terminals, and for event loops unless this release uses that at once."""
    with _hidden():
        try:
            with _left_out("asyncio"):
                import_module(name)
        except (ImportError, AttributeError):
            import_module(name)


_load("structlog")  # before any other module does


def load_for_listener(*more: str) -> None:
    """Import the libraries of a listener. Call it before anything else imports them. `more` are its own ones."""
    for name in ("httpx", "pydantic_settings", *more):
        _load(name)


@contextmanager
def _certificates_for_verification_only() -> Iterator[None]:
    def read(context: ssl.SSLContext) -> None:
        if context.verify_mode != ssl.CERT_NONE:
            super(ssl.SSLContext, context).set_default_verify_paths()

    ssl.SSLContext.set_default_verify_paths = read  # type: ignore[assignment,method-assign]  # hides the inherited one
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths


def load_taskcluster() -> None:
    """Import Taskcluster's library, and aiohttp with it. Call it before anything else imports them."""
    with _left_out(*_SYNCHRONOUS), _certificates_for_verification_only():
        import taskcluster.aio  # noqa: F401, PLC0415 - only for programs that need it


def load_uvicorn() -> None:
    """Import uvicorn without its command. Call it before anything else imports it."""
    if "uvicorn" in sys.modules:
        return
    command = ModuleType("uvicorn.main")
    command.__dict__.update(Server=None, main=None, run=None)
    with _instead({command.__name__: command}):
        import uvicorn.server  # noqa: PLC0415 - only for programs that need it
    uvicorn.__dict__["Server"] = uvicorn.server.Server  # the others are the command
    del uvicorn.main, uvicorn.run


def leave_out_pydantic_v1() -> None:
    """Let imports of pydantic's first version fail, unless it is loaded. FastAPI expects that it may not be there."""
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]  # importing it raises ImportError

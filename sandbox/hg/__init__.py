"""A stand-in for hgweb with the pushlog extension.

    pushlog = MemoryPushlog()                  # or MercurialPushlog(), with real repositories
    app = create_app(pushlog)                  # ASGI; run uvicorn with date_header=False
    pushlog.create("integration/autoland")
    pushlog.push("integration/autoland", [NewChangeset(files={".taskcluster.yml": "version: 1"})])

    GET /integration/autoland/json-pushes?version=2&full=1
    GET /integration/autoland/raw-file/tip/.taskcluster.yml

`Client` does the same as `pushlog` over HTTP, and asks for faults.
"""

from sandbox.hg.app import create_app
from sandbox.hg.client import Client
from sandbox.hg.faults import Fault, Faults, Requests
from sandbox.hg.memory import MemoryPushlog
from sandbox.hg.mercurial import MercurialPushlog
from sandbox.hg.pushlog import (
    NULL,
    MissingFileError,
    NewChangeset,
    Push,
    Pushlog,
    Query,
    UnknownRepositoryError,
    UnknownRevisionError,
)

__all__ = [
    "NULL",
    "Client",
    "Fault",
    "Faults",
    "MemoryPushlog",
    "MercurialPushlog",
    "MissingFileError",
    "NewChangeset",
    "Push",
    "Pushlog",
    "Query",
    "Requests",
    "UnknownRepositoryError",
    "UnknownRevisionError",
    "create_app",
]

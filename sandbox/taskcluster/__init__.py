"""A stand-in for Taskcluster's queue and auth services, in memory: `create_app(Taskcluster(...))`.

auth.py scopes.py     who calls, and with which scopes
checks.py             what a request must look like
queue.py artifacts.py the state, and what the methods do to it
app.py faults.py      HTTP, and what goes wrong on purpose
worker.py pulse.py    who runs the tasks, and who hears of it
"""

from sandbox.taskcluster.app import Taskcluster, create_app
from sandbox.taskcluster.auth import Client

__all__ = ["Client", "Taskcluster", "create_app"]

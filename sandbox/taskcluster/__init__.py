"""A stand-in for Taskcluster's queue, auth and hooks services, in memory: `create_app(Taskcluster(...))`.

auth.py scopes.py          authenticate callers, and check their scopes
checks.py                  check requests
tasks.py scheduler.py      tasks, groups and runs, and how runs move from state to state
queue.py reads.py          the methods of the queue that change tasks, and those that read
creation.py claims.py      createTask, and the methods that workers call
hooks.py trigger_schema.py hooks, and what they may be triggered with
artifacts.py pages.py      artifacts, and continuation tokens
methods.py endpoint.py     API methods and their routes, and how one is answered over HTTP
app.py control.py          the ASGI app, and `/__control__/`
ui.py                      pages for people
login.py login_pages.py    people sign in for other services, and the pages for that
faults.py                  faults, and the record of calls
actions.py callbacks.py    what decision tasks offer, and what the action tasks do
worker.py pulse.py         run the tasks, and publish the queue's messages
instance.py                all of this put together
"""

from sandbox.taskcluster.app import create_app
from sandbox.taskcluster.auth import Client
from sandbox.taskcluster.instance import Taskcluster
from sandbox.taskcluster.login import RegisteredClient

__all__ = ["Client", "RegisteredClient", "Taskcluster", "create_app"]

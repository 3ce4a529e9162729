"""A stand-in for a Treeherder that takes REST submissions: `create_app(State(Store([Repository("try")]), keys))`.

app.py         the ASGI app, and the faults of the server as a whole
api.py         Treeherder's own API
control.py     `/__control__/`, and the page
behaviour.py   which Treeherder it is, and its faults
state.py       all that it remembers
store.py       projects with their pushes and jobs, and the rules of a submission
job_actions.py what a button publishes
bodies.py      JSON of requests and answers
page.py        the page for people
"""

from sandbox.treeherder.app import create_app
from sandbox.treeherder.behaviour import SUBMISSION, Year
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE, declare_job_actions
from sandbox.treeherder.state import State

__all__ = ["JOB_ACTIONS_EXCHANGE", "SUBMISSION", "State", "Year", "create_app", "declare_job_actions"]

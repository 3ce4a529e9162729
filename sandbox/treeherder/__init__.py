"""A stand-in for a Treeherder that takes REST submissions: `create_app(State(Store([Repository("try")]), keys))`.

app.py    HTTP, and what goes wrong on purpose
store.py  the projects with their pushes and jobs, and what a submission must look like
page.py   the page for people
"""

from sandbox.treeherder.app import JOB_ACTIONS_EXCHANGE, SUBMISSION, State, Year, create_app, declare_job_actions

__all__ = ["JOB_ACTIONS_EXCHANGE", "SUBMISSION", "State", "Year", "create_app", "declare_job_actions"]

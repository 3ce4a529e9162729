"""The processing flow, in four packages. Read each from left to right.

    pushes     shift ─▶ push ──┬─▶ resultset ─▶ Treeherder          a pushlog entry becomes a stored push with its steps
               poll            │
               ingest          └─▶ graph ─▶ tasks.create ─▶ Taskcluster     a push becomes a plan, a plan becomes tasks
                                     └────▶ show_error                      ...or a task or a job that says why not

    actions    receive ──┬─▶ retrigger ─▶ tasks.create ─▶ Taskcluster       a pressed button becomes copies of a task
                         ├─▶ retrigger_failed ─▶ tasks.create               ...or of all failed tasks of a push
                         ├─▶ in_tree ─▶ trigger ─▶ Taskcluster              what the tree itself offers
                         ├─▶ cancel, cancel_push, supersede ─▶ Taskcluster
                         └─▶ notice ─▶ Pulse, Treeherder                    its end is announced

    jobs       events ──▶ deliver ──▶ Treeherder                            runs become jobs, in bulk
                 ▲          └─▶ rest, pulse                                 the two forms of a job
                 └─ reconcile ─▶ Taskcluster                                runs without a recent event are looked up

    tasks      definition, ids, routes, facts, status, plan, create         definitions of tasks, and their creation

`pushes`, `actions` and `jobs` use `tasks`, and never each other; only `ingest` registers itself as an action. The API
calls `shift`, `push`, `receive` and `events`; the worker and the reporter of `service.engine` run everything else. They
know no step by name: each module registers its kind of work at its end, and importing any module of this package
imports all of them.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
